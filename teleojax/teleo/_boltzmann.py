"""Boltzmann machine: the arbitrage equilibrium of a game whose categories are the states of n spins.

With the utility u(s) = −E(s)/T, E as in a Hopfield network, the effective utility of a state is h(s) = u(s) − ln p(s).
At equilibrium it is the same in all states, so p* = softmax(u) is the Gibbs distribution, and the potential
φ(p) = Σ p u − Σ p ln p is at its maximum φ* = ln Σ exp(u) = −F/T, F the free energy (Ackley, Hinton & Sejnowski 1985,
Cognitive Science 9, 147; arXiv 2405.10955). Temperature is in the units of E; entropy and utility are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int8

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import known
from teleojax.teleo._spins import EXACT, common_batch, couplings, energy, temperatures

MAX_SPINS = 20  # 2²⁰ states: 4 MB of float32 for each number that a state has
SUM_TOLERANCE = 1e-3  # of probabilities that are rounded to float32, or were to fewer bits


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
    temperature = temperatures("boltzmann_equilibrium", temperature, weights.dtype)
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
    temperature = temperatures("state_utilities", temperature, weights.dtype)
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


def _enumerable(where: str, n: int) -> None:
    if not 0 < n <= MAX_SPINS:
        raise UsageError(
            where,
            found=f"n = {n} spins",
            needed=f"1 to {MAX_SPINS}, as 2ⁿ states are enumerated",
            remedy="Use gibbs_sample, which samples networks of any size.",
        )
