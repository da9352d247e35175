"""The theory under transformations: jit equals eager, vmap equals a loop, gradients are right, and finite at edges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from teleojax.engine import compiled
from teleojax.teleo._density import density_distance, density_potential, relative_fisher
from teleojax.teleo._equilibrium import equilibrium, potential, potential_gap, utility_spread
from teleojax.teleo._flow import utility_flow
from teleojax.teleo._games import logit_dynamics, replicator
from teleojax.teleo._population import _play, simulate_population
from teleojax.teleo._utility import connection_utility, effective_utility, lognormal_utility

M, BATCH = 9, 4
GRID = np.linspace(-6, 4, M + 20)


def batches() -> dict[str, Any]:
    """Four of each argument; some shares are zero."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(M), BATCH)
    p[:, 2] = 0
    log_density = -0.5 * (GRID - rng.normal(size=(BATCH, 1))) ** 2 - 0.92
    log_density[:, :2] = -np.inf
    return {
        "p": (p / p.sum(axis=1, keepdims=True)).astype(np.float32),
        "u": rng.normal(size=(BATCH, M)).astype(np.float32),
        "x": rng.uniform(0.1, 2, (BATCH, M)).astype(np.float32),
        "y": rng.normal(size=(BATCH, M)).astype(np.float32),
        "log_density": log_density.astype(np.float32),
        "scale": rng.uniform(0.5, 2, BATCH).astype(np.float32),
        "keys": jax.random.split(jax.random.key(0), BATCH),
    }


DATA = batches()
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "effective_utility": (lambda p, x, g: effective_utility(p, x, g, g, gamma=g), ("p", "x", "scale")),
    "connection_utility": (lambda x, d, g: connection_utility(x, d, g, g, n=g, gamma=g), ("x", "y", "scale")),
    "lognormal_utility": (lambda x, g: lognormal_utility(x, g, g), ("x", "scale")),
    "equilibrium": (equilibrium, ("u", "scale")),
    "potential": (potential, ("p", "u", "scale")),
    "potential_gap": (potential_gap, ("p", "u", "scale")),
    "utility_spread": (utility_spread, ("u", "p")),
    "density_potential": (lambda d, g: density_potential(GRID, d, GRID, g), ("log_density", "scale")),
    "density_distance": (lambda d, g: density_distance(GRID, d, 0.3, g, gamma=g), ("log_density", "scale")),
    "relative_fisher": (lambda d, g: relative_fisher(GRID, d, 0.3, g, score=-GRID), ("log_density", "scale")),
    "replicator": (lambda p, u, t: replicator(p, u, t, gamma=0.7), ("p", "u", "scale")),
    "runge-kutta": (lambda p, u, t: replicator(p, u, t, method="runge-kutta", n_steps=8), ("p", "u", "scale")),
    "own utility": (
        lambda p, u, t: replicator(p, lambda q: u * q, t, method="runge-kutta", n_steps=8),
        ("p", "u", "scale"),
    ),
    "logit_dynamics": (logit_dynamics, ("p", "u", "scale")),
    "deterministic flow": (lambda y, t: utility_flow(y, 0.3, t, t, n_bins=64), ("y", "scale")),
    "affine flow": (lambda y, t: utility_flow(y, 0.3, t, t, density="lognormal"), ("y", "scale")),
    "langevin flow": (lambda y, k, t: utility_flow(y, 0.3, t, t, method="langevin", key=k), ("y", "keys", "scale")),
    "pairs": (lambda k, u, g: simulate_population(k, u, 1000, 20, gamma=g), ("keys", "u", "scale")),
}
SMOOTH = [name for name in FUNCTIONS if name not in ("pairs", "runge-kutta", "relative_fisher")]


def assert_close(got: Any, want: Any, tolerance: float = 2e-5) -> None:
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_and_mapped_is_one_by_one(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    data = [DATA[argument] for argument in arguments]
    one_by_one = [function(*each) for each in zip(*data, strict=True)]
    eager = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    assert all(leaf.dtype in (np.float32, np.int32, np.bool_) for leaf in jax.tree.leaves(eager))
    assert_close(jax.jit(jax.vmap(function))(*data), eager)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_finite_also_where_nothing_is(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    which = tuple(i for i, argument in enumerate(arguments) if argument != "keys")

    def total(*args: Any) -> jax.Array:
        leaves = [leaf for leaf in jax.tree.leaves(function(*args)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.where(jnp.isfinite(leaf), leaf, 0)) for leaf in leaves)

    gradients = jax.jit(jax.grad(total, argnums=which))(*(DATA[argument][0] for argument in arguments))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert any(np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, u, g: potential(p, u, 1.5 + g[0]),
        lambda p, u, g: potential_gap(p, u, 1.5 + g[0]),
        lambda p, u, g: equilibrium(u, 1.5 + g[0]).potential + p[0],
        lambda p, u, g: utility_spread(u, p).sd + g[0],
        lambda p, u, g: replicator(p, u, 1.5 + g[0]).p,
        lambda p, u, g: logit_dynamics(p, u, 1.5 + g[0]).log_p,
        lambda p, u, g: effective_utility(p, 2 + jnp.sin(u), g[0], 1.5 + g[1], gamma=1.5 + g[2]).h,
    ],
)
def test_gradients_are_right(function: Callable[..., Any]) -> None:
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        p, u, g = (jnp.asarray(v) for v in (rng.dirichlet(np.full(5, 3.0)), rng.normal(size=5), rng.uniform(size=3)))
        check_grads(jax.jit(function), (p, u, g), order=1, modes=("rev",), atol=1e-5, rtol=1e-5)


def test_the_flow_differentiates_in_its_parameters() -> None:
    y = np.random.default_rng(2).normal(size=12)
    with jax.enable_x64(True):
        point = [jnp.asarray(v) for v in (0.3, 1.2, 0.5)]
        check_grads(
            jax.jit(partial(utility_flow, jnp.asarray(y), n_bins=64)), point, order=1, modes=("rev",), rtol=1e-4
        )
        slope = jax.jacfwd(lambda v: utility_flow(v, *point, n_bins=64))(jnp.asarray(y))
    slope = np.asarray(slope)
    assert (np.diagonal(slope) > 0).all()  # no value overtakes another
    np.testing.assert_array_equal(slope[~np.eye(12, dtype=bool)], 0)  # with the law of the others held


def test_numbers_of_agents_starts_and_keys_are_values() -> None:
    u = DATA["u"][0]
    simulate_population(jax.random.key(0), u, 1000, 20)
    program = compiled(_play, "n_steps", "move", "parcels")
    before = program._cache_size()
    start = np.r_[77, np.zeros(M - 1, int)]
    simulate_population(jax.random.key(1), 2 * u, 77, 20, start=start, burn_in=5)
    assert program._cache_size() == before


def test_the_same_key_is_the_same_game() -> None:
    one, other = (simulate_population(jax.random.key(7), DATA["u"][0], 1000, 20) for _ in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
