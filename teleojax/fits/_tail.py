"""Where a power-law tail may begin: the scan of Clauset, Shalizi and Newman on the edges of bins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from teleojax.fits._nodes import CellMoments, bin_starts, cells_of
from teleojax.stats import TensorStats

LEAST = 50  # values that a tail needs; with fewer, the smallest distance belongs to some accident at the very end


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The values from `exp(log_xmin)` up: how many, their cells, and the `ks` distance of the Pareto law fitted there.
    `log_xmin` is NaN and n = 0 where no tail has LEAST values.
    """

    log_xmin: float
    n: int
    ks: float
    cells: CellMoments


def find_tail(stats: TensorStats, xmin: float | None = None) -> Tail:
    """The xmin, among edges of bins, at which the Kolmogorov–Smirnov distance of the maximum-likelihood Pareto law from
    the values above it is least, or the given one (moved to the next cell's edge).

    A cell begins half-way to the number below it, so that rounding does not shift the excesses. The distance is taken
    at the edges of bins a twentieth of a standard deviation wide, where both distributions are exact.

    Reference: Clauset, Shalizi & Newman (2009), Power-law distributions in empirical data, SIAM Review 51.
    """
    histogram = stats.histogram
    if histogram is None:
        raise TypeError("statistics without a histogram have no tail")
    n, cells = histogram.n, cells_of(histogram)
    edge = np.log(np.maximum(histogram.edges()[0], histogram.least))
    from_here = np.cumsum(histogram.counts[::-1])[::-1]  # values in this cell and all above
    bins = bin_starts((cells.mean - stats.moments.mean) / stats.moments.sigma)
    given = [] if xmin is None else np.flatnonzero(edge >= math.log(xmin) - 1e-9)[:1]
    start = bins[from_here[bins] >= LEAST] if xmin is None else given
    if not len(start):
        return Tail(math.nan, 0, math.nan, cells.from_cell(len(cells.mean)))
    log_sum = np.cumsum((cells.share * cells.mean)[::-1])[::-1]
    share = from_here / n
    excess = np.maximum(log_sum[start] / share[start] - edge[start], 1e-300)
    distance = []
    for s, mean in zip(start, excess, strict=True):
        above = bins[bins > s]
        gaps = np.abs(share[above] / share[s] - np.exp(-(edge[above] - edge[s]) / mean))
        distance.append(gaps.max(initial=0.0))
    best = int(np.argmin(distance))
    s = int(start[best])
    return Tail(float(edge[s]), int(from_here[s]), float(distance[best]), cells.from_cell(s))
