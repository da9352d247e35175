"""Goodness of fit of any family: sup-CDF, Anderson–Darling, Cramér–von Mises, Wasserstein-1, probability plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from teleojax.diagnose._distances import absolute_area, lognormal_distances, squared_correlation
from teleojax.families import Family
from teleojax.stats import BitHistogram

SMALL_STEP = 1e-4  # of a logarithm of u: below it the series is as exact as the closed form
LEAST_COMPLEMENT = 0.01  # of probability: above it 1 − u has two digits fewer than u
TOLERANCE = 1e-6  # of a Wasserstein distance, in ln x
FEW_NODES = 256  # up to so many nodes, every stretch between two of them is integrated with care
WIDE_GAP = 0.05  # of ln x: such a stretch is, too
ROUNDS = 40  # halvings
TAIL_STEPS = 2.0 ** np.arange(-4, 11)  # of ln x from the last value outwards, until less than TAIL_MASS is left
TAIL_MASS = 1e-13
LOG_LEAST, LOG_MOST = math.log(5e-324), math.log(np.finfo(np.float64).max)
PLOT_GAP, PLOT_RISE = 0.02, 0.1  # standard deviations of ln x, logits: quantiles are read off nodes that lie closer


@dataclass(frozen=True, slots=True)
class Goodness:
    """Distances between the distribution F_n of the stored values and that of a family, F.

    ks: sup|F_n − F|.
    ad: Anderson–Darling's A² = n ∫ (F_n − F)² / (F(1 − F)) dF. About 1 under the truth, it grows as n otherwise; inf
        where a value lies where the family has no probability.
    cvm: Cramér–von Mises' W² = n ∫ (F_n − F)² dF. About 1/6 under the truth, it grows as n otherwise.
    w1_log: Wasserstein-1 distance in units of ln x, ∫|F_n − F| d ln x.
    r2: squared correlation of ln x with the family's ln quantiles at the mid-ranks; NaN where all values are equal.
    n: number of values compared.

    NaN throughout where n = 0 or a parameter is missing or not finite.
    """

    ks: float
    ad: float
    cvm: float
    w1_log: float
    r2: float
    n: int


def goodness_of_fit(histogram: BitHistogram, family: Family, params: Mapping[str, Any]) -> Goodness:
    """How far a family with these parameters lies from the values; a tail family from those ≥ xmin.

    Of a lossless histogram ks, ad and cvm are exact, steps and ties included; w1_log and r2 are right to 1e-6. Where a
    cell stands for a range, F_n is known exactly at its edges, so ks is the largest gap there. Between them F_n runs
    straight in F for ad and cvm; for w1_log F_n − F runs straight in ln x. A cell is of the tail when its middle is.

    Reference: Anderson & Darling (1954), A test of goodness of fit, J. Am. Stat. Assoc. 49; Stephens (1974), EDF
    statistics for goodness of fit and some comparisons, ibid. 69.
    """
    steps = _steps(histogram, float(params["xmin"]) if family.tail and params else 0.0)
    if not _comparable(steps, params):
        return Goodness(math.nan, math.nan, math.nan, math.nan, math.nan, steps.n)
    with np.errstate(all="ignore"):  # limits are taken by their values: ln 0 = −inf
        law = _tabulate(steps, family, params)
        ad, cvm = _anderson_darling(steps, law), _cramer_von_mises(steps, law)
        if family.name == "lognormal":
            exact = lognormal_distances(histogram, params["mu"], params["sigma"])
            return Goodness(exact.ks, ad, cvm, exact.w1_log, exact.r2, steps.n)
        narrow, gaps = _stretches(steps, law)
        quantiles, unread = _read_quantiles(steps, law)
        # families that search for their quantiles are asked once
        asked = law.log_ppf(np.concatenate([gaps.level[gaps.crossed], steps.rank[unread]]))
        crossings, quantiles[unread] = np.split(asked, [np.count_nonzero(gaps.crossed)])
        r2 = squared_correlation(quantiles, np.log(steps.values), steps.weight)
        return Goodness(_sup(steps, law.u), ad, cvm, narrow + _area_of_gaps(law.cdf, gaps, crossings), r2, steps.n)


def sup_distance(histogram: BitHistogram, family: Family, params: Mapping[str, Any]) -> float:
    """`goodness_of_fit(…).ks` alone, at a fraction of the time."""
    steps = _steps(histogram, float(params["xmin"]) if family.tail and params else 0.0)
    if not _comparable(steps, params):
        return math.nan
    with np.errstate(all="ignore"):
        return _sup(steps, np.exp(family.logcdf(steps.x, params)))


def _comparable(steps: _Steps, params: Mapping[str, Any]) -> bool:
    return steps.n > 0 and len(params) > 0 and all(np.isfinite(value).all() for value in params.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """F_n by the x where it bends or jumps: straight in some variable from `start` to `end` between two neighbours, 0
    before the first, 1 after the last. The probability plot has `values` by their `weight` at mid-ranks `rank`.
    """

    x: Float[np.ndarray, " m"]
    start: Float[np.ndarray, " i"]
    end: Float[np.ndarray, " i"]
    values: Float[np.ndarray, " k"]
    weight: Float[np.ndarray, " k"]
    rank: Float[np.ndarray, " k"]
    n: int

    @property
    def below(self) -> Float[np.ndarray, " m"]:
        """F_n just below each x."""
        return np.concatenate([[0.0], self.end])

    @property
    def above(self) -> Float[np.ndarray, " m"]:
        """F_n at, and just above, each x."""
        return np.concatenate([self.start, [1.0]])


def _steps(histogram: BitHistogram, xmin: float) -> _Steps:
    values, counts = histogram.values(), histogram.counts
    inside = slice(int(np.searchsorted(values, xmin)), None)
    values, counts = values[inside], counts[inside]
    n = int(counts.sum())
    after = np.cumsum(counts) / max(n, 1)
    before = np.concatenate([[0.0], after[:-1]])[: len(after)]
    weight, rank = counts / max(n, 1), (before + after) / 2
    if histogram.lossless or n == 0:
        return _Steps(values, after[:-1], after[:-1], values, weight, rank, n)
    low, high = (edge[inside] for edge in histogram.edges())
    low = np.maximum(low, max(xmin, histogram.smallest))  # the first cell of all begins at zero
    high = np.minimum(high, np.finfo(np.float64).max)
    x = np.stack([low, high], axis=1).reshape(-1)
    start, end = (np.stack([a, after], axis=1).reshape(-1)[:-1] for a in (before, after))
    distinct = np.concatenate([x[1:] > x[:-1], [True]])  # a cell that touches the next one shares its edge
    return _Steps(x[distinct], start[distinct[:-1]], end[distinct[:-1]], values, weight, rank, n)


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """The family at the nodes: y = ln x, ln F, ln(1 − F), u = F; and as functions of a y ≥ `least`, a probability."""

    y: Float[np.ndarray, " m"]
    log_u: Float[np.ndarray, " m"]
    log_v: Float[np.ndarray, " m"]
    u: Float[np.ndarray, " m"]
    least: float
    cdf: Callable[[np.ndarray], np.ndarray]
    log_ppf: Callable[[np.ndarray], np.ndarray]


def _tabulate(steps: _Steps, family: Family, params: Mapping[str, Any]) -> _Law:
    """ln F is asked of the family where F_n < ½, ln(1 − F) above; the other follows, and is asked where digits fail."""
    half = int(np.searchsorted(steps.above, 0.5))
    known = [family.logcdf(steps.x[:half], params), family.logsf(steps.x[half:], params)]
    other = [np.log1p(-np.exp(each)) for each in known]
    for each, log_p, x, function in zip(
        known, other, (steps.x[:half], steps.x[half:]), (family.logsf, family.logcdf), strict=True
    ):
        short = each > -LEAST_COMPLEMENT
        if short.any():
            log_p[short] = function(x[short], params)
    log_u, log_v = np.concatenate([known[0], other[1]]), np.concatenate([other[0], known[1]])
    return _Law(
        y=np.log(steps.x),
        log_u=log_u,
        log_v=log_v,
        u=np.exp(log_u),
        least=math.log(params["xmin"]) if family.tail else LOG_LEAST,
        cdf=lambda y: np.exp(family.logcdf(np.exp(y), params)),
        log_ppf=lambda q: np.log(family.ppf(q, params)),
    )


def _sup(steps: _Steps, u: np.ndarray) -> float:
    return float(max(np.abs(u - steps.below).max(), np.abs(u - steps.above).max()))


def _anderson_darling(steps: _Steps, law: _Law) -> float:
    """n ∫ D²/(u(1 − u)) du = n ∫ D²/u du + n ∫ D²/(1 − u) du, D = u − F_n straight in u between nodes."""
    first, last = law.u[:-1] - steps.start, law.u[1:] - steps.end
    inner = _inverse_area(_rise(law.log_u), last, first) + _inverse_area(_rise(-law.log_v), first, last)
    tails = -law.log_v[0] - law.u[0] - law.log_u[-1] - np.exp(law.log_v[-1])
    return float(steps.n * (inner.sum() + tails))


def _rise(log_u: np.ndarray) -> Float[np.ndarray, " i"]:
    return np.where(log_u[1:] > log_u[:-1], log_u[1:] - log_u[:-1], 0.0)


def _inverse_area(rise: np.ndarray, near: np.ndarray, far: np.ndarray) -> Float[np.ndarray, " i"]:
    """∫_a^b D²/u du for D straight from `far` at a to `near` at b, rise = ln(b/a) ≥ 0: no a or b enters by itself.

    With q = 1 − a/b: near²·rise − 2·near·(near − far)·(rise/q − 1) + (near − far)²·(rise/q − 1 − q/2)/q.
    """
    q = -np.expm1(-rise)
    q, short = np.where(q > 0, q, 1.0), rise < SMALL_STEP
    once = np.where(short, rise / 2 + rise**2 / 12, rise / q - 1)
    twice = np.where(short, rise / 3 + rise**2 / 12, (rise / q - 1 - q / 2) / q)
    difference = near - far
    area = near * near * rise - 2 * near * difference * once + difference**2 * twice
    from_zero = np.where(far == 0, near * near / 2, np.inf)
    return np.where(np.isinf(rise), from_zero, area)


def _cramer_von_mises(steps: _Steps, law: _Law) -> float:
    """n ∫ D² du, D = u − F_n straight in u between nodes."""
    first, last = law.u[:-1] - steps.start, law.u[1:] - steps.end
    inner = np.diff(law.u) @ (first * first + first * last + last * last)
    return float(steps.n / 3 * (inner + law.u[0] ** 3 + np.exp(3 * law.log_v[-1])))


@dataclass(frozen=True, slots=True, eq=False)
class _Gaps:
    """Intervals (a, b) of y, rising, on which F_n = `level`; F crosses it where `crossed`. `cuts` are further y."""

    a: Float[np.ndarray, " g"]
    b: Float[np.ndarray, " g"]
    level: Float[np.ndarray, " g"]
    crossed: Bool[np.ndarray, " g"]
    cuts: Float[np.ndarray, " c"]


def _stretches(steps: _Steps, law: _Law) -> tuple[float, _Gaps]:
    """∫|F_n − F| dy over narrow stretches, by trapezoids that know crossings and bends; wide ones and both tails."""
    first, last, width = law.u[:-1] - steps.start, law.u[1:] - steps.end, np.diff(law.y)
    area = absolute_area(first, last, width)
    flat = (steps.start == steps.end) & (width > 0)
    if len(law.y) <= FEW_NODES:
        careful = flat
    else:
        bend, uncertain = _curvature(np.diff(law.u) / np.where(width > 0, width, 1), width)
        area += np.where(flat & (first * last > 0), np.sign(first) * bend, 0.0)
        careful = flat & (_all_but_the_least(np.where(flat, uncertain, 0.0)) | (width > WIDE_GAP))
    outwards = np.stack([law.y[0] - TAIL_STEPS, law.y[-1] + TAIL_STEPS]).clip(law.least, LOG_MOST)
    beyond = np.abs(law.cdf(outwards) - [[0.0], [1.0]])
    low, high = (tail[: 1 + np.searchsorted(-left, -TAIL_MASS)] for tail, left in zip(outwards, beyond, strict=True))
    gaps = _Gaps(
        a=np.concatenate([low[-1:], law.y[:-1][careful], law.y[-1:]]),
        b=np.concatenate([law.y[:1], law.y[1:][careful], high[-1:]]),
        level=np.concatenate([[0.0], steps.start[careful], [1.0]]),
        crossed=np.concatenate([[False], (first * last < 0)[careful], [False]]),
        cuts=np.concatenate([low, high]),
    )
    return float(area[~careful].sum()), gaps


def _curvature(slope: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a bent F adds to its trapezoids, −h²(f(b) − f(a))/12, and how far that may be off.

    f at a node comes from the slopes either side, so an interval that its neighbours say nothing about stands out.
    """
    before, after = width[:-1], width[1:]
    both = before + after
    inner = (after * slope[:-1] + before * slope[1:]) / np.where(both > 0, both, 1)
    at_a, at_b = np.concatenate([slope[:1], inner]), np.concatenate([inner, slope[-1:]])
    return -(width**2) * (at_b - at_a) / 12, width**2 * (np.abs(at_a - slope) + np.abs(at_b - slope)) / 12


def _all_but_the_least(errors: np.ndarray) -> np.ndarray:
    """True but for the smallest errors that together stay below the tolerance."""
    order = np.argsort(errors)
    chosen = np.empty(len(errors), bool)
    chosen[order] = np.cumsum(errors[order]) > TOLERANCE
    return chosen


def _area_of_gaps(cdf: Callable[[np.ndarray], np.ndarray], gaps: _Gaps, crossings: np.ndarray) -> float:
    """Σ ∫|level − F| dy over the gaps: Simpson's rule between cuts, halved where halving changes it."""
    cuts = np.unique(np.concatenate([gaps.a, gaps.b, gaps.cuts, crossings]))
    middle = (cuts[:-1] + cuts[1:]) / 2
    gap = np.maximum(np.searchsorted(gaps.a, middle) - 1, 0)
    kept = (gaps.a[gap] < middle) & (middle < gaps.b[gap])
    c = gaps.level[gap[kept]]
    if not len(c):
        return 0.0
    f = cdf(np.concatenate([cuts, middle[kept]]))
    y = np.stack([cuts[:-1][kept], middle[kept], cuts[1:][kept]])  # left, middle, right
    d = np.abs(np.stack([f[: len(cuts) - 1][kept], f[len(cuts) :], f[1 : len(cuts)][kept]]) - c)
    coarse = _simpson(y[2] - y[0], d)
    allowed, total = 15 * TOLERANCE / len(c), 0.0
    for _ in range(ROUNDS):
        quarters = (y[:2] + y[1:]) / 2
        d_quarters = np.abs(cdf(quarters.reshape(-1)).reshape(quarters.shape) - c)
        halves_y = np.stack([y[:2], quarters, y[1:]])  # by point, then by half
        halves_d = np.stack([d[:2], d_quarters, d[1:]])
        fine = _simpson(halves_y[2] - halves_y[0], halves_d)
        error = fine.sum(0) - coarse
        off = np.abs(error) > allowed
        total += float(np.sum((fine.sum(0) + error / 15)[~off]))
        if not off.any():
            return total
        y, d = (each[:, :, off].reshape(3, -1) for each in (halves_y, halves_d))
        c, coarse = np.tile(c[off], 2), fine[:, off].reshape(-1)
    return total + float(coarse.sum())


def _simpson(width: np.ndarray, d: np.ndarray) -> np.ndarray:
    return width / 6 * (d[0] + 4 * d[1] + d[2])


def _read_quantiles(steps: _Steps, law: _Law) -> tuple[Float[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """ln quantiles at the mid-ranks, straight in the logit of u between two nodes that lie close; and where none do."""
    logit, wanted = law.log_u - law.log_v, np.log(steps.rank) - np.log1p(-steps.rank)
    after = np.clip(np.searchsorted(logit, wanted), min(1, len(logit) - 1), len(logit) - 1)
    before = np.maximum(after - 1, 0)
    y = np.log(steps.values)
    spread = math.sqrt(steps.weight @ (y - steps.weight @ y) ** 2)
    rise, gap = logit[after] - logit[before], law.y[after] - law.y[before]
    read = (logit[before] <= wanted) & (wanted <= logit[after]) & (gap < PLOT_GAP * spread)
    read &= (rise < PLOT_RISE) & (rise > 0)
    return law.y[before] + gap * (wanted - logit[before]) / np.where(read, rise, 1), ~read
