"""Boltzmann machine: enumeration against plain NumPy, solvable chains, arbitrage equilibrium, sampled averages.

Sampled averages are checked jointly, seeds fixed: of the 45 pairs of 10 spins at most one lies beyond 3 standard
errors and none beyond 4.5. With 63 degrees of freedom 0.17 pairs are expected beyond 3, so that a correct sampler with
a new seed would fail a check in about 1.5% of cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import teleojax as tj
from teleojax.teleo._boltzmann import boltzmann_equilibrium, spin_states, state_utilities
from teleojax.teleo._gibbs import GibbsAverages, gibbs_sample
from teleojax.teleo._hopfield import hopfield_energy, hopfield_update
from tests.oracle.test_hopfield import network

PAIRS = np.triu_indices(10, 1)


def plain_equilibrium(weights: np.ndarray, bias: np.ndarray, temperature: float) -> dict[str, np.ndarray | float]:
    """Every state one by one, in float64."""
    n = len(bias)
    states = [np.asarray(s[::-1], float) for s in itertools.product([-1, 1], repeat=n)]
    energies = np.asarray([-0.5 * s @ weights @ s - bias @ s for s in states])
    boltzmann = np.asarray([math.exp(-(e - energies.min()) / temperature) for e in energies])
    p = boltzmann / math.fsum(boltzmann)
    return {
        "energies": energies,
        "probabilities": p,
        "free_energy": energies.min() - temperature * math.log(math.fsum(boltzmann)),
        "mean_energy": math.fsum(p * energies),
        "entropy": -math.fsum(q * math.log(q) for q in p if q > 0),
        "magnetisations": sum(q * s for q, s in zip(p, states, strict=True)),
        "pair_correlations": sum(q * np.outer(s, s) for q, s in zip(p, states, strict=True)),
    }


def agree(sampled: GibbsAverages, exact: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    z = np.abs((np.asarray(sampled.pair_correlations, float) - exact)[pairs] / sampled.pair_correlations_se[pairs])
    assert np.sum(z > 3) <= 1, np.sort(z)[-5:]
    assert z.max() < 4.5, np.sort(z)[-5:]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("n", [1, 7, 10])
def test_equilibrium_matches_enumeration_in_numpy(n: int, temperature: float) -> None:
    weights, bias = network(n)
    want = plain_equilibrium(weights, bias, temperature)
    single = boltzmann_equilibrium(weights, bias, temperature)
    assert single.free_energy.dtype == np.float32
    with jax.enable_x64(True):
        double = boltzmann_equilibrium(weights, bias, temperature)
        for name, value in want.items():
            np.testing.assert_allclose(getattr(double, name), value, rtol=1e-12, atol=1e-12, err_msg=name)
    for name, value in want.items():
        np.testing.assert_allclose(getattr(single, name), value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_states_are_numbered_by_their_bits() -> None:
    np.testing.assert_array_equal(spin_states(2), [[-1, -1], [1, -1], [-1, 1], [1, 1]])
    weights, bias = network(10)
    energies = hopfield_energy(spin_states(10), weights, bias)
    np.testing.assert_allclose(boltzmann_equilibrium(weights, bias, 1.0).energies, energies, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_effective_utility_is_one_number_at_equilibrium(x64: bool, tolerance: float, temperature: float) -> None:
    """h(s) = −E(s)/T − ln p(s) = φ* = −F/T in each of 2ⁿ states."""
    weights, bias = network(10)
    with jax.enable_x64(x64):
        gibbs = boltzmann_equilibrium(weights, bias, temperature)
        found = state_utilities(gibbs.log_probabilities, weights, bias, temperature)
        np.testing.assert_allclose(found.effective, gibbs.potential, rtol=0, atol=tolerance)
        np.testing.assert_allclose(gibbs.potential, -gibbs.free_energy / temperature, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.potential, gibbs.potential, rtol=0, atol=tolerance)
        assert found.dispersion < tolerance
        np.testing.assert_allclose(found.utility, -gibbs.energies / temperature, rtol=0, atol=tolerance)


def test_potential_falls_short_of_its_maximum_by_the_divergence() -> None:
    weights, bias = network(6)
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.full(64, 0.3), 20))
    with jax.enable_x64(True):
        gibbs = boltzmann_equilibrium(weights, bias, 0.7)
        found = state_utilities(log_p, weights, bias, 0.7)
        kl = np.sum(np.exp(log_p) * (log_p - np.asarray(gibbs.log_probabilities)), axis=1)
        assert kl.min() > 0.1
        np.testing.assert_allclose(found.potential, gibbs.potential - kl, rtol=0, atol=1e-12)
        h, p = np.asarray(found.effective), np.exp(log_p)
        spread = np.sqrt(np.sum(p * h**2, axis=1) - np.sum(p * h, axis=1) ** 2)
        np.testing.assert_allclose(found.dispersion, spread, rtol=1e-9)


def test_an_empty_state_draws_without_bound_and_counts_for_nothing() -> None:
    log_p = np.asarray([0.0, -np.inf])
    found = state_utilities(log_p, np.zeros((1, 1)), 0.5, 1.0)
    np.testing.assert_array_equal(found.effective, [-0.5, np.inf])
    assert (found.potential, found.dispersion) == (-0.5, 0)


@pytest.mark.parametrize("n", [10, 20])
def test_ring_of_spins_matches_its_transfer_matrix(n: int) -> None:
    """F = −T ln(λ₊ⁿ + λ₋ⁿ), λ± = e^{J/T} cosh(b/T) ± √(e^{2J/T} sinh²(b/T) + e^{−2J/T})."""
    coupling, field, temperature = 0.8, 0.3, 1.3
    weights = coupling * (np.roll(np.eye(n), 1, axis=0) + np.roll(np.eye(n), -1, axis=0))
    j, b = coupling / temperature, field / temperature
    root = math.sqrt(math.exp(2 * j) * math.sinh(b) ** 2 + math.exp(-2 * j))
    high, low = math.exp(j) * math.cosh(b) + root, math.exp(j) * math.cosh(b) - root
    gibbs = boltzmann_equilibrium(weights, field, temperature)
    assert float(gibbs.free_energy) == pytest.approx(-temperature * math.log(high**n + low**n), rel=2e-6)
    np.testing.assert_allclose(gibbs.magnetisations, gibbs.magnetisations[0], atol=2e-5)


@pytest.mark.parametrize("temperature", [2e-38, 1e-20, 1e-4])
def test_zero_temperature_is_the_ground_states(temperature: float) -> None:
    weights, _ = network(10)
    gibbs = boltzmann_equilibrium(weights, 0.0, temperature)  # without bias s and −s are alike
    lowest = plain_equilibrium(weights, np.zeros(10), 1.0)["energies"].min()
    assert float(gibbs.entropy) == pytest.approx(math.log(2), abs=1e-6)
    assert float(gibbs.free_energy) == pytest.approx(lowest, abs=temperature * 0.7 + 1e-5)
    assert float(gibbs.mean_energy) == pytest.approx(lowest, abs=1e-5)
    np.testing.assert_allclose(gibbs.magnetisations, 0, atol=1e-6)
    np.testing.assert_allclose(np.abs(gibbs.pair_correlations), 1, atol=1e-6)
    assert not np.any(np.isnan(gibbs.log_probabilities))
    ground = spin_states(10)[np.asarray(gibbs.probabilities) > 0.1]
    assert hopfield_update(ground, weights).sweeps.tolist() == [0, 0]


def test_infinite_temperature_is_uniform() -> None:
    weights, bias = network(10)
    with jax.enable_x64(True):
        gibbs = boltzmann_equilibrium(weights, bias, 1e6)
        np.testing.assert_allclose(gibbs.probabilities, 2.0**-10, rtol=2e-5)
        np.testing.assert_allclose(gibbs.entropy, 10 * math.log(2), rtol=1e-10)
        np.testing.assert_allclose(gibbs.magnetisations * 1e6, bias, rtol=0, atol=1e-5)  # ⟨s⟩ → b/T
        np.testing.assert_allclose(gibbs.pair_correlations * 1e6, weights + 1e6 * np.eye(10), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0, 50.0])
def test_free_energy_is_energy_less_temperature_times_entropy(temperature: float) -> None:
    weights, bias = network(9)
    with jax.enable_x64(True):
        gibbs = boltzmann_equilibrium(weights, bias, temperature)
        p = np.asarray(gibbs.probabilities)
        entropy = -np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)))
        np.testing.assert_allclose(gibbs.entropy, entropy, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(gibbs.mean_energy, p @ np.asarray(gibbs.energies), rtol=1e-13)
        want = gibbs.mean_energy - temperature * gibbs.entropy
        np.testing.assert_allclose(gibbs.free_energy, want, rtol=1e-13)


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_samples_match_the_equilibrium_of_ten_spins(order: str) -> None:
    weights, bias = network(10)
    exact = plain_equilibrium(weights, bias, 1.0)
    sampled = gibbs_sample(jax.random.key(0), weights, bias, 1.0, 512, 1000, 100, order=order)
    agree(sampled, exact["pair_correlations"], PAIRS)
    z = (np.asarray(sampled.magnetisations) - exact["magnetisations"]) / sampled.magnetisations_se
    assert np.abs(z).max() < 4
    assert abs(sampled.mean_energy - exact["mean_energy"]) < 4 * sampled.mean_energy_se
    assert sampled.pair_correlations_se[PAIRS].max() < 0.003  # sharp enough to tell
    np.testing.assert_allclose(np.diagonal(sampled.pair_correlations), 1, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(sampled.pair_correlations_se), 0, atol=1e-7)
    assert sampled.states.shape == (512, 10)
    assert set(np.unique(sampled.states)) == {-1, 1}


def bipartite() -> tuple[np.ndarray, np.ndarray]:
    """3 spins against 6, shuffled, and one that is coupled to none."""
    weights, bias = network(10)
    side = np.asarray([0, 1, 1, 0, 1, 1, 0, 1, 1, 2])
    return np.where((side[:, None] + side) == 1, 2 * weights, 0.0), bias


def test_chessboard_matches_the_equilibrium_of_two_colours() -> None:
    weights, bias = bipartite()
    exact = plain_equilibrium(weights, bias, 1.0)
    sampled = gibbs_sample(jax.random.key(1), weights, bias, 1.0, 512, 1000, 100, order="chessboard")
    agree(sampled, exact["pair_correlations"], PAIRS)
    z = (np.asarray(sampled.magnetisations) - exact["magnetisations"]) / sampled.magnetisations_se
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("order", ["random", "chessboard"])
def test_a_long_chain_has_the_correlations_of_its_solution(order: str) -> None:
    """⟨s_i s_{i+r}⟩ = tanh(J/T)^r on an open chain: 40 spins, more than one block of updates."""
    n = 40
    weights = 0.7 * (np.eye(n, k=1) + np.eye(n, k=-1))
    sampled = gibbs_sample(jax.random.key(2), weights, 0.0, 1.1, 100, 600, 50, order=order)
    i = np.arange(n)
    exact = math.tanh(0.7 / 1.1) ** np.abs(i[:, None] - i)
    agree(sampled, exact, (i[:-1], i[1:]))
    agree(sampled, exact, (i[:-4], i[4:]))
    energy = -0.5 * np.sum(weights * exact)
    assert abs(sampled.mean_energy - energy) < 4 * sampled.mean_energy_se


def test_standard_errors_tell_the_spread_of_repeated_runs() -> None:
    """Slow chains: errors that took sweeps as independent would be too small by far."""
    weights, bias = network(10)
    n_chains, n_sweeps, temperature = 70, 150, 0.6  # 35 groups of 2
    exact = plain_equilibrium(weights, bias, temperature)["pair_correlations"]

    def sample(key: jax.Array) -> GibbsAverages:
        return gibbs_sample(key, weights, bias, temperature, n_chains, n_sweeps, 300, order="sequential")

    runs = jax.vmap(sample)(jax.random.split(jax.random.key(3), 60))
    got = np.asarray(runs.pair_correlations, float)[:, *PAIRS]
    claimed = np.mean(np.asarray(runs.pair_correlations_se)[:, *PAIRS] ** 2, axis=0)
    seen = np.mean((got - exact[PAIRS]) ** 2, axis=0)
    naive = (1 - exact[PAIRS] ** 2) / (n_chains * n_sweeps)
    assert 0.8 < np.mean(seen / claimed) < 1.25
    assert np.mean(seen / naive) > 2


def test_cold_chains_end_where_hopfield_updates_stop() -> None:
    weights, bias = network(48)
    cold = gibbs_sample(jax.random.key(0), weights, bias, 1e-6, 200, 1, 60, order="sequential")
    run = hopfield_update(cold.states, weights, bias)
    np.testing.assert_array_equal(run.sweeps, 0)
    assert run.fixed_point.all()
    assert len(np.unique(cold.states, axis=0)) > 5  # many local optima


def test_averages_are_those_of_the_states() -> None:
    """One sweep: groups of 3 chains, the last of 1, and what they ended in is what was averaged."""
    weights, bias = network(5)
    with jax.enable_x64(True):
        got = gibbs_sample(jax.random.key(0), weights, bias, 2.0, 130, 1, 17)
        energies = np.asarray(hopfield_energy(got.states, weights, bias))
    assert got.pair_correlations.dtype == np.float64
    assert got.states.dtype == np.int8
    states = np.asarray(got.states, float)
    assert len(np.unique(states, axis=0)) > 10
    np.testing.assert_allclose(got.magnetisations, states.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(got.pair_correlations, states.T @ states / 130, atol=1e-14)
    np.testing.assert_allclose(got.mean_energy, energies.mean(), atol=1e-13)
    starts, sizes = np.arange(0, 130, 3), np.asarray([3.0] * 43 + [1.0])
    for values, se in ((states, got.magnetisations_se), (energies, got.mean_energy_se)):
        groups = np.stack([values[k : k + 3].mean(axis=0) for k in starts])
        variance = sizes @ (groups - values.mean(axis=0)) ** 2 / 43 / 130
        np.testing.assert_allclose(se, np.sqrt(variance), rtol=1e-10)


KEY, W = jax.random.key, np.asarray([[0.0, 1.0], [1.0, 0.0]])
TRIANGLE = 1.0 - np.eye(3)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "too many": (lambda: boltzmann_equilibrium(np.zeros((21, 21)), 0.0, 1.0), "n = 21 spins.* gibbs_sample"),
    "too many states": (lambda: spin_states(21), "n = 21 spins"),
    "T = 0": (lambda: boltzmann_equilibrium(W, 0.0, 0.0), "temperature: found 0.0.* hopfield_update"),
    "T subnormal": (lambda: boltzmann_equilibrium(W, 0.0, 1e-40), "float32, 1.18e-38 or more"),
    "T < 0": (lambda: boltzmann_equilibrium(W, 0.0, np.asarray([1.0, -2.0])), "found -2.0"),
    "T NaN": (lambda: boltzmann_equilibrium(W, 0.0, math.nan), "temperature: found nan"),
    "T infinite": (lambda: boltzmann_equilibrium(W, 0.0, math.inf), "all states are equally likely"),
    "leading axes": (lambda: boltzmann_equilibrium(np.zeros((3, 2, 2)), 0.0, np.ones(2)), r"\(3,\), \(\), \(2,\)"),
    "asymmetric": (lambda: boltzmann_equilibrium(np.triu(W), 0.0, 1.0), "symmetric"),
    "states": (lambda: state_utilities(np.zeros(3), W, 0.0, 1.0), r"shape \(3,\); needed \[\.\.\. 4\]"),
    "not a distribution": (lambda: state_utilities(np.zeros(4), W, 0.0, 1.0), "do not sum to 1.*logsumexp"),
    "NaN": (lambda: state_utilities(np.full(4, np.nan), W, 0.0, 1.0), "do not sum to 1"),
    "one chain": (lambda: gibbs_sample(KEY(0), W, 0.0, 1.0, 1, 10, 0), "n_chains: found 1; needed 2"),
    "no sweeps": (lambda: gibbs_sample(KEY(0), W, 0.0, 1.0, 2, 0, 0), "n_sweeps: found 0"),
    "too long": (lambda: gibbs_sample(KEY(0), W, 0.0, 1.0, 128, 2**30, 0), "n_sweeps: found 1073741824"),
    "burn-in": (lambda: gibbs_sample(KEY(0), W, 0.0, 1.0, 2, 1, -1), "burn_in: found -1"),
    "order": (lambda: gibbs_sample(KEY(0), W, 0.0, 1.0, order="spiral"), "'spiral'"),
    "T many": (lambda: gibbs_sample(KEY(0), W, 0.0, np.ones(2)), "one network and one temperature"),
    "triangle": (lambda: gibbs_sample(KEY(0), TRIANGLE, 0.0, 1.0, order="chessboard"), "odd length.*order='random'"),
    "traced": (
        lambda: jax.jit(lambda w: gibbs_sample(KEY(0), w, 0.0, 1.0, order="chessboard"))(jnp.asarray(W)),
        "inside a JAX transformation",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(tj.UsageError, match=message):
        call()
