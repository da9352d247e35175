"""Initializers: moments exact as their docstrings say, fans as JAX has them, one key one array."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import teleojax as tj
from teleojax import train

N = 10**6
KEY = jax.random.key(7)
SHAPES = (((512, 256), {}), ((3, 3, 64, 96), {}), ((96, 64, 5), {"in_axis": 1, "out_axis": 0}),
          ((4, 200, 300), {"batch_axis": 0}), ((3, 3, 8, 8, 40), {"batch_axis": (2,)}))  # fmt: skip
TWINS = {
    "he": (train.lognormal_he, jax.nn.initializers.he_normal),
    "glorot": (train.lognormal_glorot, jax.nn.initializers.glorot_normal),
    "lecun": (train.lognormal_lecun, jax.nn.initializers.lecun_normal),
}


def drawn(init: Any, n: int = N, **options: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda key: init(key, (n,), **options))(KEY), np.float64)


def test_lognormal_has_its_moments() -> None:
    mu, sigma = -2.5, 0.4
    w, x = drawn(train.lognormal(mu, sigma)), drawn(train.lognormal(mu, sigma, signed=False))
    assert abs(w.mean()) < 4 * w.std() / math.sqrt(N)
    assert w.var() == pytest.approx(math.exp(2 * mu + 2 * sigma**2), rel=0.01)
    assert np.mean(w**4) / np.mean(w**2) ** 2 == pytest.approx(math.exp(4 * sigma**2), rel=0.02)
    assert abs(np.mean(w < 0) - 0.5) < 4 * 0.5 / math.sqrt(N)
    assert x.min() > 0
    assert x.mean() == pytest.approx(math.exp(mu + sigma**2 / 2), rel=0.002)
    assert x.var() == pytest.approx((math.exp(sigma**2) - 1) * math.exp(2 * mu + sigma**2), rel=0.01)
    assert stats.kstest(np.log(np.abs(w)), stats.norm(mu, sigma).cdf).pvalue > 1e-3
    # sign and size are independent
    assert abs(np.corrcoef(np.sign(w), np.log(np.abs(w)))[0, 1]) < 4 / math.sqrt(N)


def test_a_fitted_layer_is_at_equilibrium() -> None:
    fit = tj.fit({"w": jnp.asarray(drawn(train.lognormal(-3, 1.2), 200_000), jnp.float32)})["w"].lognormal
    assert fit is not None
    assert fit.kl_nats is not None
    assert fit.kl_nats < 2e-3
    assert fit.mu == pytest.approx(-3, abs=4 * fit.mu_se)
    assert fit.sigma == pytest.approx(1.2, abs=4 * fit.sigma_se)


def test_jaynes_is_the_equilibrium_of_its_utility() -> None:
    alpha, beta = -3.2, 0.45
    y = np.log(np.abs(drawn(train.jaynes(alpha, beta))))
    assert y.mean() == pytest.approx((alpha + 1) / (2 * beta), abs=4 * y.std() / math.sqrt(N))
    assert y.var() == pytest.approx(1 / (2 * beta), rel=0.006)
    law = tj.teleo.utility_parameters(y.mean(), y.std())
    assert (law.alpha, law.beta) == pytest.approx((alpha, beta), rel=0.01)


@pytest.mark.parametrize(("lower", "upper"), [(0.01, 0.3), (0.0, 0.2), (0.05, math.inf), (0.4, 0.5)])
def test_truncated_lognormal(lower: float, upper: float) -> None:
    mu, sigma = -2.0, 0.9
    w = drawn(train.truncated_lognormal(mu, sigma, lower, upper))
    x = np.abs(w)
    assert x.min() >= lower * (1 - 1e-6)
    assert x.max() <= upper * (1 + 1e-6)
    law = stats.lognorm(sigma, scale=math.exp(mu))
    mass = law.cdf(upper) - law.cdf(lower)
    end = min(upper, 60.0)
    for k in (1, 2):
        exact = integrate.quad(lambda t, k=k: t**k * law.pdf(t), lower, end, limit=400, points=[0.1, 1.0])[0] / mass
        a, b = ((math.log(v) - mu) / sigma if v > 0 else -math.inf for v in (lower, upper))
        cdf = stats.norm.cdf
        formula = (
            math.exp(k * mu + (k * sigma) ** 2 / 2) * (cdf(b - k * sigma) - cdf(a - k * sigma)) / (cdf(b) - cdf(a))
        )
        assert formula == pytest.approx(exact, rel=1e-5)
        assert np.mean(x**k) == pytest.approx(exact, rel=0.01)
    assert w.var() == pytest.approx(np.mean(x**2), rel=1e-3)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("truncate", [None, 2.0])
def test_variance_is_matched_to_the_fan(name: str, truncate: float | None) -> None:
    ours, theirs = TWINS[name]
    w = np.asarray(jax.jit(lambda k: ours(sigma=0.5, truncate=truncate)(k, (1250, 800)))(KEY), np.float64)
    fan = {"he": 1250 / 2, "glorot": (1250 + 800) / 2, "lecun": 1250}[name]
    assert w.var() == pytest.approx(1 / fan, rel=0.01)
    assert w.var() == pytest.approx(float(jnp.var(theirs()(KEY, (1250, 800)))), rel=0.01)
    y = np.log(np.abs(w))
    if truncate is not None:
        assert np.ptp(y) <= 2 * truncate * 0.5 + 1e-5
        return
    assert y.std() == pytest.approx(0.5, rel=0.005)
    assert y.mean() == pytest.approx(0.5 * math.log(1 / fan) - 0.25, abs=0.003)


@pytest.mark.parametrize(
    ("name", "shape", "axes"), [*(("glorot", *s) for s in SHAPES), ("he", *SHAPES[1]), ("lecun", *SHAPES[1])]
)
def test_fans_are_those_of_jax(name: str, shape: tuple[int, ...], axes: dict[str, Any]) -> None:
    ours, theirs = TWINS[name]
    # without spread every |w| is the standard deviation itself, so a fan is read off exactly
    sizes = np.abs(np.asarray(ours(sigma=0.0, **axes)(KEY, shape)))
    w = np.asarray(theirs(**axes)(KEY, shape), np.float64)
    assert np.ptp(sizes) <= 1e-6 * sizes[(0,) * len(shape)]
    assert float(sizes.mean()) == pytest.approx(w.std(), rel=5 / math.sqrt(w.size))


def test_sigma_one_has_heavy_tails_and_the_right_variance() -> None:
    w = drawn(lambda k, shape: train.lognormal_lecun()(k, (*shape, 1)), N)
    error = math.sqrt(math.exp(4.0) / N)  # a standard error of the variance: kurtosis e⁴
    assert w.var() * N == pytest.approx(1.0, rel=4 * error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_keys_and_jit(dtype: str) -> None:
    makers: tuple[Callable[[], Any], ...] = (
        lambda: train.lognormal(-2, 1),
        train.lognormal_he,
        lambda: train.jaynes(-3, 0.5),
        lambda: train.truncated_lognormal(-2, 1, 0.01, 1),
    )
    for make in makers:
        w = make()(KEY, (40, 50), dtype)
        assert (str(w.dtype), w.shape) == (dtype, (40, 50))
        assert np.array_equal(w, make()(KEY, (40, 50), dtype))
        assert np.array_equal(w, jnp.asarray(make()(KEY, (40, 50)), dtype))  # drawn in float32, then rounded
        assert not np.array_equal(w, make()(jax.random.key(8), (40, 50), dtype))
        jitted = np.asarray(jax.jit(lambda k, make=make: make()(k, (40, 50), dtype))(KEY), np.float64)
        assert np.allclose(jitted, np.asarray(w, np.float64), rtol=1e-2 if dtype != "float32" else 1e-5)
        assert make()(KEY, (0, 5), dtype).shape == (0, 5)


def test_layer_libraries_take_them() -> None:
    from flax import linen as nn

    model = nn.Dense(32, kernel_init=train.lognormal_he(sigma=0.3))
    kernel = model.init(KEY, jnp.ones((1, 64)))["params"]["kernel"]
    assert float(jnp.std(jnp.log(jnp.abs(kernel)))) == pytest.approx(0.3, rel=0.1)


def test_refusals() -> None:
    with pytest.raises(tj.UsageError, match="sigma >= 0"):
        train.lognormal(0, -1)
    with pytest.raises(tj.UsageError, match="0 <= lower < upper"):
        train.truncated_lognormal(0, 1, 2, 1)
    with pytest.raises(tj.UsageError, match="beta"):
        train.jaynes(1, 0)
    with pytest.raises(tj.UsageError, match="fan_sum"):
        train.lognormal_scaling(1, "fan_sum")
    with pytest.raises(tj.UsageError, match="truncate"):
        train.lognormal_he(truncate=0)
    with pytest.raises(tj.UsageError, match="shape"):
        train.lognormal_he()(KEY, (5,))
    with pytest.raises(tj.UsageError, match="int32"):
        train.lognormal(0, 1)(KEY, (5,), jnp.int32)
