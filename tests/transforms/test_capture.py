"""Captured activations against the activations themselves, stored by other means, under every transformation."""

from __future__ import annotations

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import teleojax as tj
from teleojax.train import Accumulator, capture_activations, tag_activation
from tests.reference import assert_moments, reference_moments

KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (64, 8))


def assert_captured(acc: Accumulator, stored: dict[str, Any]) -> None:
    """The same names, counts, and moments; another program may round an activation otherwise, so not bit for bit."""
    stats = acc.statistics()
    assert set(stats) == set(stored)
    for name, values in stored.items():
        want, moments = reference_moments(np.asarray(values)), stats[name].moments
        for count in ("n", "n_zero", "n_nonfinite", "n_negative"):
            assert getattr(moments, count) == want[count], (name, count)
        if not want["n"]:
            continue
        assert moments.mean == pytest.approx(want["mean"], rel=1e-5, abs=1e-5), name
        assert moments.sigma == pytest.approx(want["sigma"], rel=1e-4), name
        assert moments.max == pytest.approx(want["max"], rel=1e-4), name


def stacked(w: jax.Array, x: jax.Array, *, remat: bool) -> tuple[jax.Array, jax.Array]:
    """Layers under scan, and what each of them returned."""

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = tag_activation("h", jnp.maximum(x @ w, 0))
        return h + x, h

    return lax.scan(jax.checkpoint(layer) if remat else layer, x, w)


W = jax.random.normal(KEY, (5, 8, 8)) / 3


@pytest.mark.parametrize("remat", [False, True])
def test_under_jit_scan_and_remat(remat: bool) -> None:
    def call(w: jax.Array, x: jax.Array) -> Any:
        return capture_activations(lambda w, x: stacked(w, x, remat=remat), w, x)

    (out, stored), acc = jax.jit(call)(W, XS)
    assert_moments(acc.statistics()["h"].moments, np.asarray(stored))
    assert np.array_equal(out, jax.jit(lambda w, x: stacked(w, x, remat=remat))(W, XS)[0])
    (eager, _), again = call(W, XS)
    assert np.allclose(eager, out, rtol=1e-5, atol=1e-6)
    assert again.statistics()["h"].moments.n_zero == acc.statistics()["h"].moments.n_zero


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_are_those_without(remat: bool) -> None:
    def loss(w: jax.Array, acc: Accumulator) -> Any:
        (out, stored), acc = capture_activations(lambda w: stacked(w, XS, remat=remat), w, into=acc)
        return jnp.mean(out**2), (acc, stored)

    grad, (acc, stored) = jax.jit(jax.grad(loss, has_aux=True))(W, Accumulator())
    plain = jax.jit(jax.grad(lambda w: jnp.mean(stacked(w, XS, remat=remat)[0] ** 2)))(W)
    assert np.allclose(grad, plain, rtol=1e-5, atol=1e-7)
    assert_moments(acc.statistics()["h"].moments, np.asarray(stored))  # counted once, though remat computes it twice


def test_under_vmap_from_inside_and_outside() -> None:
    w = W[0]

    def one(x: jax.Array) -> jax.Array:
        return tag_activation("h", jnp.tanh(x @ w))

    out, inside = jax.jit(lambda xs: capture_activations(jax.vmap(one), xs))(XS)
    assert_moments(inside.statistics()["h"].moments, np.asarray(out))
    out, lanes = jax.jit(jax.vmap(lambda x: capture_activations(one, x)))(XS)
    assert lanes.layers["h"].seen.shape == (64,)
    assert_moments(lanes.collapse().statistics()["h"].moments, np.asarray(out))
    across = jax.jit(jax.vmap(lambda x: capture_activations(one, x)[1].across("lane"), axis_name="lane"))(XS)
    assert_moments(jax.tree.map(lambda a: a[7], across).statistics()["h"].moments, np.asarray(out))


def test_neurons_stay_last_under_vmap() -> None:
    w = W[0]
    acc = Accumulator.create({"h": jax.ShapeDtypeStruct((8,), jnp.float32)}, per_neuron=True)
    out, acc = jax.jit(
        lambda xs: capture_activations(
            jax.vmap(lambda x: tag_activation("h", x @ w), in_axes=1, out_axes=1), xs, into=acc
        )
    )(XS.T)
    fit = acc.neurons("h")
    y = np.log(np.abs(np.asarray(out, np.float64)))
    assert fit.shape == (8,)
    assert np.allclose(fit.mu, y.mean(axis=1), atol=1e-5)
    assert np.allclose(fit.sigma, y.std(axis=1), rtol=1e-5)


def test_while_cond_and_inner_jit() -> None:
    def double(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda c: c[1] < 3, lambda c: (tag_activation("loop", 2 * c[0]), c[1] + 1), (x, 0))[0]

    def branch(x: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 1e6, lambda x: tag_activation("taken", x), lambda x: tag_activation("not", -x), x)

    def model(x: jax.Array) -> jax.Array:
        return jax.jit(lambda x: tag_activation("inner", x + 1))(branch(double(x)))

    _, acc = jax.jit(lambda x: capture_activations(model, x))(XS)
    x = np.asarray(XS)
    assert_captured(acc, {"loop": np.stack([2 * x, 4 * x, 8 * x]), "taken": x[:0], "not": -8 * x, "inner": 1 - 8 * x})


def test_accumulates_over_a_scan_of_batches() -> None:
    batches = jax.random.normal(KEY, (10, 32, 8))
    acc = Accumulator.create({"h": jnp.float32})

    def step(acc: Accumulator, x: jax.Array) -> Any:
        out, acc = capture_activations(lambda x: tag_activation("h", jnp.tanh(x @ W[0])), x, into=acc)
        return acc, out

    acc, stored = jax.jit(lambda acc: lax.scan(step, acc, batches))(acc)
    assert_moments(acc.statistics()["h"].moments, np.asarray(stored))


def test_what_custom_rules_hide_is_named_in_a_warning() -> None:
    @jax.custom_vjp
    def hidden(x: jax.Array) -> jax.Array:
        return tag_activation("hidden", 2 * x)

    hidden.defvjp(lambda x: (2 * x, None), lambda _, g: (3 * g,))  # not the derivative: the rule must survive

    def call(x: jax.Array) -> Any:
        return capture_activations(lambda x: tag_activation("out", hidden(x)), x)

    with pytest.warns(UserWarning, match="hidden: not captured inside custom_vjp"):
        out, acc = call(XS)
    assert_captured(acc, {"out": out})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.all(jax.grad(lambda x: jnp.sum(call(x)[0]))(XS) == 3)


def test_equinox_mlp() -> None:
    mlp = eqx.nn.MLP(8, 4, 16, 2, key=KEY)
    out, acc = eqx.filter_jit(lambda m, x: capture_activations(eqx.filter_vmap(m), x))(mlp, XS)

    def store(x: jax.Array) -> dict[str, jax.Array]:
        first = mlp.layers[0](x)
        second = mlp.layers[1](jax.nn.relu(first))
        third = mlp.layers[2](jax.nn.relu(second))
        return {"layers/0": first, "layers/1": second, "layers/2": third, "MLP": third}

    assert_captured(acc, jax.jit(jax.vmap(store))(XS))
    assert np.allclose(out, jax.vmap(mlp)(XS), rtol=1e-5, atol=1e-6)
    kept = capture_activations(lambda m, x: jax.vmap(m)(x), mlp, XS, include=r"layers/[01]$")[1]
    assert set(kept.layers) == {"layers/0", "layers/1"}


class Blocks(eqx.Module):
    """Equal layers under scan and remat, a stateful norm, and a list of modules and functions."""

    stack: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: list[Any]

    def __init__(self, key: jax.Array) -> None:
        self.stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(8, 8, key=k))(jax.random.split(key, 4))
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="ema")
        self.head = [eqx.nn.Linear(8, 3, key=key), jax.nn.relu]

    def __call__(self, x: jax.Array, state: Any) -> Any:
        arrays, rest = eqx.partition(self.stack, eqx.is_array)

        @eqx.filter_checkpoint
        def body(h: jax.Array, layer: Any) -> jax.Array:
            return jnp.tanh(eqx.combine(layer, rest)(h))

        x = lax.scan(lambda h, layer: (body(h, layer), None), x, arrays)[0]
        x, state = self.norm(x, state)
        for layer in self.head:
            x = layer(x)
        return x, state


def test_equinox_under_scan_and_remat_with_state_and_gradients() -> None:
    model, state = eqx.nn.make_with_state(Blocks)(KEY)

    def batched(model: Blocks, x: jax.Array, state: Any) -> Any:
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    def loss(model: Blocks, acc: Accumulator) -> Any:
        (out, after), acc = capture_activations(batched, model, XS, state, into=acc)
        return jnp.mean(out**2), (acc, out, after)

    def plain(model: Blocks) -> Any:
        return jnp.mean(batched(model, XS, state)[0] ** 2)

    grads, (acc, out, after) = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))(model, Accumulator())
    wanted, wanted_state = batched(model, XS, state)
    assert np.allclose(out, wanted, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(wanted_state), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)
    expected = eqx.filter_grad(plain)(model)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-5)

    h, every = XS, []
    for i in range(4):
        every.append(h @ model.stack.weight[i].T + model.stack.bias[i])
        h = jnp.tanh(every[-1])
    stats = acc.statistics()
    assert {n: s.moments.size for n, s in stats.items()} == {
        "stack": 2048,
        "norm/0": 512,
        "head/0": 192,
        "Blocks/0": 192,
    }
    assert_captured(acc.with_layers({"stack": acc.layers["stack"]}), {"stack": np.stack(every)})


class Linen(nn.Module):
    """Two ways of having layers: inline, and lifted through scan and remat."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array, _: None) -> Any:
                return nn.tanh(nn.Dense(16, name="dense")(x)), None

        x = nn.relu(nn.Dense(16, name="first")(x))
        many = nn.scan(nn.remat(Block), variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True},
                       length=3)  # fmt: skip
        x, _ = many(name="blocks")(x, None)
        return nn.Dense(2, name="last")(x)


def test_linen_against_its_own_capture() -> None:
    model = Linen()
    variables = model.init(KEY, XS)
    out, acc = jax.jit(lambda v, x: capture_activations(model.apply, v, x))(variables, XS)
    wanted, state = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"]))(
        variables, XS
    )
    own = state["intermediates"]
    assert np.allclose(out, wanted, rtol=1e-5, atol=1e-6)
    blocks = own["blocks"]
    stored = {
        "first": own["first"]["__call__"][0],
        "blocks/dense": blocks["dense"]["__call__"][0],
        "blocks/0": np.asarray(blocks["__call__"][0][0]),
        "last": own["last"]["__call__"][0],
        "Linen": out,
    }
    assert_captured(acc, stored)


class Nnx(nnx.Module):
    """Layers whose call changes them: running means, dropout keys."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def test_nnx_model_is_left_as_a_call_leaves_it() -> None:
    model, twin = Nnx(nnx.Rngs(0)), Nnx(nnx.Rngs(0))
    out, acc = nnx.jit(lambda m, x: capture_activations(m, x))(model, XS)
    first = twin.first(XS)
    norm = twin.norm(first)
    drop = twin.drop(nnx.relu(norm))
    wanted = twin.last(drop)
    assert_captured(acc, {"first": first, "norm": norm, "drop": drop, "last": wanted, "Nnx": wanted})
    assert np.allclose(out, wanted, rtol=1e-4, atol=1e-5)
    assert type(model.first) is nnx.Linear
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(twin)), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5)

    def loss(model: Nnx, acc: Accumulator) -> Any:
        out, acc = capture_activations(model, XS, into=acc)
        return jnp.mean(out**2), acc

    (_, acc), grads = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(model, acc)
    assert acc.statistics()["first"].moments.size == 2 * first.size
    assert float(jnp.abs(grads["first"]["kernel"][...]).max()) > 0


def test_two_models_have_names_of_their_own() -> None:
    a, b = eqx.nn.Linear(8, 4, key=KEY), eqx.nn.Linear(8, 4, key=KEY)
    _, acc = capture_activations(lambda a, b, x: jax.vmap(a)(x) - jax.vmap(b)(x), a, b, XS)
    assert set(acc.layers) == {"0", "1"}


def test_outside_capture_a_name_does_nothing() -> None:
    named = jax.jit(lambda x: jnp.sum(tag_activation("h", x) ** 2))
    assert named(XS) == jax.jit(lambda x: jnp.sum(x**2))(XS)
    assert np.array_equal(jax.grad(named)(XS), 2 * XS)
    assert tag_activation("i", jnp.arange(3)).dtype == jnp.int32


def test_refusals() -> None:
    with pytest.raises(tj.UsageError, match="found no activation; needed one at least"):
        capture_activations(jnp.sin, XS)
    with pytest.raises(tj.UsageError, match="with 'none' in its name"):
        capture_activations(lambda x: tag_activation("h", x), XS, include="none")
    with pytest.raises(tj.UsageError, match="regular expression"):
        capture_activations(jnp.sin, XS, include="(")
