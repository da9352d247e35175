"""Hopfield network: energies and asynchronous updates against plain NumPy, stored patterns, what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import teleojax as tj
from teleojax.teleo._hopfield import hopfield_energy, hopfield_update, recall, store_patterns


def network(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian couplings, exactly symmetric, zero diagonal, and biases: a spin glass."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.standard_normal((n, n)) / np.sqrt(n), 1)
    return upper + upper.T, 0.3 * rng.standard_normal(n)


def random_states(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.asarray([-1, 1], np.int8), shape)


def plain_energy(s: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    pairs = s[..., :, None].astype(float) * s[..., None, :]
    return -0.5 * np.sum(weights * pairs, axis=(-1, -2)) - np.sum(bias * s, axis=-1)


def plain_updates(s: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Spin after spin, every field from its definition; every turn must lower the energy."""
    s, after_sweep = s.astype(float), [s.copy()]
    while True:
        before = s.copy()
        for i in range(len(s)):
            field = weights[i] @ s + bias[i]
            if field * s[i] < 0:
                old = plain_energy(s, weights, bias)
                s[i] = -s[i]
                assert plain_energy(s, weights, bias) < old
        if np.array_equal(before, s):
            return s, after_sweep
        after_sweep.append(s.copy())


def test_energy_of_two_spins_by_hand() -> None:
    states = [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    got = hopfield_energy(np.asarray(states), np.asarray([[0, 2], [2, 0]]), np.asarray([0.5, -0.25]))
    np.testing.assert_array_equal(got, [-2 + 0.25, 2 - 0.75, 2 + 0.75, -2 - 0.25])


def test_energy_matches_numpy_over_leading_axes() -> None:
    weights, bias = (np.stack(x) for x in zip(*(network(12, seed) for seed in range(3)), strict=True))
    states = random_states((5, 3, 12))
    want = plain_energy(states, weights, bias)
    np.testing.assert_allclose(hopfield_energy(states, weights, bias), want, rtol=0, atol=1e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(hopfield_energy(states, weights, bias), want, rtol=0, atol=1e-13)
    assert hopfield_energy(random_states((0, 12)), weights[0], bias[0]).shape == (0,)


@pytest.mark.parametrize("n", [1, 33, 70])  # blocks of 1, 17 and 24 spins
def test_sequential_updates_are_those_of_plain_numpy(n: int) -> None:
    weights, bias = network(n)
    states = random_states((20, n))
    with jax.enable_x64(True):
        run = hopfield_update(states, weights, bias)
    for k, state in enumerate(states):
        want, after_sweep = plain_updates(state, weights, bias)
        np.testing.assert_array_equal(run.states[k], want)
        assert run.sweeps[k] == len(after_sweep) - 1
        energies = [plain_energy(s, weights, bias) for s in after_sweep]
        energies += [energies[-1]] * (run.energies.shape[1] - len(energies))
        np.testing.assert_allclose(run.energies[k], energies, rtol=0, atol=1e-12)
    assert run.states.dtype == np.int8
    assert (run.status == "fixed point").all()


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_ten_thousand_runs_never_raise_the_energy_and_end_in_local_optima(order: str) -> None:
    weights, bias = network(48)
    states = random_states((10_000, 48))
    run = hopfield_update(states, weights, bias, order=order, key=jax.random.key(0))
    energies, end = np.asarray(run.energies), np.asarray(run.states)
    scale = np.abs(weights).sum() + np.abs(bias).sum()
    assert np.diff(energies, axis=1).max() <= 4e-7 * scale  # rounding of a sum in float32
    np.testing.assert_allclose(energies[:, 0], plain_energy(states, weights, bias), rtol=0, atol=4e-7 * scale)
    np.testing.assert_allclose(energies[:, -1], plain_energy(end, weights, bias), rtol=0, atol=4e-7 * scale)
    assert (run.status == "fixed point").all()
    assert (end * (end @ weights + bias)).min() > -1e-5  # turning any one spin costs energy
    changed = np.any(end != states, axis=1)
    np.testing.assert_array_equal(changed, np.asarray(run.sweeps) > 0)
    assert changed.mean() > 0.99
    assert (energies[:, 0] - energies[:, -1])[changed].min() > 0


def test_random_orders_differ_by_key_and_are_replayed() -> None:
    weights, bias = network(48)
    states = random_states((10_000, 48))
    a, b, c = (hopfield_update(states, weights, bias, order="random", key=jax.random.key(k)).states for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c, axis=1).mean() > 0.2


def test_updates_are_one_spin_after_another() -> None:
    """Turning both of two opposed spins at once would go on for ever."""
    weights = np.asarray([[0.0, -1.0], [-1.0, 0.0]])
    run = hopfield_update(np.asarray([1, 1]), weights)
    np.testing.assert_array_equal(run.states, [-1, 1])
    assert (int(run.sweeps), run.energies[-1]) == (1, -1)


def test_ties_keep_their_state() -> None:
    """Beside a last spin that does turn, so that sweeps are made."""
    free = random_states((30, 9))
    free[:, -1] = -1
    run = hopfield_update(free, np.zeros((9, 9)), np.eye(9)[-1])
    np.testing.assert_array_equal(run.states[:, :-1], free[:, :-1])
    assert np.all(run.states[:, -1] == 1)
    assert np.all(run.sweeps == 1)
    # the field of the first spin, 0.3 − 0.1 − 0.2, is zero but for rounding
    weights = np.zeros((5, 5))
    weights[0, 1:4] = weights[1:4, 0] = [0.3, -0.1, -0.2]
    assert 0 < abs(0.3 - 0.1 - 0.2) < 1e-15
    with jax.enable_x64(True):
        for first in (-1, 1):
            run = hopfield_update(np.asarray([first, 1, 1, 1, -1]), weights, np.asarray([0.0, 1, 1, 1, 1]))
            np.testing.assert_array_equal(run.states, [first, 1, 1, 1, 1])


def test_too_few_sweeps_are_told() -> None:
    weights, bias = network(48)
    states = random_states((10_000, 48))
    full = hopfield_update(states, weights, bias)
    part = hopfield_update(states, weights, bias, max_sweeps=2)
    assert part.energies.shape == (10_000, 3)
    np.testing.assert_array_equal(part.energies, full.energies[:, :3])
    np.testing.assert_array_equal(part.fixed_point, full.sweeps <= 2)
    np.testing.assert_array_equal(part.status, np.where(full.sweeps <= 2, "fixed point", "max sweeps"))
    assert 0 < part.fixed_point.mean() < 1
    none = hopfield_update(full.states, weights, bias, max_sweeps=0)
    assert none.fixed_point.all()
    assert none.energies.shape == (10_000, 1)


def test_types_of_states_come_back() -> None:
    weights, _ = network(5)
    for dtype, back in (("float32", "float32"), ("uint8", "int8")):
        run = hopfield_update(np.ones(5, dtype), -np.abs(weights))
        assert run.states.dtype == back
        assert run.states.min() == -1
    assert hopfield_update(jnp.ones((0, 5)), weights).states.shape == (0, 5)


def test_hebbian_weights_are_their_definition() -> None:
    patterns = random_states((7, 20))
    want = sum(np.outer(p, p).astype(float) for p in patterns) / 20
    np.fill_diagonal(want, 0)
    np.testing.assert_allclose(store_patterns(patterns), want, rtol=1e-6)
    assert not np.any(store_patterns(np.ones((0, 6))))
    assert not np.any(store_patterns(np.ones((0, 6)), rule="pseudo-inverse"))


@pytest.mark.parametrize(("rule", "n_patterns"), [("hebbian", 40), ("pseudo-inverse", 60)])
def test_stored_patterns_are_recalled_from_a_tenth_of_flipped_bits(rule: str, n_patterns: int) -> None:
    n = 500
    patterns = random_states((n_patterns, n))
    rng = np.random.default_rng(2)
    cues = patterns.copy()
    for cue in cues:
        cue[rng.choice(n, n // 10, replace=False)] *= -1
    weights = store_patterns(patterns, rule=rule)
    recalled = recall(cues, weights, patterns)
    own = np.diagonal(np.asarray(recalled.overlaps))
    np.testing.assert_allclose(own, np.sum(recalled.run.states * patterns, axis=1) / n, rtol=1e-6)
    assert (own >= 0.95).mean() >= 0.95
    mirrored = recall(-cues, weights, patterns)
    np.testing.assert_array_equal(mirrored.run.states, -recalled.run.states)


def test_overloaded_hebbian_memory_fails_where_the_pseudo_inverse_does_not() -> None:
    patterns = random_states((30, 100))  # 0.3 n
    shares = {}
    for rule in ("hebbian", "pseudo-inverse"):
        end = hopfield_update(patterns, store_patterns(patterns, rule=rule)).states
        shares[rule] = np.mean(np.all(end == patterns, axis=1))
    assert shares["pseudo-inverse"] == 1
    assert shares["hebbian"] < 0.2


W, S = np.asarray([[0.0, 1.0], [1.0, 0.0]]), np.ones(2)
REFUSED: dict[str, tuple[Any, str]] = {
    "not symmetric": (lambda: hopfield_energy(S, np.asarray([[0, 1.0], [0.5, 0]])), r"by 0.5 between .*\(W \+ W.T\)"),
    "diagonal": (lambda: hopfield_energy(S, np.eye(2)), "2 weights of a spin with itself, up to 1; needed a zero diag"),
    "NaN weights": (lambda: hopfield_energy(S, W * np.nan), "weights: found NaN"),
    "NaN bias": (lambda: hopfield_energy(S, W, np.nan), "bias: found NaN"),
    "not square": (lambda: hopfield_energy(S, np.zeros((2, 3))), r"shape \(2, 3\)"),
    "no spins": (lambda: hopfield_energy(S, np.zeros((0, 0))), "n ≥ 1"),
    "bias shape": (lambda: hopfield_energy(S, W, np.ones(3)), r"needed \[\.\.\. 2\]"),
    "states shape": (lambda: hopfield_energy(np.ones(3), W), r"states: found shape \(3,\)"),
    "bits": (lambda: hopfield_energy(np.asarray([0, 1]), W), r"1 values other than ±1, 0 .* 2 s − 1"),
    "leading axes": (lambda: hopfield_energy(np.ones((3, 2)), np.stack([W, W])), r"leading axes \(3,\), \(2,\), \(\)"),
    "batched network": (lambda: hopfield_update(S, np.stack([W, W])), "jax.vmap"),
    "order": (lambda: hopfield_update(S, W, order="backwards"), "'backwards'"),
    "no key": (lambda: hopfield_update(S, W, order="random"), r"Pass key=jax.random.key\(0\)"),
    "sweeps": (lambda: hopfield_update(S, W, max_sweeps=-1), "max_sweeps: found -1"),
    "rule": (lambda: store_patterns(S[None], rule="delta"), "'delta'"),
    "one pattern": (lambda: store_patterns(S), r"needed \[patterns n\]"),
    "patterns": (lambda: recall(S, W, np.ones((1, 3))), r"recall: patterns: found shape \(1, 3\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(tj.UsageError, match=message):
        call()
