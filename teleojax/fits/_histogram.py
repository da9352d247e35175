"""Least squares of a lognormal curve to a linear histogram of |w|: the protocol of arXiv 2405.10955."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from teleojax._errors import UsageError
from teleojax.stats import BitHistogram, LogMoments, TensorStats

MIN_BINS = 4  # three parameters, and one height left over to tell whether they fit
MIN_OCCUPIED = 3  # curves through one or two heights and zeros elsewhere are many
SIGMAS = np.geomspace(0.02, 30, 40)  # scanned for starting points: from a spike to nearly a power law
PEAKS = 16  # positions of the mode scanned at each sigma, beside the tallest bins:
TALLEST = 8
SLOPES = np.geomspace(0.05, 20, 14)  # d ln height / d ln x at the first bin, negated, scanned where the mode is unseen
LN_SIGMA_LIMIT = 14.0  # keeps exp in range; the status says "not converged" long before
LN_LARGEST = 709.0  # exp of more is past float64
FLAT = 1e-6  # relative change of the curve per unit of a parameter below which that parameter is not determined


@dataclass(frozen=True, slots=True)
class HistogramFit:
    """`amplitude` · LN(x; `mu`, `sigma`) at the least sum of squares from the heights of `bins` equal bins of x = |w|.

    Heights are counts: of a lognormal layer `amplitude` is near n · max|w| / bins. `r2` is 1 − (sum of squared
    residuals) / (sum of squared deviations of the heights from their mean).

    `status` is "ok"; "degenerate" where fewer than three bins hold anything, so that many curves are best and all
    numbers are NaN; or "not converged" where no lognormal is best: the sum of squares falls for ever as sigma grows
    (towards a power law) or shrinks (towards one bin alone). Then `r2` is its limit and the parameters are NaN.
    """

    amplitude: float
    mu: float
    sigma: float
    r2: float
    bins: int
    status: str


def histogram_fit(stats: TensorStats, *, bins: int = 100) -> HistogramFit:
    """The lognormal that least squares draws through a linear histogram of |w|, as arXiv 2405.10955 fits it.

    minimise Σ_i (c_i − A′ · LN(x_i; μ′, σ′))² over A′, μ′, σ′, with c_i the counts in `bins` bins of equal width from
    0 to max|w| (half open, the last closed), x_i their midpoints, LN the density in x, no location. A′ is solved for at
    every (μ′, σ′) and the other two by Levenberg–Marquardt from the maximum-likelihood fit and from every local
    minimum of a scan over σ′, for the least-squares optimum can lie far from the likelihood's. The answer is the
    binning's as much as the law's (`histogram_sensitivity`), so published numbers can be compared at equal `bins` only.

    Zeros are in no bin (a lognormal has none). Bin contents are exact where the statistics are lossless; where a cell
    of 1/128 octave stands for its values, its count is spread evenly over the cell, cut at min|w| and max|w|: mu and
    sigma of 10⁵ values then move by some 1e-4, and R² at 1,000 bins is up to 0.002 higher. Storage of 8 bits or fewer
    shows its own grid in fine bins. mu and sigma are those of ln|w|, without unit.

    Empty and single-valued statistics give status "degenerate" and NaN. Raises UsageError for bins < 4 and for
    statistics without a histogram. Variable projection: Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973).
    """
    if bins < MIN_BINS:
        raise UsageError(
            "bins",
            found=str(bins),
            needed=f"at least {MIN_BINS}: the curve has three parameters",
            remedy="Ask for more bins; 50 to 1000 are usual.",
        )
    histogram = histogram_of(stats)
    nan = math.nan
    if not histogram.n:
        return HistogramFit(nan, nan, nan, nan, bins, "degenerate")
    edges = np.linspace(0.0, stats.moments.max, bins + 1)
    heights = linear_counts(histogram, edges, stats.moments)
    if np.count_nonzero(heights) < MIN_OCCUPIED:
        return HistogramFit(nan, nan, nan, nan, bins, "degenerate")
    log_middle = np.log((np.arange(bins) + 0.5) / bins) + math.log(stats.moments.max)
    curve = _Projected.through(log_middle, heights)
    best, converged = _least_squares(curve, stats.moments)
    residual = curve.residual(best)
    deviation = curve.heights - curve.heights.mean()
    spread = deviation @ deviation
    r2 = float(1 - residual @ residual / spread) if spread > 0 else nan
    amplitude, mu, sigma = curve.lognormal(best)
    if not converged or not math.isfinite(amplitude):
        return HistogramFit(nan, nan, nan, r2, bins, "not converged")
    return HistogramFit(amplitude, mu, sigma, r2, bins, "ok")


def histogram_sensitivity(stats: TensorStats, bins: Iterable[int] = (50, 100, 200, 500, 1000)) -> list[HistogramFit]:
    """`histogram_fit` at each number of bins, in that order: how far its answer is the binning's. Raises as it does."""
    return [histogram_fit(stats, bins=n) for n in bins]


def histogram_of(stats: TensorStats) -> BitHistogram:
    """The histogram of the statistics. Raises UsageError where only moments were taken."""
    if stats.histogram is None:
        raise UsageError(
            "statistics",
            found="moments alone, no histogram",
            needed="counts of |w| to bin",
            remedy="Measure with histogram=True.",
        )
    return stats.histogram


def counts_below(
    x: Float[np.ndarray, " m"], lower: Float[np.ndarray, " k"], upper: Float[np.ndarray, " k"], counts: np.ndarray
) -> Float[np.ndarray, " m"]:
    """How many values lie below each x when the count of every cell is spread evenly between its edges.

    Cells in rising order, at least one; one without width holds its count at its edge, not below.
    """
    cell = np.maximum(np.searchsorted(lower, x, side="right") - 1, 0)
    low, high = lower[cell], upper[cell]
    width = high - low
    share = np.clip(np.minimum(x, high) - low, 0, None) / np.where(width > 0, width, 1)
    after = np.cumsum(counts).astype(np.float64)
    return after[cell] - counts[cell] * (1 - np.where(width > 0, share, x > low))


def linear_counts(
    histogram: BitHistogram, edges: Float[np.ndarray, " edges"], moments: LogMoments
) -> Float[np.ndarray, " bins"]:
    """Counts between the edges, which run from 0 to max|w|."""
    if histogram.lossless:
        index = np.searchsorted(edges, histogram.values(), side="right") - 1
        return np.bincount(np.minimum(index, len(edges) - 2), histogram.counts, minlength=len(edges) - 1)
    lower, upper = (np.clip(edge, moments.min, moments.max) for edge in histogram.edges())
    below = counts_below(edges, lower, upper, histogram.counts)
    below[-1] = histogram.n
    return np.diff(below)


@dataclass(frozen=True, slots=True, eq=False)
class _Projected:
    """The best multiple of f = exp(slope · l − l² / 2σ²), l = ln x − `origin`, at every point p = (slope, ln σ).

    f is a lognormal density up to a factor, written so that σ → ∞ is a power law. `log_x` holds l, not ln x;
    `heights` have maximum 1, and `unit` is what 1 stands for.
    """

    origin: float
    log_x: Float[np.ndarray, " n"]
    heights: Float[np.ndarray, " n"]
    unit: float

    @staticmethod
    def through(log_x: np.ndarray, heights: np.ndarray) -> _Projected:
        """For those heights at those ln x, with the origin at their centre of mass."""
        origin = float(log_x @ heights / heights.sum())
        unit = float(heights.max())
        return _Projected(origin, log_x - origin, heights / unit, unit)

    def point(self, mu: float, sigma: float) -> tuple[float, float]:
        """(slope, ln σ) of LN(mu, sigma)."""
        return (mu - self.origin) / sigma**2 - 1, math.log(sigma)

    def shape(self, p: np.ndarray) -> tuple[Float[np.ndarray, " n"], float]:
        """f scaled to a maximum of 1 over the bins, and the logarithm of what it was divided by."""
        exponent = p[0] * self.log_x - 0.5 * self.log_x**2 * math.exp(-2 * _bounded(p[1]))
        top = float(exponent.max())
        return np.exp(exponent - top), top

    def residual(self, p: np.ndarray) -> Float[np.ndarray, " n"]:
        """heights − (best multiple of f)."""
        f, _ = self.shape(p)
        return self.heights - f * (f @ self.heights / (f @ f))

    def jacobian(self, p: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """d residual / dp, the multiple moving with p: −(a df + f da), a = f·y / f·f, da = (df·y − 2a f·df) / f·f."""
        f, _ = self.shape(p)
        df = f[:, None] * np.stack([self.log_x, self.log_x**2 * math.exp(-2 * _bounded(p[1]))], axis=1)
        norm = f @ f
        a = f @ self.heights / norm
        da = (self.heights @ df - 2 * a * (f @ df)) / norm
        return -(a * df + f[:, None] * da)

    def lognormal(self, p: np.ndarray) -> tuple[float, float, float]:
        """(amplitude, mu, sigma) of the curve at p; an amplitude past float64 is inf."""
        f, top = self.shape(p)
        sigma = math.exp(_bounded(p[1]))
        offset = sigma**2 * (p[0] + 1)
        log_amplitude = (
            math.log(self.unit * float(f @ self.heights / (f @ f)))
            + (self.origin + offset**2 / (2 * sigma**2) - top)
            + math.log(sigma * math.sqrt(2 * math.pi))
        )
        amplitude = math.exp(log_amplitude) if log_amplitude < LN_LARGEST else math.inf
        return amplitude, float(self.origin + offset), sigma


def _bounded(ln_sigma: float) -> float:
    return min(max(float(ln_sigma), -LN_SIGMA_LIMIT), LN_SIGMA_LIMIT)


def _least_squares(curve: _Projected, moments: LogMoments) -> tuple[np.ndarray, bool]:
    """The best of the local optima, and whether it is one: converged, and both of its parameters determined."""
    from scipy.optimize import least_squares

    starts = _scan(curve)
    if moments.m2 > 0:
        starts.append(curve.point(moments.mean, moments.sigma))
    found = [
        least_squares(
            curve.residual, start, jac=curve.jacobian, method="lm",  # pyright: ignore[reportArgumentType]
            x_scale="jac", ftol=1e-14, xtol=1e-14, gtol=1e-14, max_nfev=500,
        )
        for start in starts
    ]  # fmt: skip
    best = min(found, key=lambda r: r.cost)
    curve_size = np.linalg.norm(curve.heights - curve.residual(best.x))
    weakest = np.linalg.svd(curve.jacobian(best.x), compute_uv=False)[-1]
    return best.x, bool(best.status > 0 and weakest > FLAT * curve_size)


def _scan(curve: _Projected) -> list[tuple[float, float]]:
    """Starting points: at each of SIGMAS the best slope, and of those the local minima along σ."""
    tallest = curve.log_x[np.argsort(-curve.heights, kind="stable")[:TALLEST]]
    peaks = np.concatenate([np.linspace(curve.log_x[0], curve.log_x[-1], PEAKS), tallest])
    slopes, explained = [], []
    for sigma in SIGMAS:
        slope = np.concatenate([peaks / sigma**2, curve.log_x[0] / sigma**2 - SLOPES])
        exponent = slope[:, None] * curve.log_x - 0.5 * (curve.log_x / sigma) ** 2
        f = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        gain = (f @ curve.heights) ** 2 / np.einsum("ij,ij->i", f, f)
        slopes.append(float(slope[np.argmax(gain)]))
        explained.append(float(gain.max()))
    padded = np.concatenate([[-math.inf], explained, [-math.inf]])
    tops = np.flatnonzero((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:]))
    return [(slopes[i], math.log(SIGMAS[i])) for i in tops]
