"""Every family against its SciPy twin: density, distribution function from both ends, quantiles, samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from teleojax.families import FAMILIES


class Folded:
    """|w| for a w whose law is symmetric about 0."""

    def __init__(self, law: Any) -> None:
        self.law = law

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return math.log(2) + self.law.logpdf(x)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return self.law.cdf(x) - self.law.cdf(-x)

    def sf(self, x: np.ndarray) -> np.ndarray:
        return 2 * self.law.sf(x)

    def ppf(self, q: np.ndarray) -> np.ndarray:
        return np.where(q < 0.5, self.law.ppf((1 + q) / 2), self.law.isf((1 - q) / 2))


class OfLog:
    """x whose logarithm has the law."""

    def __init__(self, law: Any) -> None:
        self.law = law

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return self.law.logpdf(np.log(x)) - np.log(x)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return self.law.cdf(np.log(x))

    def sf(self, x: np.ndarray) -> np.ndarray:
        return self.law.sf(np.log(x))

    def ppf(self, q: np.ndarray) -> np.ndarray:
        return np.exp(self.law.ppf(q))


class Mixture:
    """Of lognormals; quantiles by interpolation between 10^5 of x, so that only their probabilities are exact."""

    def __init__(self, weights: tuple, mus: tuple, sigmas: tuple) -> None:
        self.weights = np.asarray(weights)[:, None]
        self.laws = [stats.lognorm(s, scale=math.exp(m)) for m, s in zip(mus, sigmas, strict=True)]

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        return logsumexp([law.logpdf(x) for law in self.laws], b=self.weights, axis=0)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return sum(w * law.cdf(x) for w, law in zip(self.weights[:, 0], self.laws, strict=True))

    def sf(self, x: np.ndarray) -> np.ndarray:
        return sum(w * law.sf(x) for w, law in zip(self.weights[:, 0], self.laws, strict=True))

    def ppf(self, q: np.ndarray) -> np.ndarray:
        y = np.linspace(-30, 30, 100_000)
        return np.exp(np.interp(q, self.cdf(np.exp(y)), y))


def truncated(mu: float, sigma: float, xmin: float) -> OfLog:
    return OfLog(stats.truncnorm((math.log(xmin) - mu) / sigma, math.inf, loc=mu, scale=sigma))


PEAKED = {"weights": (0.3, 0.7), "mus": (-4.2, -4.0), "sigmas": (1.5, 0.3)}
APART = {"weights": (0.95, 0.05), "mus": (-6.0, -1.0), "sigmas": (0.5, 0.1)}

TWINS: list[tuple[str, dict[str, Any], Any]] = [  # family, parameters, SciPy's frozen distribution
    ("lognormal", {"mu": -4.0, "sigma": 1.1}, stats.lognorm(1.1, scale=math.exp(-4.0))),
    ("lognormal", {"mu": 2.0, "sigma": 0.03}, stats.lognorm(0.03, scale=math.exp(2.0))),
    ("halfnormal", {"scale": 0.02}, stats.halfnorm(scale=0.02)),
    ("halfnormal", {"scale": 3.0}, stats.halfnorm(scale=3.0)),
    ("weibull", {"shape": 0.7, "scale": 0.02}, stats.weibull_min(0.7, scale=0.02)),
    ("weibull", {"shape": 12.0, "scale": 3.0}, stats.weibull_min(12.0, scale=3.0)),
    ("exponential", {"scale": 0.02}, stats.expon(scale=0.02)),
    ("exponential", {"scale": 40.0}, stats.expon(scale=40.0)),
    ("gamma", {"shape": 0.1, "scale": 0.3}, stats.gamma(0.1, scale=0.3)),
    ("gamma", {"shape": 1.7, "scale": 0.02}, stats.gamma(1.7, scale=0.02)),
    ("gamma", {"shape": 3e4, "scale": 1e-6}, stats.gamma(3e4, scale=1e-6)),
    ("gengamma", {"a": 0.5, "c": 2.0, "scale": 0.03}, stats.gengamma(0.5, 2.0, scale=0.03)),
    ("gengamma", {"a": 2.0, "c": 0.6, "scale": 0.1}, stats.gengamma(2.0, 0.6, scale=0.1)),
    ("gengamma", {"a": 1.5, "c": -1.2, "scale": 0.1}, stats.gengamma(1.5, -1.2, scale=0.1)),
    ("gengamma", {"a": 90.0, "c": -0.2, "scale": 1e8}, stats.gengamma(90.0, -0.2, scale=1e8)),
    ("half_t", {"df": 0.4, "scale": 0.02}, Folded(stats.t(0.4, scale=0.02))),
    ("half_t", {"df": 3.0, "scale": 2.0}, Folded(stats.t(3.0, scale=2.0))),
    ("half_t", {"df": 150.0, "scale": 0.02}, Folded(stats.t(150.0, scale=0.02))),
    ("half_t", {"df": 2e5, "scale": 0.02}, Folded(stats.t(2e5, scale=0.02))),
    ("halfgennorm", {"beta": 0.3, "scale": 1e-4}, stats.halfgennorm(0.3, scale=1e-4)),
    ("halfgennorm", {"beta": 1.4, "scale": 0.02}, stats.halfgennorm(1.4, scale=0.02)),
    ("halfgennorm", {"beta": 30.0, "scale": 0.1}, stats.halfgennorm(30.0, scale=0.1)),
    ("loglogistic", {"shape": 1.6, "scale": 0.02}, stats.fisk(1.6, scale=0.02)),
    ("loglogistic", {"shape": 40.0, "scale": 7.0}, stats.fisk(40.0, scale=7.0)),
    ("invgauss", {"mu": 0.02, "scale": 4.0}, stats.invgauss(0.02, scale=4.0)),
    ("invgauss", {"mu": 1.3, "scale": 0.02}, stats.invgauss(1.3, scale=0.02)),
    ("invgauss", {"mu": 9.0, "scale": 0.001}, stats.invgauss(9.0, scale=0.001)),
    ("truncated_lognormal", {"mu": -3.0, "sigma": 0.5, "xmin": 0.02}, truncated(-3.0, 0.5, 0.02)),
    ("truncated_lognormal", {"mu": -5.0, "sigma": 1.1, "xmin": 0.02}, truncated(-5.0, 1.1, 0.02)),
    ("truncated_lognormal", {"mu": -16.0, "sigma": 2.0, "xmin": 0.02}, truncated(-16.0, 2.0, 0.02)),
    ("pareto", {"alpha": 0.4, "xmin": 0.02}, stats.pareto(0.4, scale=0.02)),
    ("pareto", {"alpha": 25.0, "xmin": 3.0}, stats.pareto(25.0, scale=3.0)),
    ("lognormal_mixture", PEAKED, Mixture(**PEAKED)),
    ("lognormal_mixture", APART, Mixture(**APART)),
]
IDS = [f"{name}{tuple(p.values())}" for name, p, _ in TWINS]
Q = np.concatenate([np.linspace(0.001, 0.999, 199), [1e-6, 1 - 1e-6]])


def test_every_family_has_a_twin() -> None:
    assert {name for name, *_ in TWINS} == set(FAMILIES)


@pytest.mark.parametrize(("name", "params", "twin"), TWINS, ids=IDS)
def test_densities_and_distribution_functions(name: str, params: dict, twin: Any) -> None:
    family = FAMILIES[name]
    x = twin.ppf(Q)
    np.testing.assert_allclose(family.logpdf(x, params), twin.logpdf(x), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(family.logcdf(x, params), np.log(twin.cdf(x)), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(family.logsf(x, params), np.log(twin.sf(x)), rtol=1e-9, atol=1e-15)
    assert set(params) == set(family.parameters)


@pytest.mark.parametrize(("name", "params", "twin"), TWINS, ids=IDS)
def test_quantiles(name: str, params: dict, twin: Any) -> None:
    x = FAMILIES[name].ppf(Q, params)
    np.testing.assert_allclose(x, twin.ppf(Q), rtol=1e-5 if name == "lognormal_mixture" else 1e-9)
    # past 1e-15, just above xmin and where 1 − q is small, x and q themselves have no more digits
    np.testing.assert_allclose(FAMILIES[name].cdf(x, params), Q, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(FAMILIES[name].sf(x, params), 1 - Q, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("name", "params", "twin"), TWINS, ids=IDS)
def test_samples_follow_the_family(name: str, params: dict, twin: Any) -> None:
    x = FAMILIES[name].sample(np.random.default_rng(1), params, 20_000)
    assert x.shape == (20_000,)
    assert stats.kstest(x, twin.cdf).pvalue > 1e-4  # one false alarm in 10^4 seeds; the seed is fixed


@pytest.mark.parametrize(("name", "params"), [t[:2] for t in TWINS], ids=IDS)
def test_ends_of_the_support(name: str, params: dict) -> None:
    family, ends = FAMILIES[name], np.asarray([0.0, 1e305])
    (below, everything), (rest, beyond) = family.logcdf(ends, params), family.logsf(ends, params)
    assert (below, rest) == (-math.inf, 0)
    assert -1e-80 < everything <= 0
    assert beyond < -200
