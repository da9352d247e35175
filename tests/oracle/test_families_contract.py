"""What every family promises to fits: derivatives, starts, parameters there and back, special cases, limits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf
from scipy.special import ndtri

import teleojax as tj
from teleojax import UsageError
from teleojax.families import FAMILIES, Family, Shape, register
from teleojax.fits import maximum_likelihood
from tests.oracle.test_families_scipy import IDS, TWINS

CASES = pytest.mark.parametrize(("name", "params"), [t[:2] for t in TWINS], ids=IDS)
NAMES = pytest.mark.parametrize("name", list(FAMILIES))


def rescaled(name: str, params: dict[str, Any], shift: float) -> dict[str, Any]:
    """The parameters of e^shift · x."""
    moved = {k: v * math.exp(shift) for k, v in params.items() if k in ("scale", "xmin")}
    if "lognormal" in name:
        moved |= {k: tuple(np.add(v, shift)) if k == "mus" else v + shift for k, v in params.items() if k[:2] == "mu"}
    return {**params, **moved}


def in_float64(function: Callable, *args: Any) -> Any:
    """NumPy results of a JAX function of float64 arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*(jnp.asarray(a, jnp.float64) for a in args)))


def moments(name: str, params: dict) -> tuple[Shape, float]:
    """Of y = ln x, or of the excess over ln xmin, by 10^4 quantiles; and the centre that starts are relative to."""
    y = np.log(FAMILIES[name].ppf((np.arange(10_000) + 0.5) / 10_000, params))
    sigma, d = y.std(), y - y.mean()
    shape = Shape(float(sigma), float(np.mean(d**3) / sigma**3), float(np.mean(d**4) / sigma**4 - 3))
    return shape, math.log(params["xmin"]) if FAMILIES[name].tail else float(y.mean())


@CASES
def test_parameters_there_and_back(name: str, params: dict) -> None:
    family = FAMILIES[name]
    theta, centre = family.unconstrain(params)
    assert theta.dtype == np.float64
    assert theta.shape == (family.n_free,)
    for shift in (0.0, 3.0):
        back = in_float64(family.constrain, theta, centre + shift)
        assert set(back) == set(family.parameters)
        for key, want in rescaled(name, params, shift).items():
            np.testing.assert_allclose(back[key], want, rtol=1e-11, atol=1e-14, err_msg=key)
    again, moved = family.unconstrain(rescaled(name, params, 3.0))
    x = family.ppf(np.asarray([0.01, 0.4, 0.99]), params)
    np.testing.assert_allclose(
        family.logpdf(x * math.exp(3), rescaled(name, params, 3.0)), family.logpdf(x, params) - 3
    )
    assert (again.shape, moved) == (theta.shape, pytest.approx(centre + 3 if family.tail else 0.0))


@CASES
def test_density_integrates_to_one(name: str, params: dict) -> None:
    family = FAMILIES[name]
    theta, centre = family.unconstrain(params)
    ends = np.log(family.ppf(np.asarray([1e-14, 0.01, 0.5, 0.99, 1 - 1e-14]), params)) - centre
    edges = np.concatenate([np.linspace(a, b, 300) for a, b in itertools.pairwise(ends)])
    node, weight = np.polynomial.legendre.leggauss(8)
    half = np.diff(edges)[:, None] / 2
    y = (edges[:-1] + edges[1:])[:, None] / 2 + half * node
    density = np.exp(in_float64(family.log_density, y, theta))
    assert density.shape == y.shape
    assert np.sum(half * weight * density) == pytest.approx(1, abs=1e-11)


@NAMES
def test_starts_are_in_the_box(name: str) -> None:
    family = FAMILIES[name]
    low, high = np.asarray(family.bounds).T
    lengths = set()
    for sigma, skew, kurtosis in itertools.product((1e-5, 0.03, 1.1, 9.0), (-30.0, -1.5, 0.0, 0.4, 30.0), (-2.0, 3.0)):
        starts = family.starts(Shape(sigma, skew, kurtosis))
        lengths.add(len(starts))
        assert starts.dtype == np.float64
        assert starts.shape[1:] == low.shape
        assert np.all(np.isfinite(starts) & (low <= starts) & (starts <= high))
        y = np.asarray([0.1, 1, 3]) * sigma
        for start in starts:
            assert np.all(np.isfinite(in_float64(family.log_density, y, start)))
    assert len(lengths) == 1


# three moments do not tell five parameters, nor how far a limit is
TOLD = [t[:2] for t in TWINS if t[0] != "lognormal_mixture" and not FAMILIES[t[0]].limit(t[1])]


@pytest.mark.parametrize(("name", "params"), TOLD)
def test_a_start_is_near(name: str, params: dict) -> None:
    family = FAMILIES[name]
    shape, centre = moments(name, params)
    truth, _ = family.unconstrain(rescaled(name, params, -centre))
    away = np.abs(family.starts(shape) - truth).max(axis=1)
    assert away.min() < math.log(3) + 1e-6


@NAMES
def test_derivatives(name: str) -> None:
    """Gradient and Hessian beside central differences, at every truth and every start."""
    family = FAMILIES[name]

    @jax.jit
    def measured(y: jax.Array, theta: jax.Array) -> tuple:
        def total(theta: jax.Array) -> jax.Array:
            return jnp.mean(family.log_density(y, theta))

        return total(theta), jax.grad(total)(theta), jax.hessian(total)(theta)

    step, checked = 1e-5, 0
    for params in [p for n, p, _ in TWINS if n == name]:
        shape, centre = moments(name, params)
        truth, _ = family.unconstrain(rescaled(name, params, -centre))
        y = np.log(family.ppf(np.asarray([0.01, 0.1, 0.3, 0.6, 0.9, 0.99]), params)) - centre
        for theta in [truth, *family.starts(shape)]:
            value, gradient, hessian = in_float64(measured, y, theta)
            if not np.abs(value) < 1e3:
                continue  # a start far from the data, where differences have no digits
            sides = [[in_float64(measured, y, theta + s * step * unit) for s in (1, -1)] for unit in np.eye(len(theta))]
            slopes = [(up[0] - down[0]) / (2 * step) for up, down in sides]
            curvatures = [(up[1] - down[1]) / (2 * step) for up, down in sides]
            size = 1 + np.abs(curvatures).max()
            np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-8 * size)
            np.testing.assert_allclose(hessian, curvatures, rtol=1e-5, atol=1e-7 * size)
            checked += 1
    assert checked >= 2


@NAMES
def test_nothing_overflows_in_the_box(name: str) -> None:
    """At the corners, in the middle and at random, for y to ±700: values, gradients and Hessians are numbers."""
    family = FAMILIES[name]
    low, high = np.asarray(family.bounds).T
    corners = [np.asarray(c) for c in itertools.product(*family.bounds)]
    inside = np.random.default_rng(0).uniform(np.maximum(low, -20), np.minimum(high, 20), (20, len(low)))
    thetas = np.concatenate([corners, inside, [np.clip(np.zeros_like(low), low, high)]])
    y = np.asarray([-700, -80, -5, -1e-3, 0, 1e-3, 1, 5, 80, 700.0])
    y = np.abs(y) if family.tail else y

    @jax.jit
    def each(thetas: jax.Array, y: jax.Array) -> tuple:
        slope = jax.jacrev(family.log_density, argnums=1)
        functions = (family.log_density, slope, jax.jacfwd(slope, argnums=1))
        return tuple(jax.vmap(f, (None, 0))(y, thetas) for f in functions)

    for part in in_float64(each, thetas, y):
        bad = ~np.isfinite(part).reshape(len(thetas), len(y), -1).all(axis=-1)
        assert not bad.any(), [(thetas[i].tolist(), y[j]) for i, j in np.argwhere(bad)[:3]]


@CASES
def test_vmap_is_the_loop(name: str, params: dict) -> None:
    family = FAMILIES[name]
    theta, _ = family.unconstrain(params)
    thetas = theta + np.linspace(-0.3, 0.3, 4)[:, None]
    y = np.linspace(0.1, 2, 12).reshape(3, 4)
    batched = in_float64(jax.vmap(family.log_density, (None, 0)), y, thetas)
    np.testing.assert_allclose(batched, [in_float64(family.log_density, y, t) for t in thetas], rtol=1e-13, atol=1e-13)
    at_once = in_float64(jax.vmap(family.constrain), thetas, np.arange(4.0))
    one_by_one = [in_float64(family.constrain, t, c) for t, c in zip(thetas, np.arange(4.0), strict=True)]
    for key, values in at_once.items():
        np.testing.assert_allclose(values, [one[key] for one in one_by_one], rtol=1e-13)


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.tail])
def test_tails_begin_at_xmin(name: str) -> None:
    family = FAMILIES[name]
    params = next(p for n, p, _ in TWINS if n == name)
    xmin = params["xmin"]
    x = np.asarray([xmin / 2, xmin * (1 - 1e-9), xmin, xmin * (1 + 1e-9)])
    assert np.isfinite(family.logpdf(x, params)).tolist() == [False, False, True, True]
    assert family.cdf(x, params)[:3].tolist() == [0, 0, 0]
    assert family.logcdf(x, params)[3] == pytest.approx(family.logpdf(x, params)[3] + math.log(1e-9 * xmin), rel=1e-6)
    theta, _ = family.unconstrain(params)
    slope = in_float64(jax.jacfwd(family.log_density, argnums=1), [-1.0, -1e-9, 0.0], theta)
    assert np.all(np.isfinite(slope))


SPECIAL = [  # the wider family and its parameters, the special case and its own, how near in ln p
    ("weibull", {"shape": 1.0, "scale": 0.3}, "exponential", {"scale": 0.3}, 1e-13),
    ("gamma", {"shape": 1.0, "scale": 0.3}, "exponential", {"scale": 0.3}, 1e-13),
    ("gengamma", {"a": 1.0, "c": 1.0, "scale": 0.3}, "exponential", {"scale": 0.3}, 1e-13),
    ("gengamma", {"a": 1.0, "c": 0.7, "scale": 0.3}, "weibull", {"shape": 0.7, "scale": 0.3}, 1e-13),
    ("gengamma", {"a": 5.0, "c": 1.0, "scale": 0.3}, "gamma", {"shape": 5.0, "scale": 0.3}, 1e-13),
    ("gengamma", {"a": 0.5, "c": 2.0, "scale": 0.3}, "halfnormal", {"scale": 0.3 / math.sqrt(2)}, 1e-13),
    ("gengamma", {"a": 0.8, "c": 1.25, "scale": 0.3}, "halfgennorm", {"beta": 1.25, "scale": 0.3}, 1e-13),
    ("half_t", {"df": 1e6, "scale": 0.3}, "halfnormal", {"scale": 0.3}, 1e-4),
    ("halfgennorm", {"beta": 2.0, "scale": 0.3}, "halfnormal", {"scale": 0.3 / math.sqrt(2)}, 1e-13),
    ("halfgennorm", {"beta": 1.0, "scale": 0.3}, "exponential", {"scale": 0.3}, 1e-13),
    (
        "lognormal_mixture", {"weights": (0.4, 0.6), "mus": (-2.0, -2.0), "sigmas": (0.5, 0.5)},
        "lognormal", {"mu": -2.0, "sigma": 0.5}, 1e-13,
    ),
    ("truncated_lognormal", {"mu": -1e6, "sigma": 1e3, "xmin": 0.1}, "pareto", {"alpha": 1.0, "xmin": 0.1}, 1e-4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wide", "params", "case", "its"), [s[:4] for s in SPECIAL], ids=[f"{s[0]}-{s[2]}" for s in SPECIAL]
)
def test_special_cases(wide: str, params: dict, case: str, its: dict) -> None:
    x = FAMILIES[case].ppf(np.linspace(0.01, 0.99, 99), its)
    near = next(s[4] for s in SPECIAL if (s[0], s[2]) == (wide, case))
    np.testing.assert_allclose(FAMILIES[wide].logpdf(x, params), FAMILIES[case].logpdf(x, its), atol=near)
    np.testing.assert_allclose(FAMILIES[wide].logcdf(x, params), FAMILIES[case].logcdf(x, its), atol=near)


def test_special_cases_are_those_declared() -> None:
    shown = {(wide, case) for wide, _, case, *_ in SPECIAL} | {("gengamma", "lognormal")}  # that one is tested next
    assert shown == {(f.name, case) for f in FAMILIES.values() for case in f.contains}


@jax.jit
def with_derivatives(y: jax.Array, theta: jax.Array) -> tuple:
    density = FAMILIES["gengamma"].log_density
    return density(y, theta), jax.grad(density, 1)(y, theta), jax.hessian(density, 1)(y, theta)


@pytest.mark.parametrize("q", [-1e-3, -1e-9, 0.0, 1e-12, 1e-6, 1e-3, 0.2, 0.24, 0.3])
def test_generalised_gamma_is_smooth_through_the_lognormal(q: float) -> None:
    """Value, gradient and Hessian in (m, ln s, Q) beside differences taken in 130 digits."""
    m, log_s, y = 0.1, -0.2, 1.7

    def exact(m: mpf, log_s: mpf, q: mpf) -> mpf:
        w, a = (mpf(y) - m) / mp.exp(log_s), q**-2
        return a * (q * w - mp.exp(q * w)) + a * mp.log(a) - mp.loggamma(a) + mp.log(abs(q)) - log_s

    with mp.workdps(130):
        point = (mpf(m), mpf(log_s), mpf(q) if q else mpf(10) ** -15)

        def derivative(*orders: int) -> float:
            return float(mp.diff(exact, point, orders, h=mpf(10) ** -25))

        value, units = float(exact(*point)), [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
        gradient = [derivative(*u) for u in units]
        hessian = [[derivative(*np.add(u, v).tolist()) for v in units] for u in units]
    theta = np.asarray([m, log_s, q])
    got, slope, curvature = in_float64(with_derivatives, y, theta)
    np.testing.assert_allclose(got, value, rtol=1e-14)
    np.testing.assert_allclose(slope, gradient, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(curvature, hessian, rtol=1e-11, atol=1e-12)
    if q == 0:
        lognormal = in_float64(FAMILIES["lognormal"].log_density, y, theta[:2])
        np.testing.assert_allclose(got, lognormal, rtol=1e-15)


@pytest.mark.parametrize("q", [0.0, 1e-9, -1e-9, 1e-4, -3e-3])
@pytest.mark.parametrize("s", [0.01, 1.1, 8.0])
def test_generalised_gamma_names_a_law_near_the_lognormal(q: float, s: float) -> None:
    family = FAMILIES["gengamma"]
    params = {k: float(v) for k, v in in_float64(family.constrain, [-4.0, math.log(s), q], 0.3).items()}
    assert all(map(math.isfinite, params.values()))
    assert params["scale"] > 0
    assert family.limit(params) == "lognormal"
    z = ndtri((np.arange(2000) + 0.5) / 2000)
    y = -3.7 - 0.5 * s * q + s * z  # the lognormal that has the mean of ln x
    got = family.logpdf(np.exp(y), params) + y
    divergence = np.mean(-0.5 * z * z - math.log(s) - 0.5 * math.log(2 * math.pi) - got)
    assert divergence < 1.2 / params["a"] / 12
    assert divergence < (1e-3 if s > 2 else 2e-5)  # ln(scale) would be −4000 s at Q = 0.001
    slope = in_float64(jax.jacfwd(family.constrain), [-4.0, math.log(s), q], 0.3)
    assert all(np.all(np.isfinite(v)) for v in slope.values())


@pytest.mark.parametrize("scale", [1.1, 0.004])
def test_no_component_of_a_mixture_settles_on_one_value(scale: float) -> None:
    """Lognormal values for which one narrowed down to sigma = 6e-6, for a gain of up to 184 nats in all."""
    seeds = (201, 369, 400, 438)
    drawn = {str(s): np.exp(-4 + scale * np.random.default_rng(s).standard_normal(2000)) for s in seeds}
    measured = tj.measure({name: x.astype(np.float32) for name, x in drawn.items()})
    for fits in maximum_likelihood([FAMILIES["lognormal"], FAMILIES["lognormal_mixture"]], list(measured.values())):
        mixture, single = fits["lognormal_mixture"], fits["lognormal"]
        assert mixture.maximised
        assert max(mixture.sigmas) / min(mixture.sigmas) < math.exp(4) * (1 + 1e-9)
        assert -1e-6 < 2000 * (mixture.loglik_per_value - single.loglik_per_value) < 10


LIMITS = [
    ("gengamma", {"a": 50.0, "c": 0.1, "scale": 1e-10}, None),
    ("gengamma", {"a": 1e4, "c": 0.1, "scale": 1e-40}, "lognormal"),
    ("half_t", {"df": 100.0, "scale": 1.0}, None),
    ("half_t", {"df": 300.0, "scale": 1.0}, "halfnormal"),
    ("truncated_lognormal", {"mu": -9.0, "sigma": 1.0, "xmin": 1.0}, None),
    ("truncated_lognormal", {"mu": -17.0, "sigma": 1.0, "xmin": 1.0}, "pareto"),
    ("lognormal_mixture", {"weights": (0.5, 0.5), "mus": (0.0, 1.0), "sigmas": (1.0, 0.5)}, None),
    ("lognormal_mixture", {"weights": (0.5, 0.5), "mus": (0.0, 0.1), "sigmas": (1.0, 1.0)}, "lognormal"),
    ("lognormal_mixture", {"weights": (5e-4, 0.9995), "mus": (-9.0, 0.1), "sigmas": (1.0, 1.0)}, "lognormal"),
]


@pytest.mark.parametrize(("name", "params", "limit"), LIMITS)
def test_limits(name: str, params: dict, limit: str | None) -> None:
    assert FAMILIES[name].limit(params) == limit


@pytest.mark.parametrize(
    ("name", "params", "limit", "divergence"),
    [
        ("half_t", {"df": 100.0, "scale": 1.0}, "halfnormal", 0.75 / 100**2),
        ("truncated_lognormal", {"mu": -20.0, "sigma": 1.0, "xmin": 1.0}, "pareto", 0.5 / 20**4),
        ("gengamma", {"a": 400.0, "c": 0.1, "scale": 1e-20}, "lognormal", 1 / 400 / 12),
    ],
)
def test_divergences_that_limits_are_set_by(name: str, params: dict, limit: str, divergence: float) -> None:
    """Kullback–Leibler from the nearest member of the simpler family, by quadrature."""
    x = FAMILIES[name].ppf((np.arange(100_000) + 0.5) / 100_000, params)
    y = np.log(x)
    nearest = {
        "halfnormal": lambda: {"scale": math.sqrt(100 / 98)},
        "pareto": lambda: {"alpha": 1 / y.mean(), "xmin": 1.0},
        "lognormal": lambda: {"mu": y.mean(), "sigma": y.std()},
    }[limit]()
    got = np.mean(FAMILIES[name].logpdf(x, params) - FAMILIES[limit].logpdf(x, nearest))
    assert got == pytest.approx(divergence, rel=0.1)


def test_a_family_of_ones_own() -> None:
    mine = dataclasses.replace(FAMILIES["weibull"], name="mine")
    try:
        register(mine)
        assert list(FAMILIES)[-1] == "mine"
        with pytest.raises(UsageError, match=r"a second family named 'mine'.*lognormal.*Rename"):
            register(mine)
        assert isinstance(FAMILIES["mine"], Family)
    finally:
        del FAMILIES["mine"]
    with pytest.raises(UsageError, match="'gamma'"):
        register(FAMILIES["gamma"])
