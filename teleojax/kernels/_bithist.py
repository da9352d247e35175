"""Rows of bit patterns -> exact counts of their leading bits."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int32, Shaped, UInt


def pattern_counts(
    bits: UInt[Array, "rows cols"], first: Shaped[Array, ""], stop: Shaped[Array, ""], *, n_bits: int
) -> Int32[Array, " bins"]:
    """Counts of the leading `n_bits` bits, sign included, over rows [first, stop): 2^n_bits int32 counts.

    The bounds are values, not shapes: one compiled program counts any tensor within the rows. It adds row by row into
    one table that stays in cache; a scatter of all values at once is six times slower on a CPU.
    """
    shift = _shift(bits, n_bits)

    def count_row(row: Array, counts: Array) -> Array:
        key = (lax.dynamic_index_in_dim(bits, row, 0, keepdims=False) >> shift).astype(jnp.int32)
        return counts.at[key].add(1, mode="promise_in_bounds")

    return lax.fori_loop(first, stop, count_row, jnp.zeros(1 << n_bits, jnp.int32))


def pattern_counts_sorted(
    bits: UInt[Array, "rows cols"], first: Shaped[Array, ""], stop: Shaped[Array, ""], *, n_bits: int
) -> Int32[Array, " bins"]:
    """The same counts for an accelerator: sort the keys, then search for each bin's end; nothing is scattered."""
    row = lax.broadcasted_iota(jnp.int32, bits.shape, 0)
    wanted = (row >= first) & (row < stop)
    narrow = jnp.uint8 if n_bits == 8 else jnp.uint16  # few bits make a radix sort short
    keys = jnp.where(wanted, bits >> _shift(bits, n_bits), 0).astype(narrow)
    ends = jnp.searchsorted(jnp.sort(keys.reshape(-1)), jnp.arange(1 << n_bits).astype(narrow), side="right")
    counts = jnp.diff(ends, prepend=0).astype(jnp.int32)
    return counts.at[0].add(-(bits.size - (stop - first) * bits.shape[1]))  # rows not wanted were counted as zeros


def _shift(bits: Array, n_bits: int) -> int:
    return 8 * bits.dtype.itemsize - n_bits
