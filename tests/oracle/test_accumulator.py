"""Activations counted on the device, against NumPy in float64 on all of them stored."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import teleojax as tj
from teleojax.train import Accumulator
from teleojax.train._pairs import Count, Pair, single
from tests.reference import assert_moments, reference_moments

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
LOSSLESS = 1e-12  # of moments made from counts of every value


@jax.jit
def count(acc: Accumulator, h: Any) -> Accumulator:
    return acc.observe("h", h)


def awkward(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Values over some octaves, with zeros of both signs, NaN, infinities and subnormals among them."""
    rng = np.random.default_rng(seed)
    h = (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(getattr(ml_dtypes, dtype, dtype))
    flat = h.reshape(-1)
    special = np.asarray([0, -0.0, np.nan, np.inf, -np.inf, 0, 2e-3 if "8" in dtype else 1e-7, 0], np.float32)
    flat[: len(special)] = special.astype(h.dtype)
    return h


@pytest.mark.parametrize("operation", ["add", "mul"])
def test_pairs_hold_48_bits(operation: str) -> None:
    rng = np.random.default_rng(1)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        high = (rng.standard_normal(500) * np.exp(4 * rng.standard_normal(500))).astype(np.float32)
        return high, (high * rng.uniform(-(2.0**-25), 2.0**-25, 500)).astype(np.float32)

    a, b = draw(), draw()
    found = jax.jit(lambda a, b: getattr(Pair(*a), f"__{operation}__")(Pair(*b)))(a, b)
    exact = [
        getattr(Fraction(float(p)) + Fraction(float(q)), f"__{operation}__")(Fraction(float(r)) + Fraction(float(s)))
        for p, q, r, s in zip(*a, *b, strict=True)
    ]
    got = [Fraction(float(h)) + Fraction(float(low)) for h, low in zip(*map(np.asarray, found), strict=True)]
    scale = [max(abs(Fraction(float(x))), abs(Fraction(float(y)))) for x, y in zip(a[0], b[0], strict=True)]
    of = exact if operation == "mul" else scale
    assert max(float(abs(g - e) / abs(o)) for g, e, o in zip(got, exact, of, strict=True)) < 2.0**-43


def test_a_sum_in_pairs_is_exact_where_float32_is_not() -> None:
    values = np.asarray([2.0**30, *([1.0] * 4096), -(2.0**30)], np.float32)
    total = jax.jit(lambda x: single(x).sum((0,)))(values)
    assert float(total.high) + float(total.low) == 4096
    assert float(np.sum(values[:-1], dtype=np.float32)) != 2.0**30 + 4096  # so the test can fail


def test_counts_carry_past_32_bits() -> None:
    start = Count(jnp.asarray([3], jnp.uint32), jnp.asarray([2**32 - 2], jnp.uint32))
    exact = 3 * 2**32 + 2**32 - 2
    assert start.plus(jnp.asarray([5], jnp.uint32)).on_host()[0] == exact + 5
    assert start.merge(start).on_host()[0] == 2 * exact
    pair = start.as_pair()
    assert int(Fraction(float(pair.high[0])) + Fraction(float(pair.low[0]))) == exact


@pytest.mark.parametrize("shape", [(1,), (5000,), (4, 8, 8, 3), (3, 10007), (8500, 4)])
@pytest.mark.parametrize("per_neuron", [False, True])
def test_moments_of_any_shape(shape: tuple[int, ...], per_neuron: bool) -> None:
    h = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    acc = count(Accumulator.create(per_neuron=per_neuron), h)
    assert_moments(acc.statistics()["h"].moments, h)
    if per_neuron:
        for i in (0, shape[-1] - 1):
            fit, want = acc.neurons("h"), reference_moments(h[..., i])
            assert fit.n[i] == want["n"]
            assert fit.mu[i] == pytest.approx(want["mean"], rel=1e-6)
            assert fit.sigma[i] == pytest.approx(want["sigma"], rel=1e-6)
            assert fit.max[i] == want["max"]


@pytest.mark.parametrize(
    ("dtype", "histogram"), [*((dtype, True) for dtype in DTYPES), ("float32", False), ("float16", False)]
)
def test_what_is_no_ordinary_value(dtype: str, histogram: bool) -> None:
    batches = [awkward((33, 40), dtype, seed) for seed in range(3)]
    acc = Accumulator.create({"h": batches[0]}, histogram=histogram)
    for h in batches:
        acc = count(acc, jnp.asarray(h))
    everything = np.concatenate(batches).astype(np.float64)
    stats = acc.statistics()["h"]
    exact = histogram and dtype != "float32"
    assert_moments(stats.moments, everything, relative=LOSSLESS if exact else 1e-6, shape=1e-9 if exact else 2e-4)
    assert (stats.histogram is not None) == histogram


@pytest.mark.parametrize("dtype", DTYPES)
def test_histogram_is_that_of_measure(dtype: str) -> None:
    h = awkward((100, 100), dtype)
    found = count(Accumulator(), jnp.asarray(h)).statistics()["h"].histogram
    wanted = tj.measure({"h": h})["h"].histogram
    assert found is not None
    assert wanted is not None
    assert found == wanted.coarsen(found.drop)
    assert found.lossless == (dtype != "float32")


def test_ten_thousand_batches() -> None:
    rng = np.random.default_rng(3)
    base = rng.standard_normal((16, 128)).astype(np.float32)
    scales = np.exp(np.linspace(-2, 2, 10_000) + 0.1 * rng.standard_normal(10_000)).astype(np.float32)

    @jax.jit
    def run(acc: Accumulator) -> Accumulator:
        return lax.scan(lambda acc, s: (acc.observe("h", base * s), None), acc, scales)[0]

    stats = run(Accumulator.create({"h": base})).statistics()["h"]
    everything = scales[:, None, None] * base
    assert stats.moments.n == everything.size
    assert_moments(stats.moments, everything, relative=1e-6, shape=2e-6)
    assert stats.histogram is not None
    assert stats.histogram.n == everything.size


def test_scale_that_wanders_over_thirty_octaves() -> None:
    rng = np.random.default_rng(6)
    first = (rng.standard_normal(64) * 2.0**-30).astype(np.float32)
    batches = rng.standard_normal((20, 64, 100)).astype(np.float32)
    acc = count(Accumulator(), first)
    for h in batches:
        acc = count(acc, h)
    assert_moments(acc.statistics()["h"].moments, np.concatenate([first, batches.reshape(-1)]), shape=1e-5)


def test_counts_past_two_to_the_32() -> None:
    h = awkward((64, 64))
    acc = count(Accumulator(), h)
    for _ in range(22):  # doubled until 4,096 · 2²² = 2³⁴ values are counted
        acc = jax.jit(Accumulator.merge)(acc, acc)
    one, many = (a.statistics()["h"] for a in (count(Accumulator(), h), acc))
    for name in ("n", "n_zero", "n_nonfinite", "n_negative"):
        assert getattr(many.moments, name) == getattr(one.moments, name) << 22
    assert many.moments.mean == pytest.approx(one.moments.mean, rel=1e-12)
    assert many.moments.sigma == pytest.approx(one.moments.sigma, rel=1e-12)
    assert many.moments.skew == pytest.approx(one.moments.skew, rel=1e-9)
    assert many.moments.excess_kurtosis == pytest.approx(one.moments.excess_kurtosis, rel=1e-9)
    assert many.histogram is not None
    assert one.histogram is not None
    assert np.array_equal(many.histogram.counts, one.histogram.counts << 22)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rectified_view(dtype: str) -> None:
    h = awkward((200, 100), dtype)
    acc = count(Accumulator(), jnp.asarray(h))
    view = acc.statistics(view="rectified")["h"].moments
    wide = h.astype(np.float64)
    want = reference_moments(np.where(wide < 0, 0, wide))
    # −inf and NaN are no zeros in either view
    nonfinite = int(np.sum(~np.isfinite(wide)))
    zeros = int(np.sum(np.isfinite(wide) & (wide <= 0)))
    assert (view.n, view.n_zero, view.n_nonfinite, view.n_negative) == (want["n"], zeros, nonfinite, 0)
    rel = 1e-12 if dtype == "float16" else 1e-4
    assert view.mean == pytest.approx(want["mean"], abs=rel)
    assert view.sigma == pytest.approx(want["sigma"], rel=rel)
    relu = count(Accumulator(), jnp.maximum(jnp.asarray(np.abs(wide).astype(h.dtype)), 0))
    assert relu.statistics(view="rectified") == relu.statistics()


def test_eta_and_zeta_are_the_utility_parameters() -> None:
    h = np.exp(np.random.default_rng(4).normal(-1.5, 0.7, (500, 100))).astype(np.float32)
    acc = count(Accumulator(), h)
    read = acc.read()["h"]
    y = np.log(h.astype(np.float64))
    assert read["eta"] == pytest.approx(y.mean() / y.var() - 1, rel=1e-5)
    assert read["zeta"] == pytest.approx(1 / (2 * y.var()), rel=1e-6)
    fitted = tj.fit(acc.statistics())["h"].lognormal
    assert fitted is not None
    assert (fitted.alpha, fitted.beta) == pytest.approx((read["eta"], read["zeta"]), rel=1e-12)
    assert fitted.kl_nats == pytest.approx(0, abs=1e-3)
    empty = Accumulator.create({"h": jnp.float32}).read()["h"]
    assert empty["n"] == 0
    assert empty["mu"] is empty["eta"] is empty["max"] is None


def test_merge_is_what_one_accumulator_would_hold() -> None:
    batches = [awkward((20, 30), seed=s) for s in range(4)]
    whole = Accumulator()
    for h in batches:
        whole = count(whole, h)
    a, b, c = (count(Accumulator(), h) for h in (np.concatenate(batches[:2]), batches[2], batches[3]))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    for merged in (left, right, Accumulator.create({"h": jnp.float32}).merge(left)):
        stats = merged.statistics()["h"]
        assert stats.histogram == whole.statistics()["h"].histogram
        assert_moments(stats.moments, np.concatenate(batches), shape=2e-4)
    both = a.merge(Accumulator().observe("g", batches[0]))
    assert set(both.statistics()) == {"g", "h"}
    assert both.statistics()["h"] == a.statistics()["h"]


def test_every_third_batch_is_counted() -> None:
    batches = np.random.default_rng(5).standard_normal((8, 10, 20)).astype(np.float32)
    acc = Accumulator.create({"h": batches[0]}, every=3)
    acc = jax.jit(lambda acc, x: lax.scan(lambda a, h: (a.observe("h", h), None), acc, x)[0])(acc, batches)
    assert_moments(acc.statistics()["h"].moments, batches[[0, 3, 6]])
    assert int(acc.layers["h"].seen) == 8


def test_memory_does_not_grow() -> None:
    acc = Accumulator.create({"h": jnp.float32})
    before = jax.tree.map(lambda a: (a.shape, a.dtype), acc)
    after = jax.tree.map(lambda a: (a.shape, a.dtype), count(acc, awkward((100, 100))))
    assert jax.tree.leaves(before) == jax.tree.leaves(after)
    assert sum(a.nbytes for a in jax.tree.leaves(acc)) < 525_000


def test_gradients_do_not_flow_through() -> None:
    x = jnp.linspace(0.1, 1, 12).reshape(3, 4)

    def loss(x: Any, acc: Accumulator) -> Any:
        return jnp.sum(x**2), acc.observe("h", jnp.sin(x))

    grad, acc = jax.jit(jax.grad(loss, has_aux=True))(x, Accumulator())
    assert np.array_equal(grad, 2 * x)
    assert acc.statistics()["h"].moments.n == 12


def test_refusals() -> None:
    acc = count(Accumulator(), awkward((3, 4)))
    with pytest.raises(tj.UsageError, match=r"h: found activations of bfloat16; needed float32"):
        acc.observe("h", jnp.ones(3, jnp.bfloat16))
    with pytest.raises(tj.UsageError, match="activations of int32"):
        acc.observe("i", jnp.arange(3))
    with pytest.raises(tj.UsageError, match="no last axis"):
        Accumulator.create({"h": jnp.float32}, per_neuron=True)
    with pytest.raises(tj.UsageError, match=r"\(5,\)"):
        Accumulator.create({"h": jnp.ones((2, 4))}, per_neuron=True).observe("h", jnp.ones((2, 5)))
    with pytest.raises(tj.UsageError, match="every"):
        Accumulator.create(every=0)
    with pytest.raises(tj.UsageError, match="view"):
        acc.statistics(view="absolute")
    with pytest.raises(tj.UsageError, match="rectified"):
        Accumulator.create(histogram=False).statistics(view="rectified")
    with pytest.raises(tj.UsageError, match="per neuron"):
        acc.neurons("h")
    with pytest.raises(tj.UsageError, match="collapse"):
        jax.vmap(lambda h: Accumulator().observe("h", h))(jnp.ones((3, 4))).statistics()
    with pytest.raises(tj.UsageError, match="Create both in the same way"):
        acc.merge(count(Accumulator(), jnp.ones(3, jnp.bfloat16)))
