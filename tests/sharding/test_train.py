"""Eight devices: activations, initializers and optimiser transformations see the whole array, however it is sharded."""

from __future__ import annotations

import os
import subprocess
import sys

FLAGS = "--xla_force_host_platform_device_count=8"
COMMON = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from teleojax.train import *

assert len(jax.devices()) == 8
meshes = [jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2) for kind in (AxisType.Auto, AxisType.Explicit)]
rng = np.random.default_rng(0)
"""
ACTIVATIONS = """
h = rng.standard_normal((64, 16, 48)).astype(np.float32)
h[0, 0, :4] = [0, -0.0, np.nan, np.inf]
kept = np.isfinite(h) & (h != 0)
y = np.log(np.abs(h[kept].astype(np.float64)))

def check(stats, times=1):
    m = stats.moments
    assert (m.n, m.n_zero, m.n_nonfinite) == (times * len(y), times * 2, times * 2), m
    assert m.n_negative == times * int(np.sum(h[kept] < 0))
    assert abs(m.mean - y.mean()) < 1e-6 and abs(m.sigma - y.std()) < 1e-6, (m, y.mean(), y.std())
    assert (m.min, m.max) == (float(np.abs(h[kept]).min()), float(np.abs(h[kept]).max()))
    patterns = np.abs(h[kept]).view(np.uint32) >> 16
    keys, counts = np.unique(patterns, return_counts=True)
    assert np.array_equal(stats.histogram.keys, keys) and np.array_equal(stats.histogram.counts, times * counts)

model = lambda x: tag_activation("h", x * 1)
for mesh in meshes:
    for spec in ((("a", "b"),), ("a", None, "b"), ()):
        x = jax.device_put(h, NamedSharding(mesh, P(*spec)))
        acc = jax.jit(lambda x: Accumulator().observe("h", x))(x)
        check(acc.statistics()["h"])
        acc = jax.jit(lambda x, acc: capture_activations(model, x, into=acc)[1])(x, acc)
        check(acc.statistics()["h"], 2)
    assert "all-gather" not in "".join(  # the values themselves stay where they are
        line for line in jax.jit(lambda x: Accumulator().observe("h", x)).lower(
            jax.device_put(h, NamedSharding(meshes[0], P("a", "b")))).compile().as_text().splitlines()
        if "48]" in line or "24]" in line)

    part = lambda x: Accumulator().observe("h", x).across(("a", "b"))
    spread = jax.shard_map(part, mesh=mesh, in_specs=P("a", "b"), out_specs=P(), check_vma=False)
    check(jax.jit(spread)(jax.device_put(h, NamedSharding(mesh, P("a", "b")))).statistics()["h"])

neurons = jax.jit(lambda x: Accumulator.create({"h": x}, per_neuron=True).observe("h", x))
x = jax.device_put(h, NamedSharding(meshes[0], P("a", None, "b")))
fit = neurons(x).neurons("h")
column = np.log(np.abs(h[..., 7].astype(np.float64)))
assert abs(fit.mu[7] - column.mean()) < 1e-6 and abs(fit.sigma[7] - column.std()) < 1e-6
print("equal")
"""
PARAMETERS = """
key = jax.random.key(0)
makers = (lognormal_he(), truncated_lognormal(-3, 1, 0.01, 1))
for make in makers:
    flat = np.asarray(jax.jit(lambda: make(key, (64, 96)))())
    for number, mesh in enumerate(meshes):
        sharding = NamedSharding(mesh, P("a", "b"))
        with jax.set_mesh(mesh):
            w = jax.jit(lambda: make(key, (64, 96)), out_shardings=sharding)() if number == 0 else \\
                jax.jit(lambda: make(key, (64, 96), jnp.float32, P("a", "b")))()
        assert w.sharding.is_equivalent_to(sharding, 2), w.sharding
        assert np.array_equal(np.asarray(w), flat)

w = (0.1 * rng.standard_normal((256, 320))).astype(np.float32)
g = rng.standard_normal(w.shape).astype(np.float32)
for every in (2,):
    optimiser = optax.chain(add_utility_gradient(0.3, (-2.0, 0.5), every=every), track_log_moments(2), optax.sgd(0.1))
    step = jax.jit(optimiser.update)
    wanted, state = step(jnp.asarray(g), optimiser.init(jnp.asarray(w)), jnp.asarray(w))
    numbers = read(state)["array"]
    for mesh in meshes:
        sharding = NamedSharding(mesh, P("a", "b"))
        params, grads = jax.device_put((w, g), sharding)
        found, state = step(grads, optimiser.init(params), params)
        assert found.sharding.is_equivalent_to(sharding, 2), found.sharding
        assert np.allclose(found, wanted, rtol=1e-4, atol=1e-6), np.abs(found - wanted).max()
        for name, value in read(state)["array"].items():
            assert abs(value - numbers[name]) <= 1e-4 * abs(numbers[name]), name
        found, state = step(grads, state, params)
        assert np.allclose(found, wanted, rtol=1e-4, atol=1e-6)
print("equal")
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_activations_are_those_of_the_whole_array() -> None:
    done = python(COMMON + ACTIVATIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


def test_parameters_keep_their_sharding_and_their_numbers() -> None:
    done = python(COMMON + PARAMETERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"
