"""Goodness of fit of any family: sup-CDF, Anderson–Darling, Cramér–von Mises, Wasserstein-1, probability plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from teleojax.diagnose._distances import absolute_area, lognormal_distances, squared_correlation
from teleojax.families import Family
from teleojax.stats import BitHistogram

SMALL_STEP = 1e-4  # of a logarithm of u: below it the series is as exact as the closed form
LEAST_COMPLEMENT = 0.01  # of probability: above it 1 − u has two digits fewer than u
TOLERANCE = 1e-6  # of a Wasserstein distance, in ln x
FEW_NODES = 256  # up to so many nodes, every stretch between two of them is integrated with care
WIDE_GAP = 0.05  # of ln x: such a stretch is, too
ROUNDS = 40  # of halving
QUARTERS = np.asarray([[0.25], [0.5], [0.75]])
LEAST_WIDTH, LEAST_RISE = 1e-15, 1e-300  # of ln x, of a logarithm of u: in place of 0, to divide by
# places in ln x from the last value outwards, between which a tail is integrated
TAIL_STEPS = np.concatenate([np.arange(0, 1, 0.125), np.arange(1, 4, 0.25), 2.0 ** np.arange(2, 10.1, 0.25)])
TAIL_MASS = 1e-13  # steps are taken until less is left
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
    steps = _steps_of(histogram, float(params["xmin"]) if family.tail and params else 0.0)
    if not _comparable(steps, params):
        return Goodness(math.nan, math.nan, math.nan, math.nan, math.nan, steps.n)
    with np.errstate(all="ignore"):  # limits are taken by their values: ln 0 = −inf
        law = _tabulate(steps, family, params)
        ad, cvm = _anderson_darling(steps, law), _cramer_von_mises(steps, law)
        if family.name == "lognormal":
            exact = lognormal_distances(histogram, params["mu"], params["sigma"])
            return Goodness(exact.ks, ad, cvm, exact.w1_log, exact.r2, steps.n)
        narrow, gaps, crossed = _narrow(steps, law)
        quantiles, unread = _read_quantiles(steps, law)
        # families that search for their quantiles are asked once
        cut = gaps[crossed]
        asked = law.log_ppf(np.concatenate([steps.start[cut], steps.rank[unread]]))
        crossings, quantiles[unread] = asked[: len(cut)].clip(steps.y[cut], steps.y[cut + 1]), asked[len(cut) :]
        w1 = narrow + _area(law.cdf, _gaps(steps, law, gaps, crossed, crossings))
        ks = _sup(law.u, law.first, law.last)
        r2 = squared_correlation(quantiles, steps.log_values, steps.weight)
        return Goodness(ks, ad, cvm, w1, r2, steps.n)


def sup_distance(histogram: BitHistogram, family: Family, params: Mapping[str, Any]) -> float:
    """`goodness_of_fit(…).ks` alone, at a fraction of the time."""
    steps = _steps_of(histogram, float(params["xmin"]) if family.tail and params else 0.0)
    if not _comparable(steps, params):
        return math.nan
    with np.errstate(all="ignore"):
        u = np.exp(family.logcdf(steps.x, params))
    return _sup(u, *_deviations(steps, u))


def _comparable(steps: _Steps, params: Mapping[str, Any]) -> bool:
    return steps.n > 0 and len(params) > 0 and all(np.isfinite(value).all() for value in params.values())


@dataclass(frozen=True, eq=False)
class _Steps:
    """F_n by the x where it bends or jumps: straight in some variable from `start` to `end` between two neighbours, 0
    before the first, 1 after the last. The probability plot has `values` by their `weight` at mid-ranks `rank`.

    What else all families need is computed once: y = ln x and its steps, where F_n is level between neighbours, and of
    the plot ln values, their standard deviation, and the logits of the ranks.
    """

    x: Float[np.ndarray, " m"]
    start: Float[np.ndarray, " i"]
    end: Float[np.ndarray, " i"]
    values: Float[np.ndarray, " k"]
    weight: Float[np.ndarray, " k"]
    rank: Float[np.ndarray, " k"]
    n: int

    @cached_property
    def y(self) -> Float[np.ndarray, " m"]:
        return np.log(self.x)

    @cached_property
    def width(self) -> Float[np.ndarray, " i"]:
        return np.diff(self.y)

    @cached_property
    def divisor(self) -> Float[np.ndarray, " i"]:
        """The widths, none of them 0."""
        return np.maximum(self.width, LEAST_WIDTH)

    @cached_property
    def nearness(self) -> Float[np.ndarray, " j"]:
        """What the slope before an inner node counts at the node: the more, the narrower that interval is."""
        return self.divisor[1:] / (self.divisor[:-1] + self.divisor[1:])

    @cached_property
    def level(self) -> Bool[np.ndarray, " i"]:
        return self.start == self.end

    @cached_property
    def log_values(self) -> Float[np.ndarray, " k"]:
        return np.log(self.values)

    @cached_property
    def spread(self) -> float:
        return math.sqrt(self.weight @ (self.log_values - self.weight @ self.log_values) ** 2)

    @cached_property
    def logits(self) -> Float[np.ndarray, " k"]:
        return np.log(self.rank) - np.log1p(-self.rank)


_latest: tuple[BitHistogram, dict[float, _Steps]] | None = None


def _steps_of(histogram: BitHistogram, xmin: float) -> _Steps:
    """The steps of the values ≥ xmin; those of the latest histogram are kept, as families are compared in turn."""
    global _latest
    latest = _latest
    kept = latest[1] if latest is not None and latest[0] is histogram else {}
    steps = kept.get(xmin)
    if steps is None:
        steps = _steps(histogram, xmin)
        _latest = histogram, {**kept, xmin: steps}
    return steps


def _steps(histogram: BitHistogram, xmin: float) -> _Steps:
    if histogram.lossless:
        low = high = values = histogram.values()
    else:
        low, high = histogram.edges()
        values = low + (high - low) / 2  # as the histogram's own
    inside = slice(int(np.searchsorted(values, xmin)), None)
    values, counts = values[inside], histogram.counts[inside]
    after = np.cumsum(counts)
    n = int(after[-1]) if len(after) else 0
    after = after / max(n, 1)
    before = np.concatenate([[0.0], after[:-1]])[: len(after)]
    weight, rank = counts / max(n, 1), (before + after) / 2
    if histogram.lossless or n == 0:
        return _Steps(values, after[:-1], after[:-1], values, weight, rank, n)
    low = np.maximum(low[inside], max(xmin, histogram.smallest))  # the first cell of all begins at zero
    high = np.minimum(high[inside], np.finfo(np.float64).max)
    x = np.stack([low, high], axis=1).reshape(-1)
    start, end = (np.stack([a, after], axis=1).reshape(-1) for a in (before, after))
    distinct = np.flatnonzero(x[1:] > x[:-1])  # a cell that touches the next one shares its edge
    return _Steps(np.append(x[distinct], x[-1]), start[distinct], end[distinct], values, weight, rank, n)


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """The family at the nodes: ln F, ln(1 − F), u = F, and u − F_n just past each node but the last (`first`)
    and just before each but the first (`last`). As functions: F of a y ≥ `least`, the ln quantile of a probability.
    """

    log_u: Float[np.ndarray, " m"]
    log_v: Float[np.ndarray, " m"]
    u: Float[np.ndarray, " m"]
    first: Float[np.ndarray, " i"]
    last: Float[np.ndarray, " i"]
    least: float
    cdf: Callable[[np.ndarray], np.ndarray]
    log_ppf: Callable[[np.ndarray], np.ndarray]


def _tabulate(steps: _Steps, family: Family, params: Mapping[str, Any]) -> _Law:
    """ln F is asked of the family where F_n < ½, ln(1 − F) above; the other follows, and is asked where digits fail."""
    half = int(np.searchsorted(steps.start, 0.5))
    near = np.concatenate([family.logcdf(steps.x[:half], params), family.logsf(steps.x[half:], params)])
    rest = np.log1p(-np.exp(near))
    short = near > -LEAST_COMPLEMENT
    if short.any():
        for part, function in ((slice(half), family.logsf), (slice(half, None), family.logcdf)):
            x = steps.x[part][short[part]]
            rest[part][short[part]] = function(x, params)
    log_u = np.concatenate([near[:half], rest[half:]])
    u = np.exp(log_u)
    first, last = _deviations(steps, u)
    return _Law(
        log_u=log_u,
        log_v=np.concatenate([rest[:half], near[half:]]),
        u=u,
        first=first,
        last=last,
        least=math.log(params["xmin"]) if family.tail else LOG_LEAST,
        cdf=lambda y: np.exp(family.logcdf(np.exp(y), params)),
        log_ppf=lambda q: np.log(family.ppf(q, params)),
    )


def _deviations(steps: _Steps, u: np.ndarray) -> tuple[Float[np.ndarray, " i"], Float[np.ndarray, " i"]]:
    """u − F_n just past each node but the last, just before each but the first."""
    return u[:-1] - steps.start, u[1:] - steps.end


def _sup(u: np.ndarray, first: np.ndarray, last: np.ndarray) -> float:
    inner = max(np.abs(first).max(), np.abs(last).max()) if len(first) else 0.0
    return float(max(u[0], inner, 1 - u[-1]))


def _anderson_darling(steps: _Steps, law: _Law) -> float:
    """n ∫ D²/(u(1 − u)) du = n ∫ D²/u du + n ∫ D²/(1 − u) du, D = u − F_n straight in u between nodes."""
    rises = law.log_u[1:] - law.log_u[:-1], law.log_v[:-1] - law.log_v[1:]
    near, far = np.concatenate([law.last, law.first]), np.concatenate([law.first, law.last])
    inner = _inverse_area(np.fmax(np.concatenate(rises), LEAST_RISE), near, far)  # −inf less −inf is none
    tails = -law.log_v[0] - law.u[0] - law.log_u[-1] - np.exp(law.log_v[-1])
    return float(steps.n * (inner.sum() + tails))


def _inverse_area(rise: np.ndarray, near: np.ndarray, far: np.ndarray) -> Float[np.ndarray, " i"]:
    """∫_a^b D²/u du for D straight from `far` at a to `near` at b, rise = ln(b/a) > 0: no a or b enters by itself.

    With q = 1 − a/b: near²·rise − 2·near·(near − far)·(rise/q − 1) + (near − far)²·(rise/q − 1 − q/2)/q.
    """
    q = -np.expm1(-rise)
    once = np.where(rise < SMALL_STEP, rise * (1 / 2 + rise / 12), rise / q - 1)
    twice = (once - q / 2) / q  # right to 1e-16, not of itself
    difference = near - far
    area = near * (near * rise - 2 * difference * once) + difference * difference * twice
    infinite = np.isinf(rise)
    if infinite.any():
        area[infinite] = np.where(far == 0, near * near / 2, np.inf)[infinite]
    return area


def _cramer_von_mises(steps: _Steps, law: _Law) -> float:
    """n ∫ D² du, D = u − F_n straight in u between nodes."""
    inner = (law.u[1:] - law.u[:-1]) @ (law.first * (law.first + law.last) + law.last * law.last)
    return float(steps.n / 3 * (inner + law.u[0] ** 3 + np.exp(3 * law.log_v[-1])))


def _narrow(steps: _Steps, law: _Law) -> tuple[float, Int[np.ndarray, " g"], Bool[np.ndarray, " g"]]:
    """∫|F_n − F| dy over narrow stretches, by trapezoids that know crossings and bends.

    And the places of those that want more care, each on which F_n is level, and whether F crosses it there.
    """
    width, area = steps.width, steps.width * (law.first + law.last) / 2
    crossed = law.first * law.last < 0
    if len(law.u) <= FEW_NODES:
        gaps = np.flatnonzero(steps.level)
    else:
        bend, uncertain = _curvature(steps, law.u)
        area += bend * steps.level
        uncertain = np.where(crossed, np.abs(bend), 0) + uncertain
        wide = _all_but_the_least(uncertain * steps.level) | (width > WIDE_GAP)
        gaps = np.flatnonzero(wide & steps.level)
    area, places = np.abs(area), np.flatnonzero(crossed)
    area[places] = absolute_area(law.first[places], law.last[places], width[places])
    area[gaps] = 0
    return float(area.sum()), gaps, crossed[gaps]


def _curvature(steps: _Steps, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a bent F adds to the trapezoids of F − F_n, −h²(f(b) − f(a))/12, and how far that may be off.

    f at a node comes from the slopes either side. Where F is smooth their mean over an interval is the slope inside, so
    an interval that its neighbours say nothing about stands out.
    """
    slope = (u[1:] - u[:-1]) / steps.divisor
    inner = slope[1:] + steps.nearness * (slope[:-1] - slope[1:])
    at_a, at_b = np.concatenate([slope[:1], inner]), np.concatenate([inner, slope[-1:]])
    share = steps.width**2 / 12
    return share * (at_a - at_b), 3 * share * np.abs(at_a + at_b - 2 * slope)


def _all_but_the_least(errors: np.ndarray) -> np.ndarray:
    """True but for the smallest errors that together stay below the tolerance."""
    if errors.sum() <= TOLERANCE:
        return np.zeros(len(errors), bool)
    rising = np.sort(errors)
    return errors >= rising[np.searchsorted(np.cumsum(rising[:-1]), TOLERANCE, side="right")]


@dataclass(frozen=True, slots=True, eq=False)
class _Gaps:
    """Intervals of y, `width` from `a` on, in which F_n = `level` and F does not cross it; |F − F_n| at either end."""

    a: Float[np.ndarray, " g"]
    width: Float[np.ndarray, " g"]
    at_a: Float[np.ndarray, " g"]
    at_b: Float[np.ndarray, " g"]
    level: Float[np.ndarray, " g"]


def _gaps(steps: _Steps, law: _Law, gaps: np.ndarray, crossed: np.ndarray, crossings: np.ndarray) -> _Gaps:
    """Both tails, from the first and the last node outwards, and the gaps, cut in two where F crosses."""
    outwards = np.stack([steps.y[0] - TAIL_STEPS, steps.y[-1] + TAIL_STEPS]).clip(law.least, LOG_MOST)
    outwards[:, 0] = steps.y[[0, -1]]
    beyond = law.cdf(outwards)
    beyond[1] = 1 - beyond[1]
    low, high = np.count_nonzero(beyond[:, :-1] > TAIL_MASS, axis=1)  # steps that are taken
    places, cut = gaps, gaps[crossed]
    a = np.concatenate([outwards[0, 1 : low + 1], outwards[1, :high], steps.y[places], crossings])
    b = np.concatenate([outwards[0, :low], outwards[1, 1 : high + 1], steps.y[places + 1], steps.y[cut + 1]])
    at_a = np.concatenate([beyond[0, 1 : low + 1], beyond[1, :high], np.abs(law.first[places]), np.zeros(len(cut))])
    at_b = np.concatenate([beyond[0, :low], beyond[1, 1 : high + 1], np.abs(law.last[places]), np.abs(law.last[cut])])
    level = np.concatenate([np.zeros(low), np.ones(high), steps.start[places], steps.start[cut]])
    first_halves = low + high + np.flatnonzero(crossed)
    b[first_halves], at_b[first_halves] = crossings, 0.0
    return _Gaps(a, b - a, at_a, at_b, level)


def _area(cdf: Callable[[np.ndarray], np.ndarray], gaps: _Gaps) -> float:
    """Σ ∫|level − F| dy over the gaps: Simpson's rule, extrapolated; gaps are halved where halving changes it."""
    a, width, left, right, level = gaps.a, gaps.width, gaps.at_a, gaps.at_b, gaps.level
    total = left_over = 0.0
    for _ in range(ROUNDS):
        inner = np.abs(cdf(a + width * QUARTERS) - level)
        once = width / 6 * (left + 4 * inner[1] + right)
        twice = width / 12 * (left + 4 * (inner[0] + inner[2]) + 2 * inner[1] + right)
        change = twice - once
        off = _all_but_the_least(np.abs(change))
        total += float(np.sum((twice + change / 15)[~off]))
        left_over = float(np.sum(twice[off]))
        if not off.any():
            break
        a, width, left, middle, right, level = (v[off] for v in (a, width / 2, left, inner[1], right, level))
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        a, width, level = np.concatenate([a, a + width]), np.tile(width, 2), np.tile(level, 2)
    return total + left_over


def _read_quantiles(steps: _Steps, law: _Law) -> tuple[Float[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """ln quantiles at the mid-ranks, straight in the logit of u between two nodes that lie close; and where none do."""
    logit = law.log_u - law.log_v
    rise = logit[1:] - logit[:-1]
    close = np.zeros(len(logit) + 1, bool)
    close[1:-1] = (rise < PLOT_RISE) & (rise > 0) & (steps.width < PLOT_GAP * steps.spread)
    return np.interp(steps.logits, logit, steps.y), ~close[np.searchsorted(logit, steps.logits)]
