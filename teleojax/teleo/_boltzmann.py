"""Boltzmann machine: the arbitrage equilibrium of a game whose categories are the states of n spins.

With the utility u(s) = −E(s)/T, E as in a Hopfield network, the effective utility of a state is h(s) = u(s) − ln p(s).
At equilibrium it is the same in all states, so p* = softmax(u) is the Gibbs distribution, and the potential
φ(p) = Σ p u − Σ p ln p is at its maximum φ* = ln Σ exp(u) = −F/T, F the free energy (Ackley, Hinton & Sejnowski 1985,
Cognitive Science 9, 147; arXiv 2405.10955). Temperature is in the units of E; entropy and utility are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Int8

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import known, one_of
from teleojax.teleo._hopfield import (
    EXACT,
    common_batch,
    couplings,
    energy,
    sweep,
    visiting_order,
    whole_blocks,
    whole_number,
)

MAX_SPINS = 20  # 2²⁰ states: 4 MB of float32 for each number that a state has
GROUPS = 64  # of chains, whose means tell the standard errors, to 9% of themselves; n² sums are kept for each
SUM_TOLERANCE = 1e-3  # of probabilities that are rounded to float32, or were to fewer bits
TOGETHER = 16  # sweeps whose states are kept, so that n² sums are read and written once for all of them


class BoltzmannEquilibrium(eqx.Module):
    """The Gibbs distribution over all 2ⁿ states, in the order of `spin_states`.

    `potential` φ* = −F/T; `free_energy` F = −T ln Σ exp(−E/T) = `mean_energy` − T · `entropy`; `magnetisations` ⟨s_i⟩;
    `pair_correlations` ⟨s_i s_j⟩ with ones on the diagonal, not less ⟨s_i⟩⟨s_j⟩.
    """

    energies: Float[Array, "*batch states"]
    log_probabilities: Float[Array, "*batch states"]
    potential: Float[Array, "*batch"]
    free_energy: Float[Array, "*batch"]
    mean_energy: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]
    magnetisations: Float[Array, "*batch n"]
    pair_correlations: Float[Array, "*batch n n"]

    @property
    def probabilities(self) -> Float[Array, "*batch states"]:
        """p*(s) of every state."""
        return jnp.exp(self.log_probabilities)


class StateUtilities(eqx.Module):
    """What states gain under some distribution p over them.

    `utility` u(s) = −E(s)/T; `effective` h(s) = u(s) − ln p(s), +∞ in a state that is empty; `potential`
    φ(p) = Σ p h = φ* − KL(p ‖ p*); `dispersion`, the standard deviation of h over p, 0 at equilibrium.
    """

    utility: Float[Array, "*batch states"]
    effective: Float[Array, "*batch states"]
    potential: Float[Array, "*batch"]
    dispersion: Float[Array, "*batch"]


class GibbsAverages(eqx.Module):
    """Averages over sampled states, each with its standard error, and the state that every chain ended in.

    The errors come from the spread between groups of independent chains, so correlation along a chain is accounted
    for; they cannot tell of a mode that no chain has visited, and are 0 where all groups agree.
    """

    magnetisations: Float[Array, " n"]
    magnetisations_se: Float[Array, " n"]
    pair_correlations: Float[Array, "n n"]
    pair_correlations_se: Float[Array, "n n"]
    mean_energy: Float[Array, ""]
    mean_energy_se: Float[Array, ""]
    states: Int8[Array, "chains n"]


def spin_states(n: int) -> Int8[Array, "states n"]:
    """All 2ⁿ states of n spins: spin i of state k is +1 where bit i of k is set, else −1. UsageError for n > 20."""
    _enumerable("spin_states", n)
    return jnp.asarray(_bits(n), jnp.int8) * 2 - 1


def boltzmann_equilibrium(weights: ArrayLike, bias: ArrayLike, temperature: ArrayLike) -> BoltzmannEquilibrium:
    """The Gibbs distribution p*(s) = exp((F − E(s))/T) of a network of at most 20 spins, by enumeration.

    weights [*batch n n], bias [*batch n] or one number, temperature [*batch], in the units of E; leading axes
    broadcast. Every sum is of exponentials relative to the largest, so T may be as small or large as its type holds: a
    state whose probability underflows has log-probability −∞ at worst and adds nothing; `potential` alone overflows.
    Differentiable: ∂F/∂b = −⟨s⟩. Memory: about 5 · 2ⁿ numbers a network.

    Raises UsageError for n > 20, T ≤ 0, and W and b that hopfield_energy refuses. Reference: Ackley, Hinton &
    Sejnowski 1985.
    """
    weights, bias = couplings("boltzmann_equilibrium", weights, bias)
    _enumerable("boltzmann_equilibrium", weights.shape[-1])
    temperature = _temperature("boltzmann_equilibrium", temperature, weights.dtype)
    common_batch("boltzmann_equilibrium", weights.shape[:-2], bias.shape[:-1], temperature.shape)
    return compiled(_equilibria)(weights, bias, temperature)


def state_utilities(
    log_probabilities: ArrayLike, weights: ArrayLike, bias: ArrayLike, temperature: ArrayLike
) -> StateUtilities:
    """Effective utility h(s) = −E(s)/T − ln p(s) of every state under any distribution p.

    log_probabilities [*batch 2ⁿ] in the order of `spin_states`, −∞ for an empty state; the rest as in
    boltzmann_equilibrium. At its equilibrium all h are equal, to φ* = −F/T. In nats. Raises UsageError as there, and
    for a number of states other than 2ⁿ and probabilities that do not sum to 1. Reference: arXiv 2405.10955.
    """
    weights, bias = couplings("state_utilities", weights, bias)
    n = weights.shape[-1]
    _enumerable("state_utilities", n)
    temperature = _temperature("state_utilities", temperature, weights.dtype)
    log_p = jnp.asarray(log_probabilities, weights.dtype)
    if log_p.ndim == 0 or log_p.shape[-1] != 2**n:
        raise UsageError(
            "state_utilities: log_probabilities",
            found=f"shape {log_p.shape}",
            needed=f"[... {2**n}], one for each state of {n} spins",
            remedy="Order the states as spin_states(n) does.",
        )
    seen = known(log_p)
    if seen is not None and not np.allclose(np.sum(np.exp(seen), axis=-1), 1, atol=SUM_TOLERANCE):
        raise UsageError(
            "state_utilities: log_probabilities",
            found="probabilities that do not sum to 1",
            needed="their natural logarithms, of a sum of 1",
            remedy="Subtract jax.nn.logsumexp over the last axis.",
        )
    common_batch("state_utilities", log_p.shape[:-1], weights.shape[:-2], bias.shape[:-1], temperature.shape)
    return compiled(_all_utilities)(log_p, weights, bias, temperature)


def gibbs_sample(
    key: Array,
    weights: ArrayLike,
    bias: ArrayLike,
    temperature: ArrayLike,
    n_chains: int = 64,
    n_sweeps: int = 1000,
    burn_in: int = 100,
    *,
    order: str = "random",
) -> GibbsAverages:
    """Averages over the Gibbs distribution of a network of any size, from independent chains of heat-bath updates.

    Each update sets s_i = +1 with probability 1 / (1 + exp(−2 f_i / T)), f_i = Σ_j W_ij s_j + b_i. Chains begin at
    random; `burn_in` sweeps are discarded and the next `n_sweeps` averaged. order: "random" (a new order every sweep,
    shared by all chains), "sequential", or "chessboard" for networks of two colours without couplings within a colour,
    each of which is drawn at once. weights [n n], bias [n] or one number, temperature one number, in the units of E.

    Standard errors have n_chains − 1 degrees of freedom, of many chains at least 32. Memory does not grow with
    n_sweeps: 16 n · n_chains + 64 n² numbers. In float32 an update against a field of more than 8 T never happens (its
    probability is below 1.2e-7).

    Raises UsageError for n_chains < 2, n_sweeps < 1, burn_in < 0, more than 2³¹ − 1 states in a group, T ≤ 0, an
    unknown order, "chessboard" of a network that is not bipartite, and W and b that hopfield_energy refuses.
    References: Geman & Geman 1984; Ackley, Hinton & Sejnowski 1985.
    """
    one_of("gibbs_sample", ("random", "sequential", "chessboard"), order=order)
    whole_number("gibbs_sample: n_chains", n_chains, least=2)
    whole_number("gibbs_sample: n_sweeps", n_sweeps, least=1, most=(2**31 - 1) // _groups(n_chains)[1])
    whole_number("gibbs_sample: burn_in", burn_in, least=0, most=2**31 - 1 - n_sweeps)
    weights, bias = couplings("gibbs_sample", weights, bias)
    temperature = _temperature("gibbs_sample", temperature, weights.dtype)
    if (weights.ndim, bias.ndim, temperature.ndim) != (2, 1, 0):
        raise UsageError(
            "gibbs_sample: weights, bias, temperature",
            found=f"shapes {weights.shape}, {bias.shape}, {temperature.shape}",
            needed="one network and one temperature: [n n], [n], []",
            remedy="Use jax.vmap for many.",
        )
    colours = _two_colours(weights) if order == "chessboard" else None
    run = compiled(_sample, "n_chains", "order")
    return run(key, weights, bias, temperature, n_sweeps, burn_in, colours, n_chains=n_chains, order=order)


def _bits(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1


def _energies(weights: Float[Array, "n n"], bias: Float[Array, " n"]) -> tuple[Array, Array, Array]:
    """E of every state as [high low], with the states of the lower and of the upper half of the spins.

    E = E(low) + E(high) − highᵀ W low: 2ⁿ · n/2 operations, and nothing of size 2ⁿ · n is formed.
    """
    n = bias.size
    k = n - n // 2
    low, high = (jnp.asarray(2 * _bits(m) - 1, bias.dtype) for m in (k, n - k))
    across = jnp.matmul(jnp.matmul(high, weights[k:, :k], precision=EXACT), low.T, precision=EXACT)
    own_low, own_high = energy(low, weights[:k, :k], bias[:k]), energy(high, weights[k:, k:], bias[k:])
    return own_high[:, None] + own_low - across, low, high


def _equilibrium(
    weights: Float[Array, "n n"], bias: Float[Array, " n"], temperature: Float[Array, ""]
) -> BoltzmannEquilibrium:
    energies, low, high = _energies(weights, bias)
    ground = lax.stop_gradient(jnp.min(energies))
    above = energies - ground
    relative = -above / temperature
    log_sum = jax.nn.logsumexp(relative)
    log_p = relative - log_sum
    p = jnp.exp(log_p)
    mean_above = jnp.sum(p * above)
    p_low, p_high = jnp.sum(p, axis=0), jnp.sum(p, axis=1)
    across = jnp.matmul(jnp.matmul(high.T, p, precision=EXACT), low, precision=EXACT)
    within_low = jnp.matmul(low.T * p_low, low, precision=EXACT)
    within_high = jnp.matmul(high.T * p_high, high, precision=EXACT)
    return BoltzmannEquilibrium(
        energies=energies.reshape(-1),
        log_probabilities=log_p.reshape(-1),
        potential=log_sum - ground / temperature,
        free_energy=ground - temperature * log_sum,
        mean_energy=ground + mean_above,
        entropy=log_sum + mean_above / temperature,
        magnetisations=jnp.concatenate([p_low @ low, p_high @ high]),
        pair_correlations=jnp.block([[within_low, across.T], [across, within_high]]),
    )


def _utilities(
    log_p: Float[Array, " states"],
    weights: Float[Array, "n n"],
    bias: Float[Array, " n"],
    temperature: Float[Array, ""],
) -> StateUtilities:
    utility = -_energies(weights, bias)[0].reshape(-1) / temperature
    effective = utility - log_p
    p = jnp.exp(log_p)
    held = jnp.where(p > 0, effective, 0)
    potential = jnp.sum(p * held)
    return StateUtilities(utility, effective, potential, jnp.sqrt(jnp.sum(p * (held - potential) ** 2)))


def _over_batch(kernel: Callable[..., Any], *inputs: tuple[Array, int]) -> Any:
    """A kernel of one network vmapped over the common leading axes of inputs that have so many axes of their own."""
    batch = np.broadcast_shapes(*(x.shape[: x.ndim - own] for x, own in inputs))
    for _ in batch:
        kernel = jax.vmap(kernel)
    return kernel(*(jnp.broadcast_to(x, batch + x.shape[x.ndim - own :]) for x, own in inputs))


def _equilibria(weights: Array, bias: Array, temperature: Array) -> BoltzmannEquilibrium:
    return _over_batch(_equilibrium, (weights, 2), (bias, 1), (temperature, 0))


def _all_utilities(log_p: Array, weights: Array, bias: Array, temperature: Array) -> StateUtilities:
    return _over_batch(_utilities, (log_p, 1), (weights, 2), (bias, 1), (temperature, 0))


def _groups(n_chains: int) -> tuple[int, int]:
    """Number of groups of chains, and of chains in each but the last."""
    size = -(-n_chains // GROUPS)
    return -(-n_chains // size), size


def _sample(
    key: Array,
    weights: Float[Array, "n n"],
    bias: Float[Array, " n"],
    temperature: Float[Array, ""],
    n_sweeps: Int[ArrayLike, ""],
    burn_in: Int[ArrayLike, ""],
    colours: tuple[Int[Array, " a"], Int[Array, " b"]] | None,
    *,
    n_chains: int,
    order: str,
) -> GibbsAverages:
    """States are [spins chains], so that an update is along the fast axis."""
    n, dtype = bias.size, weights.dtype
    burn_in, n_all = jnp.asarray(burn_in), jnp.add(burn_in, n_sweeps)
    n_groups, size = _groups(n_chains)
    padded, padded_bias, blocks = whole_blocks(weights, bias)

    def heat_bath(field: Array, own: Array, threshold: Array) -> Array:
        return jnp.where(field > threshold, jnp.ones_like(own), -jnp.ones_like(own))

    def thresholds(key: Array, shape: tuple[int, ...]) -> Array:
        # f > T/2 · logistic noise has the probability 1 / (1 + exp(−2f/T)); one long axis of it compiles faster
        return temperature / 2 * jax.random.logistic(key, (math.prod(shape),), dtype).reshape(shape)

    def advance(number: Array | int, states: Array) -> Array:
        order_key, noise_key = jax.random.split(jax.random.fold_in(sweep_key, number))
        if colours is None:
            sites = visiting_order(order_key if order == "random" else None, blocks)
            noise = thresholds(noise_key, (*blocks, n_chains))
            return sweep(states, padded, padded_bias, sites, noise, heat_bath)
        noise = thresholds(noise_key, (n, n_chains))
        for mine, other in (colours, colours[::-1]):
            fields = jnp.matmul(weights[mine][:, other], states[other], precision=EXACT) + bias[mine, None]
            states = states.at[mine].set(heat_bath(fields, states[mine], noise[mine]), unique_indices=True)
        return states

    def some_sweeps(number: Array | int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        first, (states, sums, pair_sums) = number * TOGETHER, carry

        def one(slot: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            states, seen = advance(first + slot, carry[0]), carry[1]
            return states, seen.at[slot].set(jnp.where(first + slot >= burn_in, states[:n], 0))

        seen = jnp.zeros((TOGETHER, n, n_chains), dtype)
        states, seen = lax.fori_loop(0, jnp.minimum(TOGETHER, n_all - first), one, (states, seen))
        seen = jnp.pad(seen, ((0, 0), (0, 0), (0, n_groups * size - n_chains))).reshape(TOGETHER, n, n_groups, size)
        pairs = jnp.einsum("tigk,tjgk->gij", seen, seen)  # whole numbers: exact
        sums = sums + jnp.einsum("tigk->gi", seen).astype(jnp.int32)
        return states, sums, pair_sums + pairs.astype(jnp.int32)

    start_key, sweep_key = jax.random.split(key)
    n_spins = n if colours else padded_bias.size
    states = jax.random.rademacher(start_key, (n_spins * n_chains,), dtype).reshape(n_spins, n_chains)
    sums = jnp.zeros((n_groups, n), jnp.int32), jnp.zeros((n_groups, n, n), jnp.int32)
    states, sums, pair_sums = lax.fori_loop(0, -(-n_all // TOGETHER), some_sweeps, (states, *sums))

    members = jnp.clip(n_chains - size * jnp.arange(n_groups), 0, size).astype(dtype)

    def averaged(groups: Array) -> tuple[Array, Array]:
        mean = jnp.tensordot(members, groups, 1, precision=EXACT) / n_chains
        variance = jnp.tensordot(members, (groups - mean) ** 2, 1, precision=EXACT) / (n_groups - 1)
        return mean, jnp.sqrt(variance / n_chains)

    spins = sums.astype(dtype) / (members * n_sweeps)[:, None]
    pairs = pair_sums.astype(dtype) / (members * n_sweeps)[:, None, None]
    energies = -0.5 * jnp.einsum("ij,gij->g", weights, pairs, precision=EXACT) - jnp.matmul(
        spins, bias, precision=EXACT
    )
    return GibbsAverages(*averaged(spins), *averaged(pairs), *averaged(energies), states[:n].T.astype(jnp.int8))


def _two_colours(weights: Array) -> tuple[np.ndarray, np.ndarray]:
    """Spins of either colour of a network without couplings within a colour; raises UsageError where none exists."""
    where = "gibbs_sample: order='chessboard'"
    values = known(weights)
    if values is None:
        raise UsageError(
            where,
            found="weights whose values are not known, inside a JAX transformation",
            needed="their values, to colour the network",
            remedy="Call it outside, or use order='random'.",
        )
    coupled = values != 0
    colour = np.full(len(coupled), -1)
    for first in range(len(coupled)):
        if colour[first] >= 0:
            continue
        colour[first], front = 0, np.asarray([first])
        while front.size:
            reached = np.flatnonzero(coupled[front].any(axis=0) & (colour < 0))
            colour[reached], front = 1 - colour[front[0]], reached
    within = np.argwhere(coupled & (colour[:, None] == colour))
    if len(within):
        raise UsageError(
            where,
            found=f"a cycle of odd length through spins {within[0, 0]} and {within[0, 1]}",
            needed="a network of two colours, couplings only between them",
            remedy="Use order='random'.",
        )
    return np.flatnonzero(colour == 0), np.flatnonzero(colour == 1)


def _enumerable(where: str, n: int) -> None:
    if not 0 < n <= MAX_SPINS:
        raise UsageError(
            where,
            found=f"n = {n} spins",
            needed=f"1 to {MAX_SPINS}, as 2ⁿ states are enumerated",
            remedy="Use gibbs_sample, which samples networks of any size.",
        )


def _temperature(where: str, temperature: ArrayLike, dtype: Any) -> Float[Array, "*shape"]:
    temperature = jnp.asarray(temperature, dtype)
    values = known(temperature)
    least = float(jnp.finfo(dtype).tiny)  # below it numbers count as zero on most devices
    if values is not None and not np.all((values >= least) & np.isfinite(values)):
        wrong = values[~((values >= least) & np.isfinite(values))]
        raise UsageError(
            f"{where}: temperature",
            found=str(wrong[0]),
            needed=f"a finite number of {values.dtype}, {least:.3g} or more",
            remedy="For T → 0 use hopfield_update; for T → ∞ all states are equally likely.",
        )
    return temperature
