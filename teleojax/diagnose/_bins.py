"""BitHistogram -> a few hundred bins of y = ln|w| for the density estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from teleojax.stats import BitHistogram

WIDTH = 0.05  # of a bin, in standard deviations of y
CENTRE = 8.0  # standard deviations either side of mu that bins of that width cover; beyond, each is GROWTH times wider
GROWTH = 1.25


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Counts between rising `edges` in y = ln|w|; the bins touch and hold every value. Counts may be fractions."""

    edges: Float[np.ndarray, " edges"]
    counts: Float[np.ndarray, " bins"]


def density_bins(histogram: BitHistogram, mu: float, sigma: float) -> Bins:
    """Bins even in z = (y − mu)/sigma, so that scaling the weights moves the edges and hardly a count.

    A storage cell's count is spread evenly, in y, over the cell; no bin is narrower than the cells it lies on, for
    finer bins would show the storage grid and not the law. Values kept with all their bits are binned as they are.
    Needs at least one value, and sigma > 0.
    """
    # a value of a few bits stands for its rounding cell; one with all bits of float32 or float64 for itself
    if histogram.lossless and histogram.dtype in ("float32", "float64"):
        z = (np.log(histogram.values()) - mu) / sigma
        edges = _even_edges(z[0], z[-1])
        index = np.searchsorted(edges, z, side="right") - 1
        counts = np.bincount(index, histogram.counts, minlength=len(edges) - 1)
        return Bins(mu + sigma * edges, counts)
    grid = _grid_lines(histogram, mu, sigma)
    z = np.concatenate([(np.log(edge) - mu) / sigma for edge in _cell_edges(histogram, histogram.keys)])
    cumulative = np.cumsum(histogram.counts).astype(np.float64)
    order = np.argsort(z, kind="stable")
    rises = np.concatenate([cumulative - histogram.counts, cumulative])
    counts = np.diff(np.interp(grid, z[order], rises[order]))
    return Bins(mu + sigma * grid, counts)


def _cell_edges(histogram: BitHistogram, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of cells, the one that begins at zero beginning at the least magnitude instead."""
    lower, upper = histogram.edges(keys)
    return np.maximum(lower, histogram.least), upper


def _even_edges(low: float, high: float) -> Float[np.ndarray, " m"]:
    """Rising edges on multiples of WIDTH within ±CENTRE, ever wider beyond, the outermost around [low, high]."""
    reach = max(abs(low), abs(high), CENTRE) / CENTRE
    n_wide = int(np.ceil(np.log(reach) / np.log(GROWTH))) + 1
    inner = np.arange(round(CENTRE / WIDTH) + 1) * WIDTH
    half = np.concatenate([inner, CENTRE * GROWTH ** np.arange(1, n_wide + 1)])
    edges = np.concatenate([-half[:0:-1], half])
    first, last = np.searchsorted(edges, low, side="right") - 1, np.searchsorted(edges, high, side="right")
    return edges[first : last + 1]


def _grid_lines(histogram: BitHistogram, mu: float, sigma: float) -> Float[np.ndarray, " m"]:
    """Even edges in z where cells are fine; where they are not, edges of cells, at least WIDTH apart."""
    keys = np.arange(histogram.keys[0], histogram.keys[-1] + 1)
    lower, upper = ((np.log(edge) - mu) / sigma for edge in _cell_edges(histogram, keys))
    coarse = np.flatnonzero((upper - lower > WIDTH / 2) & (np.abs(lower) < CENTRE))
    even = _even_edges(lower[0], upper[-1])
    if not len(coarse):
        return even
    # cells widen downwards within the subnormals and not at all above them: coarse ones lie below one line
    line = upper[coarse[-1]]
    cells = np.append(lower[: coarse[-1] + 1], line)
    # thin the edges: keep those that start a new stretch of WIDTH, counted so that scaling by 2 keeps the same ones
    number = np.floor((cells - cells[-1]) / WIDTH + 1e-6)
    kept = cells[np.flatnonzero(np.diff(number, prepend=number[0] - 1))]
    return np.concatenate([kept[kept < line], [line], even[even > line]])
