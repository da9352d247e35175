"""Hopfield network: a game of spins whose utility is −E, at zero temperature.

E(s) = −½ sᵀW s − bᵀs, s ∈ {−1, +1}ⁿ, W symmetric with zero diagonal. The field at spin i is f_i = Σ_j W_ij s_j + b_i;
turning it changes E by 2 s_i f_i. Asynchronous updates turn a spin only where that lowers E (raises utility), so they
end where no spin gains by turning: a local optimum, the arbitrage equilibrium of T → 0 (Hopfield 1982, PNAS 79, 2554;
arXiv 2405.10955). The same sweep at T > 0 is the Gibbs sampler of the Boltzmann machine.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import known, one_of

BLOCK = 32  # spins whose fields come from one matrix product; within a block the fields are kept by rank-1 updates
EXACT = lax.Precision.HIGHEST  # accelerators would otherwise round W to a few bits

Rule = Callable[[Array, Array, Array], Array]


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


def energy(
    states: Num[Array, "*states n"], weights: Float[Array, "*weights n n"], bias: Float[Array, "*bias n"]
) -> Float[Array, "*batch"]:
    """E(s), unchecked."""
    states = states.astype(weights.dtype)
    half_fields = 0.5 * jnp.einsum("...j,...jk->...k", states, weights, precision=EXACT)
    return -jnp.sum(states * (half_fields + bias), axis=-1)


def sweep(
    states: Float[Array, "n chains"],
    weights: Float[Array, "n n"],
    bias: Float[Array, " n"],
    order: Int[Array, "blocks block"],
    limits: Float[Array, "blocks block _"],
    rule: Rule,
) -> Float[Array, "n chains"]:
    """One visit to every spin of every chain, in `order`: s_i ← rule(f_i, s_i, limit), f_i always up to date.

    The fields of a block of spins come afresh from one matrix product, so that rounding does not build up, and follow
    each turned spin of the block by a rank-1 update: n² operations a chain, at the speed of matrix products.
    """

    def visit(states: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        sites, limit = block
        rows = weights[sites]
        fields = jnp.matmul(rows, states, precision=EXACT) + bias[sites, None]
        inner = rows[:, sites]

        def update(j: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            fields, own = carry
            new = rule(fields[j], own[j], limit[j])
            return fields + inner[:, j, None] * (new - own[j]), own.at[j].set(new)

        _, own = lax.fori_loop(0, sites.size, update, (fields, states[sites]))
        return states.at[sites].set(own, unique_indices=True), None

    return lax.scan(visit, states, (order, limits))[0]


def whole_blocks(weights: Array, bias: Array) -> tuple[Array, Array, tuple[int, int]]:
    """The network with free spins added until blocks of equal size, at most BLOCK, hold it: W, b, (blocks, block)."""
    n = bias.size
    n_blocks = -(-n // BLOCK)
    block = -(-n // n_blocks)
    more = n_blocks * block - n
    return jnp.pad(weights, (0, more)), jnp.pad(bias, (0, more)), (n_blocks, block)


def visiting_order(key: Array | None, blocks: tuple[int, int]) -> Int[Array, "blocks block"]:
    """Spins in the order of a sweep: a random one with a key, else as they are numbered."""
    n = blocks[0] * blocks[1]
    return (jnp.arange(n) if key is None else jax.random.permutation(key, n)).reshape(blocks)


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


def couplings(
    where: str, weights: ArrayLike, bias: ArrayLike
) -> tuple[Float[Array, "*weights n n"], Float[Array, "*bias n"]]:
    """W [... n n] and b [... n] as floating-point arrays of one type, checked as far as their values are known."""
    dtype = jnp.result_type(weights, bias, jnp.float32)
    weights, bias = jnp.asarray(weights, dtype), jnp.asarray(bias, dtype)
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] == 0:
        raise UsageError(
            f"{where}: weights",
            found=f"shape {weights.shape}",
            needed="[... n n], n ≥ 1",
            remedy="Pass the couplings of every pair of spins.",
        )
    n = weights.shape[-1]
    if bias.ndim == 0:
        bias = jnp.broadcast_to(bias, (n,))
    if bias.shape[-1] != n:
        raise UsageError(
            f"{where}: bias",
            found=f"shape {bias.shape}",
            needed=f"[... {n}], as weights have {n} spins",
            remedy="Pass one number a spin, or one for all.",
        )
    seen_weights, seen_bias = known(weights), known(bias)
    if seen_weights is not None:
        _check_weights(f"{where}: weights", seen_weights)
    if seen_bias is not None and not np.all(np.isfinite(seen_bias)):
        raise UsageError(f"{where}: bias", found="NaN or infinity", needed="finite numbers", remedy="Correct the bias.")
    return weights, bias


def _check_weights(where: str, weights: np.ndarray) -> None:
    if not np.all(np.isfinite(weights)):
        raise UsageError(where, found="NaN or infinity", needed="finite numbers", remedy="Correct the weights.")
    gap = np.abs(weights - np.swapaxes(weights, -1, -2))
    if np.any(gap):
        *_, i, j = (int(k) for k in np.unravel_index(np.argmax(gap), gap.shape))
        raise UsageError(
            where,
            found=f"weights that differ by {gap.max():.3g} between ({i}, {j}) and ({j}, {i})",
            needed="a symmetric matrix",
            remedy="Pass (W + W.T) / 2, which gives every state the same energy.",
        )
    diagonal = np.diagonal(weights, axis1=-2, axis2=-1)
    if np.any(diagonal):
        raise UsageError(
            where,
            found=f"{np.count_nonzero(diagonal)} weights of a spin with itself, up to {np.abs(diagonal).max():.3g}",
            needed="a zero diagonal",
            remedy="Set it to zero: it adds −½ tr W to every energy and nothing else.",
        )


def spins(where: str, states: ArrayLike, n: int | None) -> Num[Array, "*shape n"]:
    """States [... n] as an array, checked to be ±1 where their values are known."""
    states = jnp.asarray(states)
    if states.ndim == 0 or (n is not None and states.shape[-1] != n):
        needed = "[... n]" if n is None else f"[... {n}], as there are {n} spins"
        raise UsageError(where, found=f"shape {states.shape}", needed=needed, remedy="Put the spins on the last axis.")
    values = known(states)
    if values is not None and np.any(np.abs(values) != 1):
        wrong = values[np.abs(values) != 1]
        raise UsageError(
            where,
            found=f"{wrong.size} values other than ±1, {wrong[0]} for one",
            needed="spins −1 and +1",
            remedy="Map bits 0 and 1 to 2 s − 1.",
        )
    signed = jnp.issubdtype(states.dtype, jnp.floating) or jnp.issubdtype(states.dtype, jnp.signedinteger)
    return states if signed else states.astype(jnp.int8)


def common_batch(where: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes that all inputs broadcast to."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise UsageError(
            where,
            found=f"leading axes {', '.join(map(str, shapes))}",
            needed="shapes that broadcast",
            remedy="Give inputs the same leading axes, or none.",
        ) from None


def whole_number(where: str, value: int, *, least: int, most: int = 2**31 - 1) -> None:
    """Raises UsageError unless the value lies in the range."""
    if not least <= value <= most:
        raise UsageError(where, found=str(value), needed=f"{least} to {most}", remedy="Correct the number.")
