"""Gibbs sampling of a Boltzmann machine of any size: independent chains of heat-bath updates.

The equilibrium of a network whose states are too many to enumerate; standard errors come from groups of chains.
References: Geman & Geman 1984, IEEE PAMI 6, 721; Ackley, Hinton & Sejnowski 1985, Cognitive Science 9, 147.
"""

from __future__ import annotations

import math

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
from teleojax.teleo._spins import EXACT, couplings, sweep, temperatures, visiting_order, whole_blocks, whole_number

GROUPS = 64  # of chains, whose means tell the standard errors, to 9% of themselves; n² sums are kept for each
TOGETHER = 16  # sweeps whose states are kept, so that n² sums are read and written once for all of them


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
    temperature = temperatures("gibbs_sample", temperature, weights.dtype)
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
