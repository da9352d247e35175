"""Change points against every possible cut, against known changes, and on noise alone.

Seeds are fixed. Rates are of so many series that three standard errors lie between them and their limits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

import teleojax as tj
from teleojax.diagnose import ChangePoint, change_points
from teleojax.diagnose._changes import noise_of, partition, piece_costs


def chi_squared(x: np.ndarray, y: np.ndarray, se: np.ndarray, degree: int, drift: float = 0.0) -> float:
    """By the covariance written out, of points about a line or a level with noise and a random walk."""
    place = np.arange(1, len(y) + 1)
    precision = np.linalg.inv(np.diag(np.square(se)) + drift**2 * np.minimum(place[:, None], place))
    design = np.vander((x - x.mean()) / np.ptp(x), degree + 1)
    fit = np.linalg.solve(design.T @ precision @ design, design.T @ precision @ (y - y.mean()))
    rest = y - y.mean() - design @ fit
    return float(rest @ precision @ rest)


def by_brute_force(
    x: np.ndarray, y: np.ndarray, se: np.ndarray, degree: int, drift: float, penalty: float
) -> tuple[float, list[int]]:
    """The least penalised χ² over every cut into pieces of at least degree + 2 points, and where its pieces begin."""
    n, least = len(y), degree + 2
    best = (math.inf, [0])
    for pieces in range(1, n // least + 1):
        for cuts in itertools.combinations(range(least, n - least + 1), pieces - 1):
            edges = [0, *cuts, n]
            if min(np.diff(edges)) < least:
                continue
            spans = list(itertools.pairwise(edges))
            total = sum(chi_squared(x[a:b], y[a:b], se[a:b], degree, drift) for a, b in spans) + penalty * len(spans)
            best = min(best, (total, edges[:-1]))
    return best


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("drift", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_the_best_of_all(degree: int, drift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 10
    x = np.cumsum(rng.integers(1, 900, n)).astype(np.float64)
    se = rng.uniform(0.5, 2, n)
    y = 40 + rng.normal(0, se) + np.cumsum(rng.normal(0, drift, n)) + np.repeat(rng.normal(0, 6, 3), [3, 3, 4])
    costs = list(piece_costs(x, y, se, drift, degree))
    for end in range(degree + 2, n + 1):
        for start in range(end - degree - 1):
            part = slice(start, end)
            want = chi_squared(x[part], y[part], se[part], degree, drift)
            assert costs[end - 1][start] == pytest.approx(want, rel=1e-8, abs=1e-9)
    for penalty in (2.0, 12.0):
        starts = partition(costs, n, degree + 2, penalty)
        edges = [*starts, n]
        total = sum(costs[b - 1][a] + penalty for a, b in itertools.pairwise(edges))
        want, cuts = by_brute_force(x, y, se, degree, drift, penalty)
        assert total == pytest.approx(want, rel=1e-9)
        assert starts == cuts


def test_brute_force_would_tell_other_cuts_apart() -> None:
    x, y = np.arange(8.0), np.repeat([0.0, 10.0], 4)
    total, cuts = by_brute_force(x, y, np.ones(8), 0, 0.0, 5.0)
    assert (total, cuts) == (pytest.approx(10), [0, 4])
    assert chi_squared(x[:5], y[:5], np.ones(5), 0) == pytest.approx(80)


def test_numbers_of_a_jump_and_a_bend() -> None:
    x = np.arange(0, 2000, 50.0)
    noise = np.random.default_rng(3).normal(0, 0.01, 40)
    y = np.where(x < 800, 2.0, 5.0 - 0.001 * (x - 800)) + noise
    (change,) = change_points(x, y, np.full(40, 0.01))
    assert (change.index, change.x, change.previous) == (16, 800, 750)
    assert (change.before, change.after) == (pytest.approx(2, abs=0.03), pytest.approx(5, abs=0.03))
    assert (change.slope_before, change.slope_after) == (pytest.approx(0, abs=5e-5), pytest.approx(-0.001, abs=5e-5))
    told = noise_of(x, y, 0.01)
    s = max(0.01, told.scale * (1 + 6 / 38))
    parts = [np.polyfit(x[a:b], y[a:b], 1) for a, b in ((0, 16), (16, 40))]
    assert [change.slope_before, change.slope_after] == pytest.approx([p[0] for p in parts])
    assert [change.before, change.after] == pytest.approx([np.polyval(p, 800) for p in parts])
    scales = np.full(40, s)
    spans = ((0, 40), (0, 16), (16, 40))
    whole, old, new = (chi_squared(x[a:b], y[a:b], scales[a:b], 1, told.drift) for a, b in spans)
    assert change.gain == pytest.approx(whole - old - new, rel=1e-6)


def test_a_bend_alone_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(60.0)
    found = []
    for _ in range(40):
        y = np.maximum(x - 30, 0) * 2 + rng.normal(size=60)
        changes = change_points(x, y, np.ones(60))
        assert len(changes) == 1
        found.append(changes[0].index)
    assert abs(np.mean(found) - 30) < 2
    assert np.max(np.abs(np.asarray(found) - 30)) <= 6


@pytest.mark.parametrize("known", [True, False])
def test_jumps_are_found_where_they_are(known: bool) -> None:
    rng = np.random.default_rng(1)
    x, level = np.arange(90.0), np.repeat([0.0, 20.0, 8.0], 30)
    exact = 0
    for _ in range(40):
        changes = change_points(x, level + rng.normal(size=90), np.ones(90) if known else None)
        assert 2 <= len(changes) <= 3
        exact += [c.index for c in changes] == [30, 60]
    assert exact >= 32


def alarms(make: Callable[[int], np.ndarray], n: int, times: int, **how: Any) -> float:
    """The share of series in which something is found."""
    x = np.arange(n) * 500.0
    return float(np.mean([bool(change_points(x, make(n), **how)) for _ in range(times)]))


@pytest.mark.parametrize("n", [6, 12, 40])
@pytest.mark.parametrize("degree", [0, 1])
def test_false_alarms_on_noise_are_rare(n: int, degree: int) -> None:
    rng, times = np.random.default_rng(17), 300
    within = 0.01 + 3 * math.sqrt(0.01 * 0.99 / times)
    line = np.linspace(0, 30 * degree, n)
    assert alarms(lambda n: line + rng.normal(size=n), n, times, se=np.ones(n), degree=degree) < within
    assert alarms(lambda n: line + rng.normal(size=n), n, times, degree=degree) < within


@pytest.mark.parametrize(("n", "limit"), [(12, 0.02), (20, 0.1), (100, 0.01)])
def test_a_drift_is_no_heap_of_changes(n: int, limit: float) -> None:
    rng, times = np.random.default_rng(8), 150
    within = limit + 3 * math.sqrt(limit * (1 - limit) / times)
    assert alarms(lambda n: np.cumsum(rng.normal(size=n)), n, times) < within


def test_the_rate_is_the_callers() -> None:
    rng = np.random.default_rng(5)
    series = rng.normal(size=(300, 20))
    rates = [
        np.mean([bool(change_points(np.arange(20.0), y, np.ones(20), false_alarm=a)) for y in series])
        for a in (0.001, 0.9)
    ]
    assert rates[0] < 0.01
    assert rates[1] > 0.03


def test_every_change_gains_its_penalty() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        n = 50
        y = np.cumsum(rng.normal(size=n)) * 3 + rng.normal(size=n)
        for change in change_points(np.arange(float(n)), y, np.full(n, 0.3)):
            assert change.gain >= chi2.isf(0.01 / n, 2) - 1e-9


def test_scale_and_shift_change_nothing_but_the_numbers() -> None:
    rng = np.random.default_rng(4)
    x = np.arange(40.0)
    y = np.where(x < 22, 0, 6) + rng.normal(size=40)
    (a,), (b,) = change_points(x, y), change_points(1000 * x + 5000, 1e-3 * y - 7)
    assert (a.index, b.x) == (b.index, 1000 * a.x + 5000)
    assert b.before == pytest.approx(1e-3 * a.before - 7)
    assert b.slope_after == pytest.approx(1e-6 * a.slope_after)
    assert b.gain == pytest.approx(a.gain, rel=1e-6)


def test_noise_and_drift_are_told_apart_and_from_jumps() -> None:
    rng = np.random.default_rng(6)
    n = 4000
    x = np.sort(rng.choice(100_000, n, replace=False)).astype(np.float64)
    line, jump = 3e-4 * x, np.where(x > 5e4, 500, 0)
    noise, walk = rng.normal(0, 0.7, n), np.cumsum(rng.normal(0, 0.3, n))
    independent, both, alone = (noise_of(x, line + part) for part in (noise, noise + walk, walk))
    assert independent.scale == pytest.approx(0.7, rel=0.06)
    assert independent.drift < 0.15
    assert both.scale == pytest.approx(0.7, rel=0.1)
    for told in (both, alone):  # the largest growth of several, which are not sure of it: more rather than less
        assert 0.25 < told.drift < 0.5
    assert alone.scale < 0.1
    jumped = noise_of(x, line + jump + noise)
    assert jumped.scale == pytest.approx(0.7, rel=0.06)
    assert jumped.drift < 0.3
    assert noise_of(x, line + noise + walk, known=5.0).drift < 0.3
    assert noise_of(x, 2 * x + 1) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    assert noise_of(x[:2], x[:2]) == (0, 0)


def test_a_smooth_curve_is_no_heap_of_changes() -> None:
    x = np.arange(200.0)
    assert change_points(x, 0.5 * x) == ()
    for curve in (np.sin(x / 30), x * x, np.exp(-x / 40)):
        assert len(change_points(x, curve)) <= 3


def test_exact_steps_and_constants() -> None:
    x = np.arange(12.0)
    assert change_points(x, np.zeros(12)) == ()
    assert change_points(x, np.full(12, 1e30)) == ()
    (change,) = change_points(x, np.repeat([0.0, 0.5], 6))  # as of a tensor that is pruned
    assert (change.index, change.before, change.after) == (6, pytest.approx(0, abs=1e-9), pytest.approx(0.5))
    assert change_points(x, np.repeat([0.0, 0.5], 6), np.ones(12)) == ()  # within its error


def test_short_series_and_gaps() -> None:
    x, y = np.arange(12.0), np.repeat([0.0, 9.0], 6)
    assert change_points(x[:5], np.asarray([0, 0, 0, 9.0, 9]), np.ones(5)) == ()
    assert change_points([], []) == ()
    holes = np.insert(y, [0, 3, 9], np.nan)
    (change,) = change_points(np.arange(15.0), holes, np.where(np.isnan(holes), np.nan, 1.0))
    assert isinstance(change, ChangePoint)
    assert (change.index, change.x, change.previous) == (8, 8, 7)
    assert change_points(x, np.full(12, np.nan)) == ()


@pytest.mark.parametrize(
    ("x", "y", "se", "how"),
    [
        ([1, 1, 2], [0, 0, 0], None, {}),
        ([2, 1, 0], [0, 0, 0], None, {}),
        ([0, 1], [0, 0, 0], None, {}),
        ([0, 1, 2], [0, 0, 0], [1, 1], {}),
        ([0, 1, 2], [0, 0, 0], None, {"degree": 2}),
        ([0, 1, 2], [0, 0, 0], None, {"false_alarm": 0.0}),
    ],
)
def test_refusals(x: list[float], y: list[float], se: list[float] | None, how: dict) -> None:
    with pytest.raises(tj.UsageError, match="change_points"):
        change_points(x, y, se, **how)
