"""BitHistogram -> a few hundred bins of y = ln|w| for the density estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from teleojax.stats import BitHistogram
from teleojax.stats._bithist import EXACT_SIZE, pattern_values

MAX_BINS = 512
CENTRE = 6.0  # standard deviations either side of mu within which bins are fine; beyond, one an octave
EXACT_WIDTH = 0.05  # in standard deviations, where the values themselves are known


@dataclass(frozen=True, slots=True)
class Bins:
    """Counts between rising `edges` in y = ln|w|; the bins touch and hold every value."""

    edges: Float[np.ndarray, " m+1"]
    counts: Int[np.ndarray, " m"]


def density_bins(histogram: BitHistogram, mu: float, sigma: float) -> Bins:
    """At most MAX_BINS bins (more only when ln|w| spans hundreds of octaves), none finer than the storage grid.

    Bins are unions of neighbouring storage cells, so many an octave: multiplying the weights by a power of two moves
    the edges by its logarithm and not one count. A tensor whose float32 or float64 values are all kept is binned evenly
    in (y − mu)/sigma instead. Needs a histogram with two cells or more, and sigma > 0.
    """
    if histogram.dtype in ("float32", "float64") and histogram.lossless and histogram.n <= EXACT_SIZE:
        return _even_bins(histogram, mu, sigma)
    keys = np.arange(histogram.keys[0], histogram.keys[-1] + 1)
    lower, upper = histogram.edges(keys)
    smallest = pattern_values(histogram.dtype, np.ones(1, np.int64))[0]  # a cell that begins at zero begins there
    lower = np.maximum(lower, smallest if not histogram.lossless else 0.0)
    octave_bits = np.maximum(pattern_values(histogram.dtype, keys << histogram.drop), lower).view(np.int64)
    far = np.abs(np.log(lower) - mu) > CENTRE * sigma
    starts = np.zeros(1, np.int64)
    for log_k in range(7, -1, -1):
        group = np.where(far, octave_bits >> 52, octave_bits >> (52 - log_k))
        starts = np.flatnonzero((np.diff(group, prepend=group[0] - 1) != 0) | (np.diff(far, prepend=far[0]) != 0))
        if len(starts) <= MAX_BINS:
            break
    counts = np.zeros(len(keys), np.int64)
    counts[histogram.keys - keys[0]] = histogram.counts
    return Bins(np.log(np.append(lower[starts], upper[-1])), np.add.reduceat(counts, starts))


def _even_bins(histogram: BitHistogram, mu: float, sigma: float) -> Bins:
    z = (np.log(histogram.values()) - mu) / sigma
    low, high = np.floor(z[0] / EXACT_WIDTH), np.floor(z[-1] / EXACT_WIDTH) + 1
    step = max(1, -(-int(high - low) // MAX_BINS))
    edges = np.arange(low, high + step, step) * EXACT_WIDTH
    index = np.clip(np.searchsorted(edges, z, side="right") - 1, 0, len(edges) - 2)
    counts = np.zeros(len(edges) - 1, np.int64)
    np.add.at(counts, index, histogram.counts)
    return Bins(mu + sigma * edges, counts)
