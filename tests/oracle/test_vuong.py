"""Vuong's test and the likelihood-ratio test: by hand, and their size by simulation with fixed seeds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize, special, stats

import teleojax as tj
from teleojax.diagnose._vuong import ON_THE_BOUNDARY, vuong
from teleojax.families import FAMILIES
from teleojax.stats import BitHistogram

SEEDS = 300


def histogram_of(x: np.ndarray) -> BitHistogram:
    histogram = tj.measure({"w": x})["w"].histogram
    assert histogram is not None
    return histogram


def exponential(scale: float):
    return FAMILIES["exponential"], {"scale": scale}


def weibull(shape: float, scale: float):
    return FAMILIES["weibull"], {"shape": shape, "scale": scale}


def lognormal(mu: float, sigma: float):
    return FAMILIES["lognormal"], {"mu": mu, "sigma": sigma}


def weibull_mle(x: np.ndarray) -> tuple[float, float]:
    """The shape k solves Σ x^k ln x / Σ x^k − 1/k = mean(ln x); scale^k = mean(x^k)."""
    y = np.log(x)
    k = optimize.brentq(lambda k: np.sum(x**k * y) / np.sum(x**k) - 1 / k - y.mean(), 0.05, 20, xtol=1e-12)
    return k, float(np.mean(x**k) ** (1 / k))


def values(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(0.02, n)


def test_separate_families_by_hand() -> None:
    """ln f₁ − ln f₂ for f₁ = e^−x and f₂ = √(2/π) e^(−x²/2): √n times its mean over its standard deviation."""
    x = np.repeat([0.25, 0.5, 1.0, 4.0], [40, 30, 20, 10])
    difference = -x - (0.5 * math.log(2 / math.pi) - x**2 / 2)
    mean, omega = difference.mean(), difference.std()
    got = vuong(histogram_of(x), exponential(1.0), (FAMILIES["halfnormal"], {"scale": 1.0}))
    assert (got.first, got.second, got.n, got.nested) == ("exponential", "halfnormal", 100, False)
    assert (got.law, got.status) == ("normal", "ok")
    assert got.mean_difference == pytest.approx(mean, rel=1e-12)
    assert got.omega == pytest.approx(omega, rel=1e-12)
    assert got.likelihood_ratio == pytest.approx(200 * mean, rel=1e-12)
    assert got.z == pytest.approx(10 * mean / omega, rel=1e-12)
    assert got.p_value == pytest.approx(math.erfc(10 * mean / omega / math.sqrt(2)), rel=1e-10)
    assert 0.001 < got.p_value < 0.1


@pytest.mark.parametrize("nested", [False, True])
def test_the_other_way_round_only_signs_change(nested: bool) -> None:
    x = values(1, 4000)
    first = weibull(*weibull_mle(x)) if nested else lognormal(np.log(x).mean(), np.log(x).std())
    forth, back = (
        vuong(histogram_of(x), *pair) for pair in ((first, exponential(x.mean())), (exponential(x.mean()), first))
    )
    assert forth.nested == back.nested == nested
    assert (back.first, back.second) == (forth.second, forth.first)
    for name in ("mean_difference", "likelihood_ratio", "z"):
        np.testing.assert_equal(getattr(back, name), -getattr(forth, name))
    for name in ("p_value", "omega", "law", "status", "n"):
        assert getattr(back, name) == getattr(forth, name)


def test_the_better_family_is_positive() -> None:
    x = np.exp(np.random.default_rng(2).standard_normal(5000))
    got = vuong(histogram_of(x), lognormal(np.log(x).mean(), np.log(x).std()), weibull(*weibull_mle(x)))
    assert got.mean_difference > 0
    assert got.z > 5
    assert got.p_value < 1e-6


def test_cells_and_weights_count() -> None:
    """The middles of cells, each as often as it occurs."""
    x = values(3, 20_000).astype(np.float32)
    histogram = histogram_of(x)
    assert not histogram.lossless
    spread = np.repeat(histogram.values(), histogram.counts)
    difference = stats.lognorm(1.2, scale=0.01).logpdf(spread) - stats.expon(scale=0.02).logpdf(spread)
    got = vuong(histogram, lognormal(math.log(0.01), 1.2), exponential(0.02))
    assert got.mean_difference == pytest.approx(difference.mean(), rel=1e-9)
    assert got.omega == pytest.approx(difference.std(), rel=1e-9)


# Size: where the null holds, p is uniform. Of each threshold below, less than one seed set in a thousand would fail.


def assert_uniform(p: list[float]) -> None:
    """Kolmogorov's test at 10⁻³, and rejections at 5% within 3.3 binomial standard deviations."""
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert abs(np.mean(np.asarray(p) < 0.05) - 0.05) < 3.3 * math.sqrt(0.05 * 0.95 / len(p))


def test_p_of_nested_families_is_uniform_and_the_normal_law_is_not() -> None:
    """Exponential values, exponential within Weibull. Taken for separate families they would all but never differ."""
    tests = []
    for seed in range(SEEDS):
        x = values(seed, 500)
        tests.append(vuong(histogram_of(x), weibull(*weibull_mle(x)), exponential(x.mean())))
    assert {(t.law, t.nested, t.status) for t in tests} == {("chi2", True, "ok")}
    assert_uniform([t.p_value for t in tests])
    ignored = [math.erfc(math.sqrt(t.n / 2) * t.mean_difference / t.omega) for t in tests]
    assert stats.kstest(ignored, "uniform").pvalue < 1e-6
    assert np.mean(np.asarray(ignored) < 0.05) < 0.02


def test_p_of_separate_families_is_uniform_where_they_are_equally_far() -> None:
    """N(0, 1) between N(−0.7, 1) and N(0.7, 1), parameters given."""
    p = []
    for seed in range(SEEDS):
        x = np.exp(np.random.default_rng(seed).standard_normal(500))
        got = vuong(histogram_of(x), lognormal(-0.7, 1.0), lognormal(0.7, 1.0))
        assert got.law == "normal"
        p.append(got.p_value)
    assert_uniform(p)


def half_t_mle(x: np.ndarray) -> dict[str, float]:
    """By simplex where the score of 1/df at 0, (mean z⁴ − 3)/4, is positive; else all but half-normal."""
    rms = math.sqrt(np.mean(x**2))
    if np.mean(x**4) <= 3 * rms**4:
        return {"df": 1e9, "scale": rms}

    def loss(theta: np.ndarray) -> float:
        df, scale = math.exp(theta[0]), math.exp(theta[1])
        peak = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - 0.5 * math.log(df / 2)
        return 0.5 * (df + 1) * float(np.mean(np.log1p((x / scale) ** 2 / df))) - peak + theta[1]

    options = {"xatol": 1e-4, "fatol": 1e-10}
    found = optimize.minimize(loss, [math.log(100), math.log(rms)], method="Nelder-Mead", options=options)
    return {"df": math.exp(found.x[0]), "scale": math.exp(found.x[1])}


def test_on_the_boundary_half_the_ratios_are_zero() -> None:
    """Half-normal values: 1/df would be negative in about half the samples, and the chi2 law twice too large a p."""
    assert ("half_t", "halfnormal") in ON_THE_BOUNDARY
    p = []
    for seed in range(100):
        x = np.abs(np.random.default_rng(seed).standard_normal(2000))
        smaller = FAMILIES["halfnormal"], {"scale": math.sqrt(np.mean(x**2))}
        got = vuong(histogram_of(x), (FAMILIES["half_t"], half_t_mle(x)), smaller)
        assert (got.law, got.status) == ("half chi2", "ok")
        if got.likelihood_ratio > 0:
            assert got.p_value == pytest.approx(stats.chi2.sf(got.likelihood_ratio, 1) / 2)
        p.append(got.p_value)
    p = np.asarray(p)
    inner = p[p < 0.4999]
    assert 0.33 < len(inner) / len(p) < 0.67  # a half, 3.4 binomial standard deviations either side
    assert stats.kstest(inner / 0.5, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("extra", "larger"), [(1, "weibull"), (1, "gamma"), (2, "gengamma")])
def test_degrees_of_freedom_are_the_parameters_more(extra: int, larger: str) -> None:
    params = {
        "weibull": {"shape": 1.1, "scale": 0.021},
        "gamma": {"shape": 1.1, "scale": 0.018},
        "gengamma": {"a": 0.9, "c": 1.1, "scale": 0.022},
    }
    x = FAMILIES[larger].sample(np.random.default_rng(0), params[larger], 2000)
    got = vuong(histogram_of(x), exponential(x.mean()), (FAMILIES[larger], params[larger]))
    assert got.likelihood_ratio < 0
    assert got.p_value == pytest.approx(stats.chi2.sf(-got.likelihood_ratio, extra), rel=1e-9)


# What has no p


def test_a_mixture_has_no_limit_law() -> None:
    x = np.exp(np.random.default_rng(0).standard_normal(1000))
    mixture = {"weights": (0.9, 0.1), "mus": (0.0, 0.1), "sigmas": (1.0, 1.0)}
    got = vuong(histogram_of(x), (FAMILIES["lognormal_mixture"], mixture), lognormal(-0.3, 1.0))
    assert got.status == "no limit law"
    assert got.nested
    assert math.isnan(got.p_value)
    assert "mixture" in got.reason
    assert got.mean_difference > 0


def test_identical_densities_are_indistinguishable() -> None:
    x = values(0, 2000)
    for first, second in (
        (exponential(0.02), exponential(0.02)),
        (weibull(1.0, 0.02), exponential(0.02)),
        (weibull(1.0, 0.02), (FAMILIES["gamma"], {"shape": 1.0, "scale": 0.02})),
    ):
        got = vuong(histogram_of(x), first, second)
        assert (got.status, got.p_value) == ("indistinguishable", 1.0)
        assert "rounding" in got.reason


def test_families_that_overlap_at_the_truth_are_indistinguishable() -> None:
    """Exponential values, gamma against Weibull: both hold the truth, and n·omega² stays what chance makes it."""
    told = 0
    for seed in range(100):
        x = values(seed, 500)
        gamma = stats.gamma.fit(x, floc=0)
        first = FAMILIES["gamma"], {"shape": gamma[0], "scale": gamma[2]}
        got = vuong(histogram_of(x), first, weibull(*weibull_mle(x)))
        assert not got.nested
        told += got.status == "ok"
        if got.status == "indistinguishable":
            assert got.p_value == 1
            assert "omega" in got.reason
    assert told <= 10  # at most 5% by the law used, which is an upper bound


def test_a_larger_family_below_a_smaller_one_was_not_maximised() -> None:
    x = values(0, 2000)
    got = vuong(histogram_of(x), weibull(1.3, 0.02), exponential(x.mean()))
    assert got.status == "not maximised"
    assert math.isnan(got.p_value)
    assert "weibull" in got.reason


def test_numerical_slack_is_not_taken_for_a_failed_fit() -> None:
    x = values(1, 2000)
    k, scale = weibull_mle(x)
    bounds = FAMILIES["gengamma"].bounds
    mine = dataclasses.replace(FAMILIES["weibull"], name="mine", bounds=bounds, contains=frozenset({"weibull"}))
    got = vuong(histogram_of(x), (mine, {"shape": k * (1 + 1e-5), "scale": scale}), weibull(k, scale))
    assert got.likelihood_ratio < 0
    assert (got.status, got.p_value) == ("ok", 1.0)


def test_nothing_to_compare_is_nan() -> None:
    nothing = BitHistogram.zero("float32")
    for got in (
        vuong(nothing, exponential(1.0), lognormal(0.0, 1.0)),
        vuong(histogram_of(values(0, 10)), (FAMILIES["exponential"], {}), lognormal(0.0, 1.0)),
        vuong(histogram_of(values(0, 10)), exponential(1.0), (FAMILIES["pareto"], {"alpha": 1.0, "xmin": 100.0})),
    ):
        assert got.status == "empty"
        for name in ("mean_difference", "omega", "likelihood_ratio", "z", "p_value"):
            assert math.isnan(getattr(got, name))


# Tails


def test_a_tail_is_compared_above_its_xmin_with_conditional_densities() -> None:
    x = np.random.default_rng(0).pareto(1.5, 4000) * 0.5 + 0.1  # a Lomax body with a power-law tail
    above = x[x >= 1.0]
    alpha = 1 / np.mean(np.log(above))
    twin = stats.lognorm(1.0, scale=0.5)
    difference = stats.pareto(alpha).logpdf(above) - (twin.logpdf(above) - twin.logsf(1.0))
    got = vuong(histogram_of(x), (FAMILIES["pareto"], {"alpha": alpha, "xmin": 1.0}), lognormal(math.log(0.5), 1.0))
    assert got.n == len(above)
    assert got.mean_difference == pytest.approx(difference.mean(), rel=1e-8)
    assert got.omega == pytest.approx(difference.std(), rel=1e-8)


def test_short_of_its_limit_a_family_is_not_blamed() -> None:
    """A tail heavier than Pareto's. A lognormal cut 50 sigma above its centre comes no closer, and is a bit behind."""
    excess = np.random.default_rng(1).standard_exponential(8000) ** 1.2
    alpha = 1 / np.mean(excess)
    sigma = 50.02 / alpha
    larger = FAMILIES["truncated_lognormal"], {"mu": math.log(0.1) - 50 * sigma, "sigma": sigma, "xmin": 0.1}
    pareto = FAMILIES["pareto"], {"alpha": alpha, "xmin": 0.1}
    got = vuong(histogram_of(0.1 * np.exp(excess)), larger, pareto)
    assert got.likelihood_ratio < -0.5
    assert (got.n, got.status, got.law, got.p_value) == (8000, "ok", "half chi2", 1.0)
