"""Change points of a series: the description by straight pieces that is best when each piece has its price.

    minimise  Σ over pieces [ χ² of the piece about its line + penalty ],   penalty = χ² quantile of 1 − false_alarm / T

over every way to cut the T points into pieces of at least three, exactly, by dynamic programming in O(T²). A piece has
a line of its own, so both jumps and bends are found. About the line there is independent noise and a random walk: the
numbers of a network drift from checkpoint to checkpoint, and without the walk every drift would be a heap of changes.
References: Jackson et al. (2005), IEEE Signal Process. Lett. 12, 105 (optimal partitioning); Romano, Rigaill, Runge &
Fearnhead (2022), JASA 117, 2147 (changes amid drift); de Jong (1991), Ann. Stat. 19, 1073 (regression by a Kalman
filter); Gasser, Sroka & Jennen-Steinmetz (1986), Biometrika 73, 625 (noise from neighbours).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import chdtri

from teleojax._errors import UsageError

FALSE_ALARM = 0.01  # of series in which nothing but noise of known size happens
SHARE, NORMAL_QUANTILE = 0.4, 0.5244005127080407  # of |z|: below the median, since jumps touch half of a short series
LAGS = 12  # a jump touches two residuals for each point of distance: a sixth of them, so that three leave the others
SMALL = 6.0  # points by which noise told from few is too small too often: its margin is 1 + SMALL / (T − 2)
FINEST = 1e-6  # of the range of y: sums of squares about a finer scale have no digits left


class Noise(NamedTuple):
    """The standard deviations of independent noise, and of the steps of a random walk beside it."""

    scale: float
    drift: float


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """Where one piece ends and the next begins.

    `index` and `x` are those of the first point of the new piece, `previous` the x of the last point of the old one;
    `before` and `after` the two lines at `x`, `slope_before` and `slope_after` their slopes per unit of x. `gain` is by
    how much χ² grows if the two pieces are made one: no less than the penalty.
    """

    index: int
    x: float
    previous: float
    before: float
    after: float
    slope_before: float
    slope_after: float
    gain: float


def change_points(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    se: Sequence[float] | np.ndarray | None = None,
    *,
    degree: int = 1,
    false_alarm: float = FALSE_ALARM,
) -> tuple[ChangePoint, ...]:
    """The changes of y, in rising x; none of fewer than six points (four with degree 0).

    The independent noise of a point is its standard error or that of the series (`noise_of`, with a margin for short
    ones), whichever is larger; the drift is that of the series. Without `se`, or where it is NaN, the series alone
    counts. Points whose y is NaN take no part; `index` counts them.

    The penalty is the χ² quantile, of as many degrees as a piece has coefficients, that leaves `false_alarm` to all
    places together (Bonferroni): 2 ln(T / false_alarm) for lines, BIC's 2 ln T and a constant. It bounds false alarms
    where noise and drift are known; of a random walk whose drift must be told from some 20 points they are up to 10%.

    Raises UsageError for x that does not rise, lengths that differ, a degree other than 0 and 1, or a rate outside
    (0, 1).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    errors = np.zeros_like(y) if se is None else np.asarray(se, np.float64)
    _refuse(x, y, errors, degree, false_alarm)
    (places,) = np.nonzero(np.isfinite(y))
    x, y, errors = x[places], y[places], errors[places]
    least = degree + 2
    if len(y) < 2 * least:
        return ()
    known = np.where(np.isfinite(errors), errors, 0)
    noise, margin = noise_of(x, y, float(np.median(known))), 1 + SMALL / (len(y) - 2)
    scale = np.maximum(known, max(margin * noise.scale, FINEST * float(np.ptp(y))))
    if not (scale > 0).all():
        return ()  # all are equal, and without error

    def cost(begin: int, end: int) -> float:
        part = slice(begin, end)
        *_, last = piece_costs(x[part], y[part], scale[part], noise.drift, degree)
        return float(last[0])

    costs = piece_costs(x, y, scale, noise.drift, degree)
    starts = partition(costs, len(y), least, float(chdtri(degree + 1, false_alarm / len(y))))
    edges = [*starts, len(y)]
    lines = [_line(x[a:b], y[a:b], scale[a:b], degree) for a, b in pairwise(edges)]
    found = []
    for k, start in enumerate(starts[1:], 1):
        (old, old_slope), (new, new_slope) = lines[k - 1], lines[k]
        before, after = edges[k - 1], edges[k + 1]
        gain = cost(before, after) - cost(before, start) - cost(start, after)
        at = float(x[start])
        found.append(
            ChangePoint(
                int(places[start]), at, float(x[start - 1]), old + old_slope * at, new + new_slope * at,
                old_slope, new_slope, gain,
            )
        )  # fmt: skip
    return tuple(found)


def _refuse(x: np.ndarray, y: np.ndarray, se: np.ndarray, degree: int, false_alarm: float) -> None:
    def refuse(found: str, needed: str) -> None:
        raise UsageError("change_points", found=found, needed=needed, remedy="Correct the arguments.")

    if not x.shape == y.shape == se.shape or x.ndim != 1:
        refuse(f"shapes {x.shape}, {y.shape} and {se.shape}", "as many x as y and errors, along one axis")
    if not (np.diff(x) > 0).all():
        refuse("x that does not rise", "x in rising order, each once")
    if degree not in (0, 1):
        refuse(f"degree {degree}", "0 (levels) or 1 (lines)")
    if not 0 < false_alarm < 1:
        refuse(f"a false alarm rate of {false_alarm}", "one between 0 and 1")


def noise_of(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], known: float = 0.0) -> Noise:
    """The noise of a series, by how far points lie from the line through two neighbours 1, 2, 4, … points away.

    Per its own factor, the square of that is the same at each distance for independent noise, and grows by drift²/3 a
    point for a random walk; the largest growth is taken, less what independent noise of size `known` hides. Distances
    go up to 1/LAGS of all points, and 2 at least. Quantiles see little of few jumps; what bends all the time counts as
    drift. Zeros of fewer than three points.
    """
    scales, lag = [], 1
    while 2 * lag < len(y) and lag <= max(2, len(y) // LAGS):
        (x0, x1, x2), (y0, y1, y2) = ((v[: -2 * lag], v[lag:-lag], v[2 * lag :]) for v in (x, y))
        a = (x2 - x1) / (x2 - x0)
        r = (a * y0 + (1 - a) * y2 - y1) / np.sqrt(1 + a * a + np.square(1 - a))
        scales.append((lag, float(np.quantile(np.abs(r), SHARE)) / NORMAL_QUANTILE))
        lag *= 2
    if not scales:
        return Noise(0.0, 0.0)
    nearest = scales[0][1] ** 2
    growth = max((3 * (s * s - max(nearest, known**2)) / (k - 1) for k, s in scales[1:]), default=0.0)
    drift = max(growth, 0.0)
    return Noise(math.sqrt(max(nearest - drift / 3, 0.0)), math.sqrt(drift))


def piece_costs(
    x: Float64[np.ndarray, " n"],
    y: Float64[np.ndarray, " n"],
    scale: Float64[np.ndarray, " n"],
    drift: float,
    degree: int,
) -> Iterator[Float64[np.ndarray, " starts"]]:
    """For each point in turn, χ² of the pieces that end with it, one for each point that they may begin with.

    A piece is its line, a random walk of steps of `drift`, and independent noise of `scale`: generalised least squares,
    by one Kalman filter a start, run on y and on the columns of the line at once.
    """
    x = (x - x.mean()) / max(float(np.ptp(x)), 1.0)
    unit = math.sqrt(float(np.square(scale).mean()) + drift * drift)
    y = (y - y.mean()) / unit
    noise, step = np.square(scale / unit), (drift / unit) ** 2
    n = len(y)
    columns = np.stack([y, np.ones(n), x])
    level, variance = np.zeros((3, n)), np.full(n, step)
    sums = np.zeros((6, n))
    first, second = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in range(n):
            here = slice(0, t + 1)
            innovation = columns[:, t, None] - level[:, here]
            spread = variance[here] + noise[t]
            weighted = innovation / spread
            for row, i, j in zip(sums, first, second, strict=True):
                row[here] += innovation[i] * weighted[j]
            level[:, here] += variance[here] * weighted
            variance[here] += step - np.square(variance[here]) / spread
            yy, y1, yx, one, x1, xx = sums[:, here]
            rest = yy - y1 * y1 / one
            if degree:
                yx = yx - y1 * x1 / one
                rest = rest - yx * yx / (xx - x1 * x1 / one)
            yield np.maximum(rest, 0)


def partition(costs: Iterable[np.ndarray], n: int, least: int, penalty: float) -> list[int]:
    """Where the pieces of the cheapest cut of n points begin, 0 first; pieces have `least` points or more."""
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    begin = np.zeros(n + 1, np.int64)
    for end, cost in enumerate(costs, 1):
        starts = end - least + 1
        if starts > 0:
            totals = best[:starts] + cost[:starts]
            begin[end] = chosen = int(np.argmin(totals))
            best[end] = totals[chosen] + penalty
    return _traced(begin)


def _traced(begin: Int64[np.ndarray, " n"]) -> list[int]:
    starts, end = [], len(begin) - 1
    while end > 0:
        end = int(begin[end])
        starts.append(end)
    return starts[::-1]


def _line(x: np.ndarray, y: np.ndarray, scale: np.ndarray, degree: int) -> tuple[float, float]:
    """Intercept at x = 0 and slope, by weighted least squares."""
    weight = 1 / np.square(scale)
    x0, y0 = np.average(x, weights=weight), np.average(y, weights=weight)
    slope = float(weight @ ((x - x0) * (y - y0)) / (weight @ np.square(x - x0))) if degree else 0.0
    return float(y0) - slope * float(x0), slope
