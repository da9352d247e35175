"""Densities and both tails of every family against mpmath, past where floats underflow and at extreme parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

from teleojax.families import FAMILIES

DIGITS = 60
Pair = tuple[mpf, mpf]


def phi(z: mpf) -> mpf:
    """P(Z ≤ z) of the standard normal."""
    return mp.erfc(-z / mp.sqrt(2)) / 2


def gamma_tails(a: mpf, log_x: mpf) -> Pair:
    """P(a, x), Q(a, x): the power series to a little past the mean, from there the continued fraction."""
    x = mp.exp(log_x)
    factor = mp.exp(a * log_x - x - mp.loggamma(a))
    if x < a + 5 * mp.sqrt(a) + 2:
        term, total, n = 1 / a, 1 / a, 1
        while term > total * mpf(10) ** -DIGITS:
            term *= x / (a + n)
            total, n = total + term, n + 1
        lower = factor * total
        return lower, 1 - lower
    fraction = mpf(0)
    for k in range(3000, 0, -1):
        fraction = k * (k - a) / (x + 2 * k + 1 - a - fraction)
    upper = factor / (x + 1 - a - fraction)
    return 1 - upper, upper


def half_t_tails(z: mpf, df: mpf) -> Pair:
    """The incomplete beta function by its power series, from the side that has the smaller argument."""

    def series(x: mpf, rest: mpf, a: mpf, b: mpf) -> mpf:
        term = total = mpf(1)
        n = 0
        while term > total * mpf(10) ** -DIGITS:
            term *= (a + b + n) / (a + 1 + n) * x
            total, n = total + term, n + 1
        return mp.exp(a * mp.log(x) + b * mp.log(rest)) / (a * mp.beta(a, b)) * total

    x, rest = df / (df + z * z), z * z / (df + z * z)
    if x < mpf("0.99") or z > 10:
        upper = series(x, rest, df / 2, mpf(1) / 2)
        return 1 - upper, upper
    lower = series(rest, x, mpf(1) / 2, df / 2)
    return lower, 1 - lower


def invgauss_tails(x: mpf, mu: mpf) -> Pair:
    b, c = (x / mu - 1) / mp.sqrt(x), (x / mu + 1) / mp.sqrt(x)
    more = mp.exp(2 / mu) * phi(-c)
    return phi(b) + more, phi(-b) - more


def truncated_tails(t: mpf, m: mpf, s: mpf) -> Pair:
    upper = phi((m - t) / s) / phi(m / s)
    return (phi((t - m) / s) - phi(-m / s)) / phi(m / s) if m > 0 else 1 - upper, upper


TAILS: dict[str, Callable[..., Pair]] = {  # P(X ≤ x) and P(X > x)
    "lognormal": lambda x, mu, sigma: (phi((mp.log(x) - mu) / sigma), phi((mu - mp.log(x)) / sigma)),
    "halfnormal": lambda x, scale: (mp.erf(x / scale / mp.sqrt(2)), mp.erfc(x / scale / mp.sqrt(2))),
    "weibull": lambda x, shape, scale: (-mp.expm1(-((x / scale) ** shape)), mp.exp(-((x / scale) ** shape))),
    "exponential": lambda x, scale: (-mp.expm1(-x / scale), mp.exp(-x / scale)),
    "gamma": lambda x, shape, scale: gamma_tails(shape, mp.log(x / scale)),
    "gengamma": lambda x, a, c, scale: gamma_tails(a, c * mp.log(x / scale))[:: 1 if c > 0 else -1],
    "half_t": lambda x, df, scale: half_t_tails(x / scale, df),
    "halfgennorm": lambda x, beta, scale: gamma_tails(1 / beta, beta * mp.log(x / scale)),
    "loglogistic": lambda x, shape, scale: (1 / (1 + (scale / x) ** shape), 1 / (1 + (x / scale) ** shape)),
    "invgauss": lambda x, mu, scale: invgauss_tails(x / scale, mu),
    "truncated_lognormal": lambda x, mu, sigma, xmin: truncated_tails(mp.log(x / xmin), mu - mp.log(xmin), sigma),
    "pareto": lambda x, alpha, xmin: (-mp.expm1(alpha * mp.log(xmin / x)), (xmin / x) ** alpha),
    "lognormal_mixture": lambda x, weights, mus, sigmas: tuple(
        sum(w * TAILS["lognormal"](x, m, s)[side] for w, m, s in zip(weights, mus, sigmas, strict=True))
        for side in (0, 1)
    ),
}


def normal(z: mpf) -> mpf:
    return mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi)


def gengamma_density(u: mpf, a: mpf, c: mpf) -> mpf:
    return abs(c) * mp.exp(a * c * mp.log(u) - u**c - mp.loggamma(a))


DENSITY: dict[str, Callable[..., mpf]] = {  # of y = ln x
    "lognormal": lambda x, mu, sigma: normal((mp.log(x) - mu) / sigma) / sigma,
    "halfnormal": lambda x, scale: 2 * x / scale * normal(x / scale),
    "weibull": lambda x, shape, scale: gengamma_density(x / scale, mpf(1), shape),
    "exponential": lambda x, scale: gengamma_density(x / scale, mpf(1), mpf(1)),
    "gamma": lambda x, shape, scale: gengamma_density(x / scale, shape, mpf(1)),
    "gengamma": lambda x, a, c, scale: gengamma_density(x / scale, a, c),
    "half_t": lambda x, df, scale: 2 * (x / scale) * mp.exp(mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2))
    / mp.sqrt(df * mp.pi) * mp.exp(-(df + 1) / 2 * mp.log1p((x / scale) ** 2 / df)),
    "halfgennorm": lambda x, beta, scale: gengamma_density(x / scale, 1 / beta, beta),
    "loglogistic": lambda x, shape, scale: shape * (x / scale) ** shape / (1 + (x / scale) ** shape) ** 2,
    "invgauss": lambda x, mu, scale: mp.exp(-((x / scale - mu) ** 2) / (2 * x / scale * mu**2))
    / mp.sqrt(2 * mp.pi * x / scale),
    "truncated_lognormal": lambda x, mu, sigma, xmin: normal((mp.log(x) - mu) / sigma) / sigma
    / phi((mu - mp.log(xmin)) / sigma),
    "pareto": lambda x, alpha, xmin: alpha * (xmin / x) ** alpha,
    "lognormal_mixture": lambda x, weights, mus, sigmas: sum(
        w * DENSITY["lognormal"](x, m, s) for w, m, s in zip(weights, mus, sigmas, strict=True)
    ),
}  # fmt: skip

CASES: list[tuple[str, dict[str, Any], list[float]]] = [  # family, parameters, ln x
    ("lognormal", {"mu": -4.0, "sigma": 1.1}, [-70, -30, -4.5, 0, 30, 62]),
    ("halfnormal", {"scale": 0.02}, [-400, -30, -4, -3, -1, 0.18]),
    ("weibull", {"shape": 0.7, "scale": 0.02}, [-700, -30, -4, 0, 8]),
    ("weibull", {"shape": 30.0, "scale": 0.02}, [-60, -5, -4, -3.8, -3.6]),
    ("exponential", {"scale": 0.02}, [-300, -30, -4, 0, 3.5]),
    ("gamma", {"shape": 1e-3, "scale": 0.1}, [-600, -30, -4, 2, 5]),
    ("gamma", {"shape": 0.5, "scale": 0.1}, [-600, -30, -4, 2, 5]),
    ("gamma", {"shape": 40.0, "scale": 0.1}, [-30, -8, 0, 1.3, 3, 5]),
    ("gamma", {"shape": 3e4, "scale": 0.1}, [7.7, 7.9, 7.98, 8.0, 8.03, 8.1, 8.3]),
    ("gengamma", {"a": 0.2, "c": 8.0, "scale": 0.1}, [-600, -10, -3, -2.2, -1.5]),
    ("gengamma", {"a": 0.7, "c": -1.5, "scale": 0.1}, [-7, -3, 0, 30, 600]),
    ("gengamma", {"a": 300.0, "c": -0.05, "scale": 1e50}, [-60, -20, 0, 2, 5, 30, 80]),
    ("half_t", {"df": 0.05, "scale": 0.02}, [-600, -30, -5, -3, 2, 40, 600]),
    ("half_t", {"df": 3.0, "scale": 0.02}, [-600, -30, -5, -3, 2, 40, 600]),
    ("half_t", {"df": 40.0, "scale": 0.02}, [-30, -5, -3, -1.5, 1, 40, 600]),
    ("half_t", {"df": 1001.0, "scale": 0.02}, [-600, -30, -5, -3.9, -3, -2.53, -2.5, -1, 3, 40]),
    ("half_t", {"df": 1e5, "scale": 0.02}, [-600, -30, -5, -3, -2.6, -1, 0.18]),
    ("halfgennorm", {"beta": 0.2, "scale": 1e-6}, [-600, -30, -10, -2, 5, 30]),
    ("halfgennorm", {"beta": 7.0, "scale": 0.1}, [-600, -30, -4, -2.3, -2, -1.3]),
    ("halfgennorm", {"beta": 3e3, "scale": 0.1}, [-600, -30, -4, -2.31, -2.302, -2.3, -2.298]),
    ("loglogistic", {"shape": 3.0, "scale": 0.02}, [-600, -30, -4, 2, 40, 600]),
    ("invgauss", {"mu": 1e-6, "scale": 1e4}, [-4.7, -4.61, -4.605, -4.6, -4.5]),
    ("invgauss", {"mu": 0.3, "scale": 0.02}, [-12, -8, -5.5, -5, -4, 1, 3]),
    ("invgauss", {"mu": 20.0, "scale": 0.02}, [-11, -6, -2, 2, 5, 8, 10]),
    ("invgauss", {"mu": 1e8, "scale": 1e-9}, [-27, -20, -4, -2, 2, 5, 20]),
    ("truncated_lognormal", {"mu": 4.0, "sigma": 0.5, "xmin": 0.02}, [-3.91, -3, -1, 3, 4, 5, 20]),
    ("truncated_lognormal", {"mu": -3.0, "sigma": 1.0, "xmin": 0.02}, [-3.91, -3.8, -3, -2, 0, 20, 57]),
    ("truncated_lognormal", {"mu": -4.5, "sigma": 0.8, "xmin": 0.02}, [-3.91, -3.8, -3, -2, 0, 20, 57]),
    ("truncated_lognormal", {"mu": -90.0, "sigma": 2.0, "xmin": 0.02}, [-3.91, -3.9, -3.6, -3, 0, 20, 57]),
    ("pareto", {"alpha": 2.5, "xmin": 0.02}, [-3.91, -3, 0, 200, 600]),
    ("lognormal_mixture", {"weights": (0.2, 0.8), "mus": (-6.0, -4.0), "sigmas": (1.5, 0.3)}, [-90, -9, -4, -3, 0, 80]),
]
IDS = [f"{name}{tuple(p.values())}" for name, p, _ in CASES]


def exactly(params: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(map(mpf, v)) if isinstance(v, tuple) else mpf(v) for k, v in params.items()}


@pytest.mark.parametrize(("name", "params", "log_x"), CASES, ids=IDS)
def test_both_tails(name: str, params: dict, log_x: list[float]) -> None:
    x = np.exp(np.asarray(log_x, np.float64))
    got = np.stack([FAMILIES[name].logcdf(x, params), FAMILIES[name].logsf(x, params)], axis=1)
    for row, value in zip(got, x, strict=True):
        with mp.workdps(DIGITS):
            lower, upper = TAILS[name](mpf(float(value)), **exactly(params))
            # the logarithm of the larger from the smaller, which is the one that is known to all its digits
            want = [
                mp.log(lower) if lower < 0.5 else mp.log1p(-upper),
                mp.log(upper) if upper < 0.5 else mp.log1p(-lower),
            ]
        np.testing.assert_allclose(row, [float(v) for v in want], rtol=1e-10, atol=1e-300, err_msg=f"at ln x = {log_x}")


@pytest.mark.parametrize(("name", "params", "log_x"), CASES, ids=IDS)
def test_density(name: str, params: dict, log_x: list[float]) -> None:
    x = np.exp(np.asarray(log_x, np.float64))
    with mp.workdps(DIGITS):
        want = [float(mp.log(DENSITY[name](mpf(float(v)), **exactly(params)) / mpf(float(v)))) for v in x]
    np.testing.assert_allclose(FAMILIES[name].logpdf(x, params), want, rtol=1e-11, atol=1e-11)


def test_every_family_is_here() -> None:
    assert {name for name, *_ in CASES} == set(FAMILIES) == set(TAILS) == set(DENSITY)


@pytest.mark.parametrize("a", [1e-6, 0.03, 0.5, 1, 2.5, 60, 250, 3000, 1e5])
def test_logarithms_of_the_incomplete_gamma_functions(a: float) -> None:
    from teleojax.families._special import log_gammainc

    deviation = np.asarray([-300, -60, -38, -20, -8, -4.5, -4.3, -2, -0.5, 0, 0.5, 2, 4.3, 4.5, 8, 20, 38, 60])
    log_x = np.log(a) + deviation / np.sqrt(a)
    log_x = log_x[(log_x > -2000) & (log_x < np.log(a + 1) + 8)]
    for got_lower, got_upper, value in zip(*log_gammainc(a, log_x), log_x, strict=True):
        with mp.workdps(DIGITS):
            lower, upper = gamma_tails(mpf(a), mpf(float(value)))
            small = float(mp.log(min(lower, upper)))
            large = float(mp.log1p(-min(lower, upper)))
        want = (small, large) if lower < upper else (large, small)
        # ln(x/a) is rounded to 1e-16 of ln a, which a·(x/a − 1) multiplies
        np.testing.assert_allclose((got_lower, got_upper), want, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("u", [1e-300, 1e-12, 0.01, 0.0999, 0.1001, 0.5, 1, 30, 1e6, 1e13])
def test_stirlings_remainder(u: float) -> None:
    from teleojax.families._special import stirling_remainder

    with mp.workdps(400):
        a = 1 / mpf(u)
        want = mpf(u) / 12 if u < 1e-100 else mp.loggamma(a) - (a - 0.5) * mp.log(a) + a - mp.log(2 * mp.pi) / 2
    np.testing.assert_allclose(stirling_remainder(np.asarray(u)), float(want), rtol=1e-12, atol=1e-15)


def test_quantiles_meet_at_the_middle_and_reach_the_ends() -> None:
    q = np.asarray([1e-300, 1e-30, 0.5 - 1e-9, 0.5, 0.5 + 1e-9, 1 - 1e-12])
    for name, params, _ in CASES:
        x = FAMILIES[name].ppf(q, params)
        assert np.all(np.diff(x) >= 0), name
        inside = x > (params.get("xmin", 0) or 1e-300) * (1 + 1e-6)
        np.testing.assert_allclose(FAMILIES[name].logcdf(x, params)[inside], np.log(q)[inside], rtol=1e-9, err_msg=name)


def test_mpmath_itself_agrees_with_the_series_here() -> None:
    with mp.workdps(30):
        assert mpmath.almosteq(gamma_tails(mpf(3), mp.log(mpf(2)))[0], mp.gammainc(3, 0, 2, regularized=True), 1e-25)
        assert mpmath.almosteq(gamma_tails(mpf(3), mp.log(mpf(20)))[1], mp.gammainc(3, 20, regularized=True), 1e-25)
        want = mp.betainc(mpf(3) / 2, 0.5, 0, mpf(3) / 7, regularized=True)
        assert mpmath.almosteq(half_t_tails(mpf(2), mpf(3))[1], want, 1e-25)
