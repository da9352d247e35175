"""Hopfield network: a game of spins whose utility is −E, at zero temperature.

E(s) = −½ sᵀW s − bᵀs, s ∈ {−1, +1}ⁿ, W symmetric with zero diagonal. The field at spin i is f_i = Σ_j W_ij s_j + b_i;
turning it changes E by 2 s_i f_i. Asynchronous updates turn a spin only where that lowers E (raises utility), so they
end where no spin gains by turning: a local optimum, the arbitrage equilibrium of T → 0 (Hopfield 1982, PNAS 79, 2554;
arXiv 2405.10955). The same sweep at T > 0 is the Gibbs sampler of the Boltzmann machine.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import one_of
from teleojax.teleo._spins import (
    EXACT,
    common_batch,
    couplings,
    energy,
    spins,
    sweep,
    visiting_order,
    whole_blocks,
    whole_number,
)


class HopfieldRun(eqx.Module):
    """Where asynchronous updates ended.

    `states` (±1, the type they came in); `energies[..., k]` after k sweeps, k = 0 … max_sweeps, repeated from the fixed
    point on; `sweeps` that were made before it was reached; `fixed_point`: no spin lowers E by turning.
    """

    states: Num[Array, "*batch n"]
    energies: Float[Array, "*batch recorded"]
    sweeps: Int[Array, "*batch"]
    fixed_point: Bool[Array, "*batch"]

    @property
    def status(self) -> np.ndarray:
        """For each state "fixed point", or "max sweeps": it still moves, raise max_sweeps."""
        return np.where(np.asarray(self.fixed_point), "fixed point", "max sweeps")


class Recall(eqx.Module):
    """What cues relaxed to: the `run`, and `overlaps[..., μ]` = ξ_μᵀs / n ∈ [−1, 1] with each pattern."""

    run: HopfieldRun
    overlaps: Float[Array, "*batch patterns"]


def hopfield_energy(states: ArrayLike, weights: ArrayLike, bias: ArrayLike = 0.0) -> Float[Array, "*batch"]:
    """Energy E(s) = −½ sᵀW s − bᵀs of spin states.

    states [*batch n] of ±1, weights [*batch n n], bias [*batch n] or one number for all spins; leading axes broadcast.
    In the units of W. May be called inside jit, where only shapes are checked. No states, no energies.
    Raises UsageError unless W is finite and symmetric with zero diagonal, b finite and s ∈ {−1, +1}ⁿ.
    Reference: Hopfield 1982.
    """
    weights, bias = couplings("hopfield_energy", weights, bias)
    states = spins("hopfield_energy: states", states, weights.shape[-1])
    common_batch("hopfield_energy", states.shape[:-1], weights.shape[:-2], bias.shape[:-1])
    return compiled(energy)(states, weights, bias)


def hopfield_update(
    states: ArrayLike,
    weights: ArrayLike,
    bias: ArrayLike = 0.0,
    *,
    order: str = "sequential",
    key: Array | None = None,
    max_sweeps: int = 100,
) -> HopfieldRun:
    """Asynchronous updates s_i ← sign(f_i), spin after spin, until no spin moves or `max_sweeps` sweeps are made.

    states [*batch n] of ±1, weights [n n], bias [n] or one number. In each sweep every spin is visited once: in its
    order ("sequential"), or in a new random one ("random", with `key`; all states of a call share it). A spin turns
    only if that lowers E: a tie, a field of zero within rounding (ε (Σ_j |W_ij| + |b_i|)), keeps its state. A sweep
    costs n² operations a state.

    Not reaching a fixed point is a status on the result. Raises UsageError for what hopfield_energy refuses, an unknown
    order, "random" without a key, and max_sweeps < 0. Reference: Hopfield 1982.
    """
    weights, bias = couplings("hopfield_update", weights, bias)
    if weights.ndim != 2 or bias.ndim != 1:
        raise UsageError(
            "hopfield_update: weights, bias",
            found=f"shapes {weights.shape}, {bias.shape}",
            needed="one network, [n n] and [n]",
            remedy="Use jax.vmap for many networks.",
        )
    given = spins("hopfield_update: states", states, weights.shape[-1])
    one_of("hopfield_update", ("sequential", "random"), order=order)
    whole_number("hopfield_update: max_sweeps", max_sweeps, least=0)
    if order == "random" and key is None:
        raise UsageError(
            "hopfield_update: key",
            found="none",
            needed="a key for order='random'",
            remedy="Pass key=jax.random.key(0), or order='sequential'.",
        )
    run = compiled(_relax, "max_sweeps")
    return run(given, weights, bias, key if order == "random" else None, max_sweeps=max_sweeps)


def store_patterns(patterns: ArrayLike, *, rule: str = "hebbian") -> Float[Array, "n n"]:
    """Weights of the network that remembers patterns ξ_μ [patterns n] of ±1; no patterns, no couplings.

    "hebbian": W_ij = (1/n) Σ_μ ξ_μi ξ_μj, good up to about 0.138 n random patterns. "pseudo-inverse": the projection
    on their span, W = Ξ⁺Ξ, which makes every one of fewer than n independent patterns a fixed point. Diagonal zero.
    Raises UsageError for an unknown rule and patterns other than a matrix of ±1.
    References: Hopfield 1982; Personnaz, Guyon & Dreyfus 1985.
    """
    one_of("store_patterns", ("hebbian", "pseudo-inverse"), rule=rule)
    patterns = spins("store_patterns: patterns", patterns, None)
    if patterns.ndim != 2:
        raise UsageError(
            "store_patterns: patterns",
            found=f"shape {patterns.shape}",
            needed="[patterns n]",
            remedy="Stack them as rows of a matrix.",
        )
    return compiled(_store, "rule")(patterns, rule=rule)


def recall(
    cues: ArrayLike,
    weights: ArrayLike,
    patterns: ArrayLike,
    *,
    order: str = "sequential",
    key: Array | None = None,
    max_sweeps: int = 100,
) -> Recall:
    """Relax cues [*batch n] without bias and compare what they end at with patterns [patterns n].

    A pattern is recalled where its overlap is near 1 (its mirror image, −1). Raises as hopfield_update does.
    """
    run = hopfield_update(cues, weights, order=order, key=key, max_sweeps=max_sweeps)
    patterns = spins("recall: patterns", patterns, run.states.shape[-1])
    return Recall(run, compiled(_overlaps)(run.states, patterns))


def _relax(
    given: Num[Array, "*batch n"],
    weights: Float[Array, "n n"],
    bias: Float[Array, " n"],
    key: Array | None,
    *,
    max_sweeps: int,
) -> HopfieldRun:
    batch, n = given.shape[:-1], given.shape[-1]
    weights, bias, blocks = whole_blocks(weights, bias)
    flat = given.astype(weights.dtype).reshape(-1, n).T
    states = jnp.pad(flat, ((0, bias.size - n), (0, 0)), constant_values=1)
    ties = jnp.finfo(weights.dtype).eps * (jnp.sum(jnp.abs(weights), axis=1) + jnp.abs(bias))

    def turn(field: Array, own: Array, tie: Array) -> Array:
        return jnp.where(field * own < -tie, -own, own)

    def measure(states: Array) -> tuple[Array, Array]:
        fields = jnp.matmul(weights, states, precision=EXACT) + bias[:, None]
        energies = -0.5 * jnp.sum(states * (fields + bias[:, None]), axis=0)
        return energies, jnp.all(fields * states >= -ties[:, None], axis=0)

    def advance(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        number, states, sweeps, fixed, recorded = carry
        order = visiting_order(None if key is None else jax.random.fold_in(key, number), blocks)
        states = sweep(states, weights, bias, order, ties[order][..., None], turn)
        sweeps = sweeps + ~fixed
        energies, fixed = measure(states)
        later = jnp.arange(max_sweeps + 1)[:, None] > number
        return number + 1, states, sweeps, fixed, jnp.where(later, energies, recorded)

    energies, fixed = measure(states)
    recorded = jnp.broadcast_to(energies, (max_sweeps + 1, energies.size))
    carry = (jnp.int32(0), states, jnp.zeros(energies.shape, jnp.int32), fixed, recorded)
    end = lax.while_loop(lambda c: (c[0] < max_sweeps) & ~jnp.all(c[3]), advance, carry)
    _, states, sweeps, fixed, recorded = end
    return HopfieldRun(
        states[:n].T.reshape(given.shape).astype(given.dtype),
        recorded.T.reshape(*batch, max_sweeps + 1),
        sweeps.reshape(batch),
        fixed.reshape(batch),
    )


def _store(patterns: Num[Array, "patterns n"], *, rule: str) -> Float[Array, "n n"]:
    patterns = patterns.astype(jnp.result_type(patterns, jnp.float32))
    n_patterns, n = patterns.shape
    if rule == "hebbian" or n_patterns == 0:
        weights = jnp.matmul(patterns.T, patterns, precision=EXACT) / n
    else:
        weights = jnp.matmul(jnp.linalg.pinv(patterns), patterns, precision=EXACT)
        weights = (weights + weights.T) / 2
    return jnp.where(jnp.eye(n, dtype=bool), 0, weights)


def _overlaps(states: Num[Array, "*batch n"], patterns: Num[Array, "patterns n"]) -> Float[Array, "*batch patterns"]:
    dtype = jnp.result_type(states, patterns, jnp.float32)
    return jnp.matmul(states.astype(dtype), patterns.astype(dtype).T, precision=EXACT) / states.shape[-1]
