"""Weibull shape and scale from a weighted probability plot of the body of |w|: the protocol of arXiv 2605.18898."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from teleojax._errors import UsageError
from teleojax.fits._histogram import counts_below, histogram_of
from teleojax.stats import BitHistogram, TensorStats

NPM_WEIBULL = "npm-weibull"
NPM_EDGES = np.linspace(-12.0, 2.0, 1025)  # log10|w|, as that package bins it
NPM_MIN_VALUES = 100  # within its range, or it answers NaN
MIN_POINTS = 5  # likewise, of points on the plot


@dataclass(frozen=True, slots=True)
class ProbabilityPlotFit:
    """Weibull `shape` k and `scale` λ (units of w); `r2` of the weighted line through the plot, ln(−ln(1 − F)) on ln x.

    `n_used` counts the points on the line: cells or bins, not values. `n_outside` counts the non-zero values outside
    the grid's range, which the fit leaves out; it is 0 without a grid. `status` is "ok", or "degenerate" where too few
    points or values are left: then shape, scale and r2 are NaN.
    """

    shape: float
    scale: float
    r2: float
    n_used: int
    n_outside: int
    status: str


def probability_plot_fit(
    stats: TensorStats, *, low: float = 0.1, high: float = 0.9, grid: str | None = None
) -> ProbabilityPlotFit:
    """The line through a Weibull probability plot of x = |w| between the probabilities `low` and `high`.

    ln(−ln(1 − F)) = k ln x − k ln λ, fitted by least squares of the **left side on ln x** with the count of each cell
    as its weight, F the mid-rank of the cell. In the limit of many values the weight is even in F, so that
    k = Cov(ln x, ln(−ln(1 − F))) / Var(ln x) over F uniform on [low, high]: 1.205434 for a half-normal. The other
    direction, ln x on ln(−ln(1 − F)), gives k / r2, never less: 1.208164 there. Only for Weibull data do the two agree.

    Without `grid` every stored cell is a point, its count spread evenly over the cell, and a cell that crosses `low` or
    `high` enters with the part inside. `grid="npm-weibull"` is the published instrument, bin by bin: 1,024 equal bins
    of log10|w| (in float32) from −12 to 2, half open, the last closed; points at the middle of a bin in log10, a bin in
    or out as its mid-rank is. Where the statistics are lossless each value is in its own bin and the answer is that
    package's (0.4.0) to rounding. Of float32 and float64 tensors above 8,192 values cells of 1/128 octave are kept, a
    quarter of a bin at most: k then differs by some 3e-5 of itself, and by up to 2e-3 where that moves a bin into the
    window or out of it.

    Zeros take no part (`stats.moments.n_zero`). Fewer than 5 points, or with the grid fewer than 100 values in range,
    give status "degenerate" and NaN. Raises UsageError for another grid, for probabilities out of order, and for
    statistics without a histogram.
    """
    if not 0 <= low < high <= 1:
        raise UsageError(
            "probabilities",
            found=f"low={low}, high={high}",
            needed="0 ≤ low < high ≤ 1",
            remedy="The published window is 0.1 to 0.9.",
        )
    if grid not in (None, NPM_WEIBULL):
        raise UsageError(
            "grid", found=repr(grid), needed=f"None or {NPM_WEIBULL!r}", remedy="Leave it out to use every stored cell."
        )
    histogram = histogram_of(stats)
    if not histogram.n:
        return ProbabilityPlotFit(math.nan, math.nan, math.nan, 0, 0, "degenerate")
    if grid is None:
        points, inside, needed = _cell_points(histogram, low, high), float(histogram.n), 0
    else:
        counts = _npm_counts(histogram)
        points, inside, needed = _bin_points(counts, low, high), float(counts.sum()), NPM_MIN_VALUES
    n_outside = round(histogram.n - inside)
    n_used = len(points.weight)
    if n_used < MIN_POINTS or inside < needed:
        return ProbabilityPlotFit(math.nan, math.nan, math.nan, n_used, n_outside, "degenerate")
    shape, scale, r2 = _line(points)
    return ProbabilityPlotFit(shape, scale, r2, n_used, n_outside, "ok")


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    """Points of the plot: ln x, the probability of exceeding x, and the weight of each."""

    log_x: Float[np.ndarray, " p"]
    survival: Float[np.ndarray, " p"]
    weight: Float[np.ndarray, " p"]


def _cell_points(histogram: BitHistogram, low: float, high: float) -> _Points:
    """One point a cell, at the middle of the part of it that lies in the window."""
    n = histogram.n
    after = np.cumsum(histogram.counts).astype(np.float64)
    first, last = np.maximum(after - histogram.counts, low * n), np.minimum(after, high * n)
    used = last - first > 1e-9 * histogram.counts  # less is the rounding of low · n
    middle, weight = ((first + last) / 2)[used], (last - first)[used]
    lower, upper = (edge[used] for edge in histogram.edges())
    share = 1 - (after[used] - middle) / histogram.counts[used]
    return _Points(np.log(lower + (upper - lower) * share), 1 - middle / n, weight)


def _npm_counts(histogram: BitHistogram) -> Float[np.ndarray, " bins"]:
    """Counts on the package's grid."""
    if not histogram.lossless:
        lower, upper = histogram.edges()
        return np.diff(counts_below(10.0**NPM_EDGES, lower, upper, histogram.counts))
    with np.errstate(over="ignore"):  # float64 past float32 is inf there, and outside
        x = histogram.values().astype(np.float32)
    log10_x = np.log10(np.maximum(x, np.finfo(np.float32).tiny)).astype(np.float64)
    index = np.searchsorted(NPM_EDGES, log10_x, side="right") - 1
    index[log10_x == NPM_EDGES[-1]] -= 1
    inside = (index >= 0) & (index < len(NPM_EDGES) - 1)
    return np.bincount(index[inside], histogram.counts[inside], minlength=len(NPM_EDGES) - 1)


def _bin_points(counts: Float[np.ndarray, " bins"], low: float, high: float) -> _Points:
    """One point an occupied bin whose mid-rank lies in the window."""
    after = np.cumsum(counts)
    total = max(float(after[-1]), 1.0)
    mid_rank = (after / total + (after - counts) / total) / 2
    # low is compared from above: 1 − low rounds as the package's margin does, and ties at the edge are in
    used = (counts > 0) & (1 - mid_rank <= 1 - low) & (mid_rank <= high)
    middle = (NPM_EDGES[:-1] + NPM_EDGES[1:]) / 2
    return _Points(middle[used] * math.log(10), 1 - mid_rank[used], counts[used])


def _line(points: _Points) -> tuple[float, float, float]:
    """(k, λ, R²) of the weighted regression of ln(−ln S) on ln x."""
    weight = points.weight / points.weight.sum()
    y = np.log(-np.log(points.survival))
    mean_x, mean_y = float(weight @ points.log_x), float(weight @ y)
    dx, dy = points.log_x - mean_x, y - mean_y
    sxx, sxy, syy = float(weight @ dx**2), float(weight @ (dx * dy)), float(weight @ dy**2)
    shape = sxy / sxx
    return shape, math.exp(mean_x - mean_y / shape), sxy**2 / (sxx * syy)
