"""Optax transformations: the utility gradient against its closed form, the flow to its end, the tracker against fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import teleojax as tj
from teleojax.train import (
    LognormalTheta,
    add_utility_gradient,
    lognormal_apply,
    lognormal_reparameterize,
    read,
    track_log_moments,
)

N = 1 << 18
STEPS, RATE = 3000, 0.02
SCORES = {  # s(y) = d ln p/dy of y = ln|x|, exactly
    "halfnormal": (lambda rng: rng.standard_normal(N), lambda y: 1 - np.exp(2 * y)),
    "t3": (lambda rng: rng.standard_t(3, N), lambda y: 1 - 4 * np.exp(2 * y) / (3 + np.exp(2 * y))),
}


def direction(w: Any, **options: Any) -> np.ndarray:
    """∂ĥ/∂y of every weight, read off the update."""
    optimiser = add_utility_gradient(1.0, **options)
    update, _ = jax.jit(lambda w: optimiser.update(jnp.zeros_like(w), optimiser.init(w), w))(w)
    return -np.asarray(update, np.float64) / np.asarray(w, np.float64)


def parameters() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "dense": {"kernel": jnp.asarray(0.1 * rng.standard_normal((64, 96)), jnp.float32), "bias": jnp.zeros(32)},
        "head": [jnp.asarray(rng.standard_t(3, (96, 10)), jnp.bfloat16), jnp.arange(5)],
    }


def gradients(params: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda w: jnp.asarray(rng.standard_normal(w.shape)).astype(w.dtype), params)


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", SCORES)
def test_direction_is_the_exact_gradient(name: str) -> None:
    draw, score = SCORES[name]
    x = draw(np.random.default_rng(2)).astype(np.float32)
    y = np.log(np.abs(x.astype(np.float64)))
    central = (y > np.quantile(y, 0.01)) & (y < np.quantile(y, 0.99))
    for target in ((-2.0, 0.7), None):
        found = direction(jnp.asarray(0.01 * x), target=target, bound=1e3)
        z = y + math.log(0.01)
        own = tj.teleo.utility_parameters(z.mean(), z.std())
        alpha, beta = (own.alpha, own.beta) if target is None else target
        exact = (alpha + 1) - 2 * beta * z - score(y)
        error, scale = (found - exact)[central], score(y)[central]
        assert np.sqrt(np.mean(error**2) / np.mean(scale**2)) < 0.06
    # conserved exactly, whatever the sample: mean and variance of y
    assert abs(np.mean(found)) < 1e-3
    assert abs(np.mean(found * (y - y.mean()))) < 2e-3


def test_direction_agrees_with_the_host_estimate() -> None:
    x = np.random.default_rng(3).standard_normal(N).astype(np.float32)
    host = np.asarray(tj.utility_gradient({"w": x})["w"], np.float64)
    found = direction(jnp.asarray(x), bound=1e3)
    central = (np.abs(x) > 0.01) & (np.abs(x) < 2.6)
    assert np.corrcoef(found[central], host[central])[0, 1] > 0.998
    assert np.sqrt(np.mean((found - host)[central] ** 2)) < 0.06 * np.sqrt(np.mean(host[central] ** 2))


def test_a_lognormal_layer_stays_where_it_is() -> None:
    w = tj.train.lognormal(-3, 1.1)(jax.random.key(0), (512, 512))
    assert np.sqrt(np.mean(direction(w) ** 2)) < 0.03  # of a half-normal layer it is 0.6


def test_the_flow_ends_at_the_target() -> None:
    w = jnp.asarray(0.02 * np.random.default_rng(4).standard_normal((512, 512)), jnp.float32)
    mu, sigma = -4.0, 0.9
    law = tj.teleo.utility_parameters(mu, sigma)
    optimiser = optax.chain(add_utility_gradient(1.0, (law.alpha, law.beta)), optax.sgd(RATE))

    @jax.jit
    def run(w: jax.Array) -> jax.Array:
        def step(_: Any, carry: Any) -> Any:
            w, state = carry
            update, state = optimiser.update(jnp.zeros_like(w), state, w)
            return optax.apply_updates(w, update), state

        return jax.lax.fori_loop(0, STEPS, step, (w, optimiser.init(w)))[0]

    end = run(w)
    before, after = (tj.fit({"w": np.asarray(x)})["w"].lognormal for x in (w, end))
    assert before is not None
    assert after is not None
    assert before.kl_nats == pytest.approx(0.163, abs=0.006)
    assert after.kl_nats is not None
    assert after.kl_nats < 0.01
    assert after.mu == pytest.approx(mu, rel=0.02)
    assert after.sigma == pytest.approx(sigma, rel=0.02)
    assert np.array_equal(np.sign(end), np.sign(w))


def test_the_flow_follows_the_exact_moments() -> None:
    """Mean μ + (m − μ)e^(−t/σ²), variance σ² + (v − σ²)e^(−2t/σ²), at a time when neither has settled."""
    w = jnp.asarray(np.random.default_rng(5).standard_normal((128, 256)), jnp.float32)
    mu, sigma, rate, steps = 0.5, 0.8, 0.002, 150
    law = tj.teleo.utility_parameters(mu, sigma)
    optimiser = optax.chain(add_utility_gradient(1.0, (law.alpha, law.beta), bound=100.0), optax.sgd(rate))

    @jax.jit
    def run(w: jax.Array) -> jax.Array:
        def step(_: Any, carry: Any) -> Any:
            w, state = carry
            update, state = optimiser.update(jnp.zeros_like(w), state, w)
            return optax.apply_updates(w, update), state

        return jax.lax.fori_loop(0, steps, step, (w, optimiser.init(w)))[0]

    y, z = (np.log(np.abs(np.asarray(x, np.float64))) for x in (w, run(w)))
    decay = math.exp(-rate * steps / sigma**2)
    assert z.mean() == pytest.approx(mu + (y.mean() - mu) * decay, abs=0.01)
    assert z.var() == pytest.approx(sigma**2 + (y.var() - sigma**2) * decay**2, abs=0.01)


def test_relative_steps_are_bounded() -> None:
    w = jnp.asarray(np.random.default_rng(6).standard_normal(N), jnp.float32)
    found = direction(w, target=(50.0, 20.0), bound=3.0)
    assert np.abs(found).max() == pytest.approx(3.0, rel=1e-6)
    assert np.mean(np.abs(found) > 2.999) > 0.1


def test_what_has_no_gradient_is_left_alone() -> None:
    w = np.random.default_rng(7).standard_normal(4096).astype(np.float32)
    w[:6] = [0, -0.0, np.nan, np.inf, -np.inf, 1e-42]
    tree = {"w": jnp.asarray(w), "small": jnp.ones(63), "equal": jnp.full(4096, 0.5), "empty": jnp.zeros((0, 3)),
            "index": jnp.arange(4096), "zero": jnp.zeros(100)}  # fmt: skip
    given = gradients(tree)
    optimiser = add_utility_gradient(0.5)
    updates, _ = jax.jit(optimiser.update)(given, optimiser.init(tree), tree)
    for name in ("small", "equal", "empty", "index", "zero"):
        assert_same_bits(updates[name], given[name])
    assert_same_bits(updates["w"][:6], given["w"][:6])
    assert np.all(np.isfinite(updates["w"]))
    assert np.mean(np.asarray(updates["w"]) != np.asarray(given["w"])) > 0.99


def test_strength_zero_is_the_identity_bit_for_bit() -> None:
    params = parameters()
    given = gradients(params)
    given["dense"]["kernel"] = given["dense"]["kernel"].at[0, :3].set(jnp.asarray([-0.0, jnp.nan, jnp.inf]))
    schedules: tuple[Any, ...] = (0, jnp.zeros(()), optax.linear_schedule(0.0, 1.0, 10))
    for every, strength in enumerate(schedules, start=1):
        optimiser = add_utility_gradient(strength, every=every)
        updates, _ = jax.jit(optimiser.update)(given, optimiser.init(params), params)
        assert_same_bits(updates, given)


def test_composes_with_optax() -> None:
    params = parameters()
    given = gradients(params)
    plain = add_utility_gradient(0.3)
    wanted, _ = jax.jit(plain.update)(given, plain.init(params), params)

    schedule = add_utility_gradient(lambda step: 0.3 * (step + 1))
    first, state = jax.jit(schedule.update)(given, schedule.init(params), params)
    assert_same_bits(first, wanted)
    second, _ = jax.jit(schedule.update)(given, state, params)
    change, double = (np.asarray(u["dense"]["kernel"] - given["dense"]["kernel"]) for u in (first, second))
    assert np.allclose(double, 2 * change, rtol=1e-4, atol=1e-6)

    injected = optax.inject_hyperparams(add_utility_gradient)(strength=0.3, every=2, bound=10.0)
    state = injected.init(params)
    found, state = jax.jit(injected.update)(given, state, params)
    assert np.allclose(found["dense"]["kernel"], wanted["dense"]["kernel"], rtol=1e-5, atol=1e-7)
    state.hyperparams["strength"] = jnp.asarray(0.0, state.hyperparams["strength"].dtype)
    assert_same_bits(jax.jit(injected.update)(given, state, params)[0], given)

    masks: tuple[Any, ...] = (
        {"dense": {"kernel": True, "bias": False}, "head": [False, False]},
        lambda p: jax.tree.map(lambda w: w.size > 1000, p),
    )
    for mask in masks:
        masked = add_utility_gradient(0.3, mask=mask)
        found, _ = jax.jit(masked.update)(given, masked.init(params), params)
        assert_same_bits(found["dense"], wanted["dense"])
        assert_same_bits(found["head"], given["head"])

    labels = {"dense": "a", "head": "b"}
    several = optax.multi_transform({"a": optax.chain(plain, optax.scale(-0.1)), "b": optax.set_to_zero()}, labels)
    found, _ = jax.jit(several.update)(given, several.init(params), params)
    assert np.allclose(found["dense"]["kernel"], -0.1 * wanted["dense"]["kernel"], rtol=1e-6)
    assert not np.any(found["head"][0])


def test_a_table_serves_until_it_is_due() -> None:
    params = {"w": jnp.asarray(np.random.default_rng(8).standard_normal(20_000), jnp.float32)}
    zero = jax.tree.map(jnp.zeros_like, params)
    lazy, eager = add_utility_gradient(1.0, every=3), add_utility_gradient(1.0)
    state = lazy.init(params)
    tables = []
    for step in range(4):
        moved = {"w": params["w"] * (1 + step * params["w"] ** 2)}
        updates, state = jax.jit(lazy.update)(zero, state, moved)
        tables.append(np.asarray(state.tables["w"]))
        if step in (0, 3):
            assert_same_bits(updates, jax.jit(eager.update)(zero, eager.init(params), moved)[0])
    assert np.array_equal(tables[0], tables[2])
    assert not np.array_equal(tables[0], tables[3])


def test_tracker_against_fit() -> None:
    rng = np.random.default_rng(9)
    params = {"half": jnp.asarray(rng.standard_normal((300, 400)), jnp.float32),
              "log": jnp.asarray(np.exp(rng.normal(-3, 0.8, (300, 400))), jnp.float32),
              "exp": {"b": [jnp.asarray(rng.exponential(size=(300, 400)), jnp.float32)]}}  # fmt: skip
    optimiser = optax.chain(optax.sgd(0.1), track_log_moments(every=5))
    updates, state = jax.jit(optimiser.update)(gradients(params), optimiser.init(params), params)
    report, found = tj.fit(params), read(state)
    assert set(found) == set(report) == {"half", "log", "exp.b.0"}
    for name, layer in found.items():
        want = report[name].lognormal
        assert want is not None
        assert (layer["step"], layer["n"]) == (0, 120_000)
        for key in ("mu", "sigma", "alpha", "beta"):
            assert layer[key] == pytest.approx(getattr(want, key), rel=2e-5), (name, key)
        assert layer["kl_nats"] == pytest.approx(want.kl_nats, abs=0.003)
        assert layer["dispersion"] == pytest.approx(want.dispersion, abs=0.03)
    assert json.loads(json.dumps(found)) == found
    assert_same_bits(updates, jax.tree.map(lambda g: -0.1 * g, gradients(params)))


def test_tracker_updates_when_due() -> None:
    optimiser = track_log_moments(every=3)
    w = jnp.asarray(np.random.default_rng(10).standard_normal((50, 50)), jnp.float32)
    state = optimiser.init({"w": w, "few": jnp.ones(2)})
    assert read(state)["w"]["mu"] is None
    seen = []
    for step in range(5):
        _, state = jax.jit(optimiser.update)(
            {"w": w, "few": jnp.ones(2)}, state, {"w": w * 2.0**step, "few": jnp.ones(2)}
        )
        seen.append((read(state)["w"]["step"], read(state)["w"]["mu"]))
    assert [s for s, _ in seen] == [0, 0, 0, 3, 3]
    assert seen[3][1] - seen[0][1] == pytest.approx(3 * math.log(2), rel=1e-5)
    few = read(state)["few"]
    assert (few["n"], few["mu"], few["kl_nats"], few["alpha"]) == (2, 0.0, None, None)


def test_state_goes_through_orbax(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    params = {"w": jnp.asarray(np.random.default_rng(11).standard_normal((40, 50)), jnp.float32), "b": jnp.zeros(3)}
    optimiser = optax.chain(
        add_utility_gradient(0.1, every=4), track_log_moments(every=2), optax.inject_hyperparams(optax.adam)(1e-3)
    )
    step = jax.jit(lambda g, s, p: optimiser.update(g, s, p))
    state = optimiser.init(params)
    for _ in range(3):
        updates, state = step(gradients(params), state, params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    assert_same_bits(restored, state)
    assert read(restored) == read(state)
    assert_same_bits(step(gradients(params), restored, params), step(gradients(params), state, params))
    assert updates["w"].shape == (40, 50)


def test_reparameterized_training_hands_over() -> None:
    params = parameters()
    theta, draws = lognormal_reparameterize(params)
    again = lognormal_apply(theta, draws)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert np.allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-2 if a.dtype != jnp.float32 else 1e-5
        )
    assert isinstance(theta["dense"]["kernel"], LognormalTheta)
    assert theta["dense"]["bias"] is params["dense"]["bias"]
    assert draws["dense"]["bias"] is None

    fresh, drawn = lognormal_reparameterize({"w": params["dense"]["kernel"]}, key=jax.random.key(3))
    w = np.asarray(lognormal_apply(fresh, drawn)["w"], np.float64)
    y = np.log(np.abs(np.asarray(params["dense"]["kernel"], np.float64)))
    assert np.log(np.abs(w)).mean() == pytest.approx(y.mean(), abs=5 * y.std() / math.sqrt(y.size))
    assert np.log(np.abs(w)).std() == pytest.approx(y.std(), rel=0.05)

    # phase 1 finds the amplitude and spread of a law that its target has
    goal = jnp.exp(-1.0 + 0.5 * drawn["w"].z)
    optimiser = optax.adam(0.02)

    def loss(theta: Any) -> Any:
        return jnp.mean((jnp.log(jnp.abs(lognormal_apply(theta, drawn)["w"])) - jnp.log(goal)) ** 2)

    @jax.jit
    def step(theta: Any, state: Any) -> Any:
        updates, state = optimiser.update(jax.grad(loss)(theta), state)
        return optax.apply_updates(theta, updates), state

    state = optimiser.init(fresh)
    for _ in range(400):
        fresh, state = step(fresh, state)
    law = fresh["w"]
    assert float(jnp.log(law.amplitude) + law.mu) == pytest.approx(-1.0, abs=0.02)
    assert float(law.sigma) == pytest.approx(0.5, abs=0.02)
    assert jax.tree.leaves(fresh)[0].shape == ()


def test_refusals() -> None:
    w = jnp.ones(100)
    for make in (lambda: add_utility_gradient(1.0), track_log_moments):
        with pytest.raises(tj.UsageError, match="found no parameters"):
            make().update(w, make().init(w))
    for options in ({"target": (1.0, -1.0)}, {"target": "own"}, {"every": 0}, {"bound": 0.0}):
        with pytest.raises(tj.UsageError, match=next(iter(options))):
            add_utility_gradient(1.0, **options)
    with pytest.raises(tj.UsageError, match="every"):
        track_log_moments(0)
    with pytest.raises(tj.UsageError, match="0 states"):
        read(optax.adam(1e-3).init(w))
    with pytest.raises(tj.UsageError, match="traced"):
        jax.jit(lognormal_reparameterize)(jnp.ones((20, 20)))
