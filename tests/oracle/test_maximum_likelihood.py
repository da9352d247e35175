"""Every family's maximum of likelihood against SciPy's own log-density on the raw values, and against exact values.

A fit sees some hundred nodes, not the values. So what counts is the likelihood that its parameters reach on the values
themselves, and how far an optimiser that does see them still gets from there.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from scipy import optimize, stats

import teleojax as tj
from teleojax import FAMILIES, FamilyFit
from teleojax.fits import maximum_likelihood
from tests.populations import exact_stats

N = 100_000
CELL = math.log(2) / 128  # of float32 above 8,192 values, in ln x: the widest; at the other end of an octave it is half
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
APART = {"weights": (0.3, 0.7), "mus": (-6.0, -3.0), "sigmas": (0.8, 0.5)}


def folded_t(x: np.ndarray, df: float, scale: float) -> np.ndarray:
    return math.log(2) + stats.t.logpdf(x, df, scale=scale)


def truncated(x: np.ndarray, mu: float, sigma: float, xmin: float) -> np.ndarray:
    y = np.log(x)
    return stats.norm.logpdf(y, mu, sigma) - stats.norm.logsf(math.log(xmin), mu, sigma) - y


def mixture(x: np.ndarray, weights: tuple, mus: tuple, sigmas: tuple) -> np.ndarray:
    parts = zip(weights, mus, sigmas, strict=True)
    each = [math.log(w) + stats.lognorm.logpdf(x, s, scale=math.exp(m)) for w, m, s in parts]
    return np.logaddexp(*each)


TWINS = {  # SciPy's log-density in this package's parameters
    "lognormal": lambda x, mu, sigma: stats.lognorm.logpdf(x, sigma, scale=math.exp(mu)),
    "halfnormal": lambda x, scale: stats.halfnorm.logpdf(x, scale=scale),
    "weibull": lambda x, shape, scale: stats.weibull_min.logpdf(x, shape, scale=scale),
    "exponential": lambda x, scale: stats.expon.logpdf(x, scale=scale),
    "gamma": lambda x, shape, scale: stats.gamma.logpdf(x, shape, scale=scale),
    "gengamma": lambda x, a, c, scale: stats.gengamma.logpdf(x, a, c, scale=scale),
    "half_t": folded_t,
    "halfgennorm": lambda x, beta, scale: stats.halfgennorm.logpdf(x, beta, scale=scale),
    "loglogistic": lambda x, shape, scale: stats.fisk.logpdf(x, shape, scale=scale),
    "invgauss": lambda x, mu, scale: stats.invgauss.logpdf(x, mu, scale=scale),
    "truncated_lognormal": truncated,
    "pareto": lambda x, alpha, xmin: stats.pareto.logpdf(x, alpha, scale=xmin),
    "lognormal_mixture": mixture,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("lognormal", {"mu": -4.0, "sigma": 1.1}),
    ("halfnormal", {"scale": 0.02}),
    ("weibull", {"shape": 0.7, "scale": 0.02}),
    ("weibull", {"shape": 12.0, "scale": 3.0}),
    ("exponential", {"scale": 0.02}),
    ("gamma", {"shape": 0.3, "scale": 0.02}),
    ("gengamma", {"a": 2.0, "c": 0.6, "scale": 0.1}),
    ("half_t", {"df": 3.0, "scale": 0.02}),
    ("halfgennorm", {"beta": 1.4, "scale": 0.02}),
    ("loglogistic", {"shape": 1.6, "scale": 0.02}),
    ("loglogistic", {"shape": 40.0, "scale": 7.0}),
    ("invgauss", {"mu": 1.3, "scale": 0.02}),
    ("truncated_lognormal", {"mu": -4.0, "sigma": 0.9, "xmin": 0.02}),
    ("pareto", {"alpha": 1.7, "xmin": 0.02}),
    ("lognormal_mixture", APART),
]


def theta_of(params: dict[str, Any]) -> np.ndarray:
    """Logarithms of positive parameters, others as they are, a mixture's weights by their log-odds; xmin is given."""
    parts = []
    for name, value in params.items():
        v = np.atleast_1d(value)
        if name == "weights":
            parts.append([math.log(v[0] / v[1])])
        elif name != "xmin":
            parts.append(v if _real(name, params) else np.log(v))
    return np.concatenate(parts)


def params_of(theta: np.ndarray, like: dict[str, Any]) -> dict[str, Any]:
    """`theta_of` turned round."""
    out, i = {}, 0
    for name, value in like.items():
        if name == "xmin":
            out[name] = value
        elif name == "weights":
            first = 1 / (1 + math.exp(-theta[i]))
            out[name], i = (first, 1 - first), i + 1
        else:
            size = np.size(value)
            v = theta[i : i + size] if _real(name, like) else np.exp(theta[i : i + size])
            out[name], i = v if np.ndim(value) else float(v[0]), i + size
    return out


def _real(name: str, params: dict[str, Any]) -> bool:
    return name == "mus" or (name == "mu" and "sigma" in params)  # the mu of an inverse Gaussian is positive


def scipy_optimum(name: str, x: np.ndarray, near: dict[str, Any]) -> tuple[dict[str, Any], float, float]:
    """SciPy's parameters, its log-likelihood per value there, and that of the parameters given."""
    values, counts = np.unique(x, return_counts=True)

    def loss(theta: np.ndarray) -> float:
        return -float(TWINS[name](values, **params_of(theta, near)) @ counts) / len(x)

    start = theta_of(near)
    moved = start + 0.03 * np.cos(np.arange(len(start)))
    found = optimize.minimize(loss, moved, jac="3-point", method="BFGS", options={"gtol": 1e-6})
    return params_of(found.x, near), -float(found.fun), -loss(start)


NASTY = {
    "two values": [0.1, 0.3],
    "three values": [0.1, 0.2, 0.3],
    "two distinct values": [0.1] * 50 + [0.2] * 70,
    "one outlier": [*np.random.default_rng(0).normal(0, 0.02, 10_000), 5.0],
    "subnormals": 1e-45 * np.random.default_rng(0).integers(1, 1000, 500),
    "a huge range": 10 ** np.random.default_rng(0).uniform(-38, 38, 3000),
    "constant and one": [1.0] * 999 + [2.0],
    "constant and the next number": [1.0] * 999 + [float(np.nextafter(np.float32(1), np.float32(2)))],
    "constant and the largest": [1.0] * 9999 + [1e38],
    "constant and the smallest": [1.0] * 9999 + [1e-45],
    "a few neighbours": 1 + 1e-6 * np.arange(20),
    "a grid": np.arange(1, 128) / 127,
    "uniform": np.random.default_rng(0).random(5000),
    "all equal": [0.5] * 10,
    "one value": [0.3],
    "zeros": [0.0] * 10,
}


class Case(NamedTuple):
    """One truth: what was drawn and how it was stored, the fits of that, and the fit of the law without noise."""

    truth: dict[str, Any]
    stored: dict[str, np.ndarray]
    fits: dict[str, FamilyFit]
    without_noise: FamilyFit


@cache
def fitted(name: str) -> tuple[list[Case], dict[str, FamilyFit]]:
    """The cases of a family, and its fits of nasty values: all in one call, so that its program is compiled once."""
    truths = [params for family, params in CASES if family == name]
    drawn = [FAMILIES[name].sample(np.random.default_rng(7), params, N) for params in truths]
    stored = [{dtype: x.astype(kind) for dtype, kind in DTYPES.items()} for x in drawn]
    arrays = {f"{i} {dtype}": values for i, one in enumerate(stored) for dtype, values in one.items()}
    measured = tj.measure(arrays | {label: np.asarray(v, np.float32) for label, v in NASTY.items()}).stats
    measured |= {f"{i} law": exact_stats(name, params) for i, params in enumerate(truths)}
    found = maximum_likelihood([FAMILIES[name]], list(measured.values()), xmin=truths[0].get("xmin"))
    fits = {label: each[name] for label, each in zip(measured, found, strict=True)}
    cases = [
        Case(truth, one, {dtype: fits[f"{i} {dtype}"] for dtype in DTYPES}, fits[f"{i} law"])
        for i, (truth, one) in enumerate(zip(truths, stored, strict=True))
    ]
    return cases, {label: fits[label] for label in NASTY}


def test_every_family_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(TWINS) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_optimiser_that_sees_the_values_gets_further(name: str) -> None:
    for case in fitted(name)[0]:
        for dtype, fit in case.fits.items():
            assert (fit.status, fit.limit) == ("ok", None)
            x = case.stored[dtype].astype(np.float64)
            x = x[x >= fit.params.get("xmin", 0)]
            assert len(x) == fit.n
            params, best, ours = scipy_optimum(name, x, fit.params)
            # of a float32 value only the cell is known, and the fit minds a little where values lie in it
            assert best - ours <= (1e-8 if dtype == "float32" else 1e-10), (case.truth, dtype)
            for key, value in params.items():
                near = 1e-3 if dtype == "float32" else 1e-4
                np.testing.assert_allclose(fit.params[key], value, rtol=near, err_msg=f"{case.truth} {dtype} {key}")
            assert abs(fit.loglik_per_value - ours) <= reported_within(name, dtype, x, fit), (case.truth, dtype)
            k, total = len(theta_of(fit.params)), fit.n * fit.loglik_per_value
            assert fit.aic == pytest.approx(2 * k - 2 * total, rel=1e-12)
            assert fit.bic == pytest.approx(k * math.log(fit.n) - 2 * total, rel=1e-12)


def reported_within(name: str, dtype: str, x: np.ndarray, fit: FamilyFit) -> float:
    """How far the reported mean log-density may lie from that of the values, in nats.

    Every bfloat16 value is known. Of a float32 value only the cell is, and where the values lie in their cells is
    chance: the mean of f = ln p has SD cell · |f′| / √(12 n) from that, f′ by ln x. Among hundreds of cells the exact
    log-moments take nearly all of it away; of a tail there are none, and of a law as narrow as twenty cells a part is
    left: four such SD.
    """
    if dtype == "bfloat16":
        return 1e-7
    if not FAMILIES[name].tail and np.std(np.log(x)) > 0.2:
        return 1e-5
    step = 1e-4
    slope = (TWINS[name](x * math.exp(2 * step), **fit.params) - TWINS[name](x, **fit.params)) / (2 * step)
    return 4 * CELL * math.sqrt(np.mean(slope**2) / (12 * len(x)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_law_without_noise_gives_its_parameters_back(name: str) -> None:
    """All float32 cells filled as the law says: what is left is the error of nodes, ascent and parameters."""
    for case in fitted(name)[0]:
        fit = case.without_noise
        assert fit.status == "ok"
        for key, value in case.truth.items():
            near = 0.01 if key == "xmin" else 1e-4 if FAMILIES[name].tail else 1e-5  # xmin is the next edge of a cell
            np.testing.assert_allclose(fit.params[key], value, rtol=near, err_msg=f"{case.truth} {key}")


def test_exact_values_under_a_halfnormal() -> None:
    """Weibull and lognormal maxima of a law that they do not hold."""
    result = tj.fit({"w": exact_stats("halfnormal", {"scale": 0.02})}, families=["halfnormal", "weibull"])["w"]
    fits, lognormal = result.families, result.lognormal
    assert fits["weibull"].shape == pytest.approx(1.262757, abs=1e-6)
    assert fits["weibull"].scale / 0.02 == pytest.approx(0.855417, abs=1e-6)
    assert fits["halfnormal"].loglik_per_value - fits["weibull"].loglik_per_value == pytest.approx(0.0106098, abs=1e-7)
    assert lognormal.sigma == pytest.approx(1.1107207, abs=1e-7)
    assert lognormal.mu == pytest.approx(math.log(0.02) - (np.euler_gamma + math.log(2)) / 2, abs=1e-9)
    assert result.delta_nats == pytest.approx(0.1629749, abs=1e-7)  # the gain of the truth is the divergence
    assert lognormal.kl_nats == pytest.approx(0.1629749, abs=1e-5)
    assert lognormal.ks == pytest.approx(0.0963524, abs=1e-6)
    assert result.checks["lognormal"].goodness.ks == pytest.approx(0.0963524, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_nasty_values_get_a_status(name: str) -> None:
    """Never an exception, a warning (which is an error here), or a number missing from a fit that is "ok"."""
    for label, fit in fitted(name)[1].items():
        check_nasty(name, label, fit)


def check_nasty(name: str, label: str, fit: FamilyFit) -> None:
    assert fit.status in ("ok", "weak", "not converged", "degenerate"), label
    assert bool(fit.params) == (fit.status != "degenerate"), label
    if label in ("one value", "zeros"):
        assert fit.status == "degenerate", label
    if label == "all equal":  # they have a scale, and no shape
        assert fit.status == ("ok" if name in ("halfnormal", "exponential") else "degenerate")
    if fit.status in ("ok", "weak"):
        for value in (fit.loglik_per_value, fit.aic, fit.bic, *fit.params.values()):
            assert np.isfinite(value).all(), label
    if fit.status == "ok":
        for value in fit.se.values():
            assert np.isfinite(value).all(), label
            assert np.min(value) > 0, label
        assert fit.limit is None, label


def test_an_outlier_moves_a_shape_no_further_than_it_should() -> None:
    """5.0 among 10⁴ half-normal values: the maximum of likelihood on the raw values, not where an optimiser stalls."""
    x = np.abs(np.asarray(NASTY["one outlier"], np.float32)).astype(np.float64)
    fit = fitted("weibull")[1]["one outlier"]
    params, best, ours = scipy_optimum("weibull", x, fit.params)
    assert fit.shape == pytest.approx(params["shape"], rel=1e-3)
    assert best - ours < 1e-6
    assert params["shape"] > 1
