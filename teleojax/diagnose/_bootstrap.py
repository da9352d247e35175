"""Calibrated goodness of fit: the parametric bootstrap of the Kolmogorov–Smirnov distance, all replicates at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from teleojax.diagnose._goodness import sup_distance
from teleojax.families import Family
from teleojax.fits import FamilyFit, maximum_likelihood
from teleojax.stats import BitHistogram, LogMoments, TensorStats, careful_moments
from teleojax.stats._bithist import EXACT_SIZE, float_dtype, pattern_dtype

LARGE = 100_000  # values from which a p-value says little: departures of no consequence are significant
OUTSIDE = 1e-3  # values expected beyond the cells of a replicate


@dataclass(frozen=True, slots=True)
class BootstrapTest:
    """`p_value` of the distance `ks` under the fitted family itself: (1 + #{ks* ≥ ks}) / (replicates + 1), where every
    replicate was drawn from the fit and fitted again. `large` warns that n is so large that a small p says only that no
    law of few parameters is exact; the size of a departure is ks and delta_nats.
    """

    ks: float
    p_value: float
    replicates: int
    large: bool


def bootstrap_test(
    stats: TensorStats, family: Family, fit: FamilyFit, *, replicates: int = 99, seed: int = 0
) -> BootstrapTest:
    """Test whether a family describes the values, parameters estimated from them (Stute et al., 1993).

    Replicates are stored as the tensor is: drawn value by value and rounded to its type up to 8,192 of them, above that
    as multinomial counts of the cells of its histogram. NaN where the family has no fit. A tail family is tested on the
    values from xmin up, xmin held.
    """
    histogram = stats.histogram
    if histogram is None or not fit.maximised:
        return BootstrapTest(math.nan, math.nan, replicates, stats.moments.n > LARGE)
    if family.tail:
        histogram = _from_xmin(histogram, float(fit.params["xmin"]))
    n = histogram.n
    observed = sup_distance(histogram, family, fit.params)
    rng = np.random.default_rng(seed)
    drawn = [simulate(family, fit, histogram, n, rng) for _ in range(replicates)]
    xmin = float(fit.params["xmin"]) if family.tail else None
    again = maximum_likelihood([family], drawn, xmin=xmin)
    distances = [
        sup_distance(d.histogram, family, found[family.name].params)
        for d, found in zip(drawn, again, strict=True)
        if d.histogram is not None and found[family.name].maximised
    ]
    beyond = (
        sum(ks >= observed for ks in distances) + replicates - len(distances)
    )  # one without a maximum counts as far
    return BootstrapTest(observed, (1 + beyond) / (replicates + 1), replicates, n > LARGE)


@np.errstate(over="ignore")  # a value past the type's range is stored as inf, and not counted
def simulate(family: Family, fit: FamilyFit, like: BitHistogram, n: int, rng: np.random.Generator) -> TensorStats:
    """Statistics of n values of the fitted family, stored in the type and cells of `like`."""
    if like.lossless and n <= EXACT_SIZE:
        x = family.sample(rng, fit.params, n)
        if like.dtype == "int8":
            keys = np.clip(np.round(x / like.scale), 0, 127).astype(np.int64)
            histogram = BitHistogram.from_keys("int8", 0, keys[keys > 0], scale=like.scale)
            return TensorStats(_moments(histogram, int((keys == 0).sum())), histogram)
        stored = x.astype(float_dtype(like.dtype))
        values = stored[np.isfinite(stored) & (stored != 0)]
        keys = values.view(pattern_dtype(like.dtype)).astype(np.int64)
        return TensorStats(careful_moments(stored), BitHistogram.from_keys(like.dtype, 0, keys))
    low, high = family.ppf(np.asarray([OUTSIDE / n, 1 - OUTSIDE / n]), fit.params)
    first, last = _keys_of(like, np.asarray([max(low, like.smallest), high]))
    keys = np.arange(max(first, 1) if like.lossless else first, max(last, first + 1) + 1)
    upper = like.edges(keys)[1]
    cumulative = family.cdf(upper[:-1], fit.params)
    share = np.diff(np.concatenate([[0.0], cumulative, [1.0]]))
    counts = rng.multinomial(n, np.maximum(share, 0) / np.maximum(share, 0).sum())
    kept = counts > 0
    histogram = BitHistogram(like.dtype, like.drop, keys[kept], counts[kept], like.scale)
    return TensorStats(_moments(histogram, 0), histogram)


def _keys_of(like: BitHistogram, x: np.ndarray) -> tuple[int, int]:
    """The keys whose cells hold two magnitudes, within the finite ones of the type."""
    if like.dtype == "int8":
        first, last = np.clip(np.round(x / like.scale), 1, 127)
        return int(first), int(last)
    kind = float_dtype(like.dtype)
    with np.errstate(over="ignore"):
        stored = x.astype(kind)
    largest = np.finfo(np.float32).max if like.dtype != "float64" else np.finfo(np.float64).max
    finite = np.where(np.isfinite(stored.astype(np.float64)), stored.astype(np.float64), largest)
    patterns = np.minimum(finite, largest).astype(kind).view(pattern_dtype(like.dtype)).astype(np.int64) >> like.drop
    return int(patterns[0]), int(patterns[1])


def _from_xmin(histogram: BitHistogram, xmin: float) -> BitHistogram:
    """The cells that begin at xmin or above."""
    kept = histogram.edges()[0] >= xmin * (1 - 1e-9)
    return BitHistogram(histogram.dtype, histogram.drop, histogram.keys[kept], histogram.counts[kept], histogram.scale)


def _moments(histogram: BitHistogram, n_zero: int) -> LogMoments:
    """Log-moments of values at the middle of their cells."""
    x, c, n = histogram.values(), histogram.counts.astype(np.float64), histogram.n
    if not n:
        return replace(LogMoments.zero(), n_zero=n_zero)
    y = np.log(x)
    mean = float(y @ c / n)
    d = y - mean
    return LogMoments(
        n, n_zero, 0, 0, mean, float(c @ d**2), float(c @ d**3), float(c @ d**4), float(c @ x), float(c @ x**2),
        float(x[0]), float(x[-1]),
    )  # fmt: skip
