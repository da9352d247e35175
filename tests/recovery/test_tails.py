"""Where a power-law tail begins, what it looks like, and when it is none. Seeds are fixed."""

from __future__ import annotations

import math
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

import teleojax as tj
from teleojax import FAMILIES, TensorStats
from teleojax.fits import FamilyFit, find_tail, maximum_likelihood
from teleojax.fits._nodes import bin_starts, cells_of
from teleojax.fits._tail import LEAST
from tests.oracle.test_maximum_likelihood import NASTY, check_nasty

TAILS = [family for family in FAMILIES.values() if family.tail]
ALPHA, BEGINS = 2.5, 1.0


def body_and_tail(seed: int, n: int = 20_000) -> np.ndarray:
    """A quarter follows a Pareto law from 1 up, the others rise as a power up to 1."""
    rng = np.random.default_rng(seed)
    above = rng.binomial(n, 0.25)
    body, tail = rng.random(n - above) ** (1 / 1.5), rng.random(above) ** (-1 / ALPHA)
    return BEGINS * np.concatenate([body, tail]).astype(np.float32)


def lognormal(seed: int, n: int = 20_000) -> np.ndarray:
    return np.exp(-4 + 1.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def pareto(seed: int, n: int = 20_000) -> np.ndarray:
    return FAMILIES["pareto"].sample(np.random.default_rng(seed), {"alpha": 1.7, "xmin": 0.02}, n).astype(np.float32)


def measured(values: list[np.ndarray]) -> list[TensorStats]:
    return list(tj.measure({str(i): v for i, v in enumerate(values)}).stats.values())


def lowest_bic(fits: list[dict[str, FamilyFit]]) -> Counter[str]:
    return Counter(min(each.values(), key=lambda fit: fit.bic).family for each in fits)


def test_a_tail_on_a_body_is_found() -> None:
    stats = measured([body_and_tail(seed) for seed in range(50)])
    fits = maximum_likelihood(TAILS, stats)
    begins = np.asarray([each["pareto"].xmin for each in fits])
    assert np.mean((begins > 0.98 * BEGINS) & (begins < 1.25 * BEGINS)) >= 0.8
    assert begins.max() < 2 * BEGINS  # a later start is a tail too, of fewer values
    alpha = np.asarray([each["pareto"].alpha for each in fits])
    assert alpha.mean() == pytest.approx(ALPHA, abs=0.02)  # its standard error is 0.006
    inside = [low <= ALPHA <= high for low, high in (each["pareto"].interval("alpha") for each in fits)]
    assert np.mean(inside) >= 0.9
    assert lowest_bic(fits)["pareto"] >= 48


def distances(x: np.ndarray, begins: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the Pareto law fitted from each place on: the largest distance at `places`, and alpha, from the values."""
    found = []
    for begin in begins:
        above = x[x >= begin]
        alpha = 1 / np.mean(np.log(above / begin))
        at = places[places >= begin]
        empirical = np.mean(above[:, None] >= at, axis=0)
        found.append((np.abs(empirical - (at / begin) ** -alpha).max(), alpha))
    return tuple(np.asarray(found).T)


@pytest.mark.parametrize("make", [body_and_tail, lognormal, pareto])
def test_the_scan_is_the_textbooks(make: object) -> None:
    """Clauset, Shalizi & Newman over the same edges by brute force; and over all values as places to compare."""
    for seed in range(3):
        values = make(seed, 3000)
        (stats,) = measured([values])
        tail, x = find_tail(stats), values.astype(np.float64)
        cells, edges = cells_of(stats.histogram), stats.histogram.edges()[0]
        places = edges[bin_starts((cells.mean - stats.moments.mean) / stats.moments.sigma)]
        begins = places[[np.sum(x >= place) >= LEAST for place in places]]
        distance, alpha = distances(x, begins, places)
        best = int(np.argmin(distance))
        assert math.exp(tail.log_xmin) == pytest.approx(begins[best], rel=1e-12)
        assert tail.ks == pytest.approx(distance[best], abs=1e-10)
        assert tail.n == np.sum(x >= begins[best])
        fit = maximum_likelihood([FAMILIES["pareto"]], [stats])[0]["pareto"]
        assert fit.alpha == pytest.approx(alpha[best], rel=1e-9)
        assert (fit.xmin, fit.n) == (pytest.approx(begins[best], rel=1e-12), tail.n)
        everywhere, _ = distances(x, begins, np.unique(x))
        assert everywhere[best] <= everywhere.min() + 0.02  # between two edges the distance may be a little larger


def test_the_last_values_are_no_tail_of_their_own() -> None:
    """The distance from the law is taken to the very end, also past the last place where a tail may begin."""
    values = np.concatenate([lognormal(0, 5000), np.linspace(2, 2.1, 60)]).astype(np.float32)  # a bump at the end
    tail = find_tail(measured([values])[0])
    assert tail.n > 2 * LEAST
    assert tail.ks > 0.01


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_given_xmin(dtype: type) -> None:
    """The tail begins at the next edge of a cell, and is what SciPy's estimate from there on is."""
    values = pareto(0, 50_000).astype(dtype)
    (stats,) = measured([values])
    for xmin in (0.021, 0.1):
        fit = maximum_likelihood([FAMILIES["pareto"]], [stats], xmin=xmin)[0]["pareto"]
        assert xmin <= fit.xmin <= xmin * 1.01
        x = values.astype(np.float64)
        above = x[x >= fit.xmin]
        assert fit.n == len(above)
        assert fit.alpha == pytest.approx(1 / np.mean(np.log(above / fit.xmin)), rel=1e-4)
        tail = find_tail(stats, xmin)
        assert (math.exp(tail.log_xmin), tail.n) == (pytest.approx(fit.xmin), fit.n)
        assert 0 < tail.ks < 0.02
    low, high = fit.interval("alpha")
    assert low < 1.7 < high


def test_xmin_is_not_the_smallest_value() -> None:
    """One tiny weight would make a power law from there on."""
    values = np.append(body_and_tail(0), np.float32(1e-6))
    fit = maximum_likelihood([FAMILIES["pareto"]], measured([values]))[0]["pareto"]
    assert fit.xmin > 0.9 * BEGINS
    assert fit.alpha == pytest.approx(ALPHA, abs=0.15)


def test_no_tail_is_a_status() -> None:
    few, beyond = measured([np.arange(1, LEAST, dtype=np.float32)]), measured([pareto(0, 1000)])
    for stats, xmin in ((few, None), (beyond, 1e9)):
        for fit in maximum_likelihood(TAILS, stats, xmin=xmin)[0].values():
            assert (fit.status, fit.params) == ("degenerate", {})
            assert math.isnan(fit.loglik_per_value)
    assert find_tail(few[0]).n == find_tail(beyond[0], 1e9).n == 0
    assert math.isnan(find_tail(few[0]).log_xmin)


def test_nasty_values_get_a_status() -> None:
    stats = measured([np.asarray(values, np.float32) for values in NASTY.values()])
    for xmin in (None, 0.15):
        for label, found in zip(NASTY, maximum_likelihood(TAILS, stats, xmin=xmin), strict=True):
            for name, fit in found.items():
                check_nasty(name, label, fit)


def test_lognormal_tails_are_told_from_power_laws() -> None:
    """Above the median, 10⁴ values: truncated lognormals, and they give mu and sigma of the whole."""
    fits = maximum_likelihood(TAILS, measured([lognormal(seed) for seed in range(40)]), xmin=math.exp(-4))
    assert lowest_bic(fits) == {"truncated_lognormal": 40}
    mine = [each["truncated_lognormal"] for each in fits]
    assert {fit.status for fit in mine} == {"ok"}
    for key, value in (("mu", -4.0), ("sigma", 1.1)):
        inside = [low <= value <= high for low, high in (fit.interval(key) for fit in mine)]
        assert np.mean(inside) >= 0.85
        assert np.mean([fit.params[key] for fit in mine]) == pytest.approx(value, rel=0.02)


def test_power_laws_are_the_end_of_a_ridge() -> None:
    """A truncated lognormal fitted to a power law runs towards mu = −∞: named as such in most of the seeds."""
    fits = maximum_likelihood(TAILS, measured([pareto(seed, 100_000) for seed in range(40)]), xmin=0.02)
    mine = [each["truncated_lognormal"] for each in fits]
    assert np.mean([(fit.status, fit.limit) == ("weak", "pareto") for fit in mine]) >= 0.7
    assert lowest_bic(fits)["pareto"] >= 38
    for each in fits:  # what is gained over the power law is chance
        gain = each["truncated_lognormal"].loglik_per_value - each["pareto"].loglik_per_value
        assert -1e-5 <= gain <= 1e-4


def test_tails_are_not_compared_with_wholes() -> None:
    result = tj.fit({"w": lognormal(0)}, families=["pareto", "halfnormal"])["w"]
    assert result.families["pareto"].n < result.families["lognormal"].n
    assert {fit.family for fit in result.comparable} == {"lognormal", "halfnormal"}
    assert result.best_family == "lognormal"
    assert math.isnan(result.gain("pareto"))
