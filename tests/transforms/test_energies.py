"""Hopfield and Boltzmann under JAX's transformations: jit = eager, vmap = loop, gradients, traces."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from teleojax.engine import compiled
from teleojax.teleo import _gibbs
from teleojax.teleo._boltzmann import boltzmann_equilibrium, state_utilities
from teleojax.teleo._gibbs import gibbs_sample
from teleojax.teleo._hopfield import hopfield_energy, hopfield_update
from tests.oracle.test_hopfield import network, random_states


def networks(n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    weights, biases = zip(*(network(n, seed) for seed in range(count)), strict=True)
    return np.stack(weights), np.stack(biases)


def close(a: object, b: object, tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def everything(weights: jax.Array, bias: jax.Array, temperature: jax.Array, states: jax.Array) -> dict[str, object]:
    key = jax.random.key(0)
    gibbs = boltzmann_equilibrium(weights, bias, temperature)
    return {
        "energy": hopfield_energy(states, weights, bias),
        "sequential": hopfield_update(states, weights, bias, max_sweeps=3),
        "random": hopfield_update(states, weights, bias, order="random", key=key, max_sweeps=3),
        "equilibrium": gibbs,
        "utilities": state_utilities(gibbs.log_probabilities, weights, bias, temperature),
        "sampled": gibbs_sample(key, weights, bias, temperature, 5, 3, 1),
    }


def test_jit_equals_eager_and_all_may_be_traced() -> None:
    weights, bias = (jnp.asarray(x, jnp.float32) for x in network(4))
    inputs = (weights, bias, jnp.float32(0.8), jnp.asarray(random_states((6, 4)), jnp.float32))
    want = everything(*inputs)
    traced = jax.eval_shape(everything, *inputs)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), traced) == jax.tree.map(lambda x: (x.shape, x.dtype), want)
    with jax.disable_jit():
        close(everything(*inputs), want, 2e-6)


def test_leading_axes_equal_a_loop() -> None:
    weights, bias = networks(7, 6)
    temperature = np.geomspace(0.2, 5, 6)
    with jax.enable_x64(True):
        many = boltzmann_equilibrium(weights, bias, temperature)
        ones = [boltzmann_equilibrium(w, b, t) for w, b, t in zip(weights, bias, temperature, strict=True)]
        close(many, jax.tree.map(lambda *x: jnp.stack(x), *ones), 1e-12)
        grid = boltzmann_equilibrium(weights[:, None], bias[:, None], temperature)  # every network, every temperature
        assert grid.pair_correlations.shape == (6, 6, 7, 7)
        close(jax.tree.map(lambda x: x[np.arange(6), np.arange(6)], grid), many, 1e-12)
        found = state_utilities(many.log_probabilities, weights, bias, temperature)
        np.testing.assert_allclose(found.effective, np.broadcast_to(many.potential[:, None], (6, 128)), atol=1e-12)


def test_vmap_equals_leading_axes() -> None:
    weights, bias = networks(6, 4)
    states = random_states((4, 6))
    close(jax.vmap(hopfield_energy)(states, weights, bias), hopfield_energy(states, weights, bias), 1e-6)
    close(
        jax.vmap(lambda t: boltzmann_equilibrium(weights[0], bias[0], t))(jnp.asarray([0.5, 2.0])),
        boltzmann_equilibrium(weights[0], bias[0], np.asarray([0.5, 2.0])),
        2e-6,
    )


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_updates_of_many_states_equal_a_loop(order: str) -> None:
    weights, bias = network(40)
    states, key = random_states((2, 6, 40)), jax.random.key(5)
    many = hopfield_update(states, weights, bias, order=order, key=key)
    for k in np.ndindex(2, 6):
        one = hopfield_update(states[k], weights, bias, order=order, key=key)
        np.testing.assert_array_equal(many.states[k], one.states)
        np.testing.assert_array_equal(many.sweeps[k], one.sweeps)
        np.testing.assert_allclose(many.energies[k], one.energies, rtol=1e-5)


def test_updates_vmap_over_networks() -> None:
    weights, bias = networks(20, 4)
    states = random_states((4, 20))
    many = jax.vmap(hopfield_update)(states, weights, bias)
    for k in range(4):
        one = hopfield_update(states[k], weights[k], bias[k])
        np.testing.assert_array_equal(many.states[k], one.states)
        assert many.sweeps[k] == one.sweeps


def test_sampling_vmaps_over_keys_and_temperatures() -> None:
    weights, bias = network(4)
    keys, temperatures = jax.random.split(jax.random.key(0), 3), jnp.asarray([0.5, 1.0, 2.0])

    def sample(key: jax.Array, temperature: jax.Array) -> _gibbs.GibbsAverages:
        return gibbs_sample(key, weights, bias, temperature, 5, 40, 5)

    many = jax.vmap(sample)(keys, temperatures)
    ones = [sample(k, t) for k, t in zip(keys, temperatures, strict=True)]
    close(many, jax.tree.map(lambda *x: jnp.stack(x), *ones), 1e-6)


def test_gradients_of_the_free_energy_are_the_averages() -> None:
    """∂F/∂b_i = −⟨s_i⟩, ∂F/∂W_ij = −½⟨s_i s_j⟩ with W_ij and W_ji apart, ∂F/∂T = −S."""
    weights, bias = network(6)
    with jax.enable_x64(True):
        w, b, t = jnp.asarray(weights), jnp.asarray(bias), jnp.asarray(0.9)

        def free_energy(w: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
            return boltzmann_equilibrium(w, b, t).free_energy

        gibbs = boltzmann_equilibrium(w, b, t)
        by_w, by_b, by_t = jax.grad(free_energy, (0, 1, 2))(w, b, t)
        np.testing.assert_allclose(by_b, -gibbs.magnetisations, rtol=0, atol=1e-12)
        # a coupling is read once where it joins the halves of the spins: the two triangles together count
        np.testing.assert_allclose((by_w + by_w.T) / 2, -0.5 * gibbs.pair_correlations, rtol=0, atol=1e-12)
        np.testing.assert_allclose(by_t, -gibbs.entropy, rtol=0, atol=1e-12)
        check_grads(lambda u, b, t: free_energy(jnp.triu(u, 1) + jnp.triu(u, 1).T, b, t), (w, b, t), order=1)


def test_new_numbers_of_sweeps_do_not_retrace() -> None:
    weights, bias = network(4)
    gibbs_sample(jax.random.key(0), weights, bias, 1.0, 5, 10, 2)
    run = compiled(_gibbs._sample, "n_chains", "order")
    before = run._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    gibbs_sample(jax.random.key(1), weights, 0.0, 2.5, 5, 33, 0)
    assert run._cache_size() == before  # pyright: ignore[reportFunctionMemberAccess]
