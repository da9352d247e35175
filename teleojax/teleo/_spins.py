"""Spins, couplings and temperatures as callers hand them over, the energy, and one sweep over all spins.

What Hopfield networks, at zero temperature, and Boltzmann machines, above it, have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from teleojax._errors import UsageError
from teleojax.teleo._arguments import known

BLOCK = 32  # spins whose fields come from one matrix product; within a block the fields are kept by rank-1 updates
EXACT = lax.Precision.HIGHEST  # accelerators would otherwise round W to a few bits

Rule = Callable[[Array, Array, Array], Array]


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


def temperatures(where: str, temperature: ArrayLike, dtype: Any) -> Float[Array, "*shape"]:
    """T as an array of a floating-point type, checked to be positive, finite and not subnormal where it is known."""
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
