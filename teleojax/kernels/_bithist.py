"""Rows of bit patterns -> exact counts of their leading bits: one kernel for a CPU, several for accelerators.

All have the same signature and the same answer; which is fastest on an accelerator, the engine measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int32, Shaped, UInt

try:
    from jax.extend.core.primitives import scatter_p
except ImportError:  # a JAX that keeps it elsewhere
    scatter_p = None

FLOAT32_EXACT = 1 << 24  # ones that a float32 sum counts without loss
GROUP_VALUES = 1 << 16  # counted at a time on a CPU: XLA would cut out twice as many in several threads
ONE_HOT_VALUES = 1 << 18  # values a product: where a compiler writes the one-hot matrices out, 256 MiB in bfloat16


def pattern_counts(
    bits: UInt[Array, "rows cols"], first: Shaped[Array, ""], stop: Shaped[Array, ""], *, n_bits: int
) -> Int32[Array, " bins"]:
    """Counts of the leading `n_bits` bits, sign included, over rows [first, stop): 2^n_bits int32 counts.

    The bounds are values, not shapes: one compiled program counts any tensor within the rows. It goes some rows at a
    time: their keys are cut out, narrow, and added to one table, which stays in cache as they do; what is left goes row
    by row. A scatter of all values at once is ten times slower on a CPU.
    """
    n_rows, n_cols = bits.shape
    shift, group = bits_below(bits, n_bits), max(1, min(n_rows, GROUP_VALUES // n_cols))
    narrow = jnp.uint8 if n_bits <= 8 else jnp.uint16 if n_bits <= 16 else jnp.uint32

    def counting(n: int) -> Callable[[Array, Array], Array]:
        ones = lax.optimization_barrier(jnp.ones(n * n_cols, jnp.int32))  # made once, not at every step

        def count(start: Array, counts: Array) -> Array:
            keys = lax.dynamic_slice_in_dim(bits, start, n).reshape(-1) >> shift
            return one_more(counts, keys.astype(narrow), ones)

        return count

    some, one, n_groups = counting(group), counting(1), (stop - first) // group
    counts = jnp.zeros(1 << n_bits, jnp.int32)
    counts = lax.fori_loop(0, n_groups, lambda i, c: some(first + i * group, c), counts)
    return lax.fori_loop(first + n_groups * group, stop, one, counts)


def one_more(
    counts: Int32[Array, " bins"], keys: UInt[Array, " values"], ones: Int32[Array, " values"]
) -> Int32[Array, " bins"]:
    """`counts` with one added for each of `keys`, which are all in bounds.

    Keys go to the scatter in the type they have: a compiler that knows that no key of 16 bits leaves a table of 2^16
    asks of none whether it does. What the scatter applies takes no notice of `ones`, so that nothing reads them; then a
    CPU adds a value in a cycle.
    """
    indices = keys[:, None]
    into = lax.ScatterDimensionNumbers((), (0,), (0,))
    within = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    if scatter_p is None:
        return lax.scatter_add(counts, indices, ones, into, mode=within)
    add_one = jax.make_jaxpr(lambda count, _: count + 1)(np.int32(0), np.int32(0))
    try:
        return scatter_p.bind(
            counts, indices, ones, update_jaxpr=add_one.jaxpr, update_consts=(), dimension_numbers=into,
            indices_are_sorted=False, unique_indices=False, mode=within,
        )  # fmt: skip
    except TypeError:  # a JAX whose scatter has other parameters
        return lax.scatter_add(counts, indices, ones, into, mode=within)


def pattern_counts_whole(keys: UInt[Array, " values"], ones: Int32[Array, " values"]) -> Int32[Array, " bins"]:
    """Counts of all patterns of 8 or 16 bits, on a CPU: nothing is cut out, the keys are read where they lie."""
    return one_more(jnp.zeros(1 << (8 * keys.dtype.itemsize), jnp.int32), keys, ones)


def pattern_counts_sorted(
    bits: UInt[Array, "rows cols"], first: Shaped[Array, ""], stop: Shaped[Array, ""], *, n_bits: int
) -> Int32[Array, " bins"]:
    """The same counts for an accelerator: sort the keys, then search for each bin's end; nothing is scattered."""
    narrow = jnp.uint8 if n_bits == 8 else jnp.uint16  # few bits make a radix sort short
    keys = jnp.where(_wanted(bits, first, stop), bits >> bits_below(bits, n_bits), 0).astype(narrow)
    ends = jnp.searchsorted(jnp.sort(keys.reshape(-1)), jnp.arange(1 << n_bits).astype(narrow), side="right")
    counts = jnp.diff(ends, prepend=0).astype(jnp.int32)
    return counts.at[0].add(-(bits.size - (stop - first) * bits.shape[1]))  # rows not wanted were counted as zeros


def pattern_counts_scattered(
    bits: UInt[Array, "rows cols"], first: Shaped[Array, ""], stop: Shaped[Array, ""], *, n_bits: int
) -> Int32[Array, " bins"]:
    """The same counts for an accelerator with atomic addition: one scatter of all values, rows not wanted left out."""
    key = (bits >> bits_below(bits, n_bits)).astype(jnp.int32)
    key = jnp.where(_wanted(bits, first, stop), key, 1 << n_bits)
    return jnp.zeros(1 << n_bits, jnp.int32).at[key].add(1, mode="drop")


def pattern_counts_one_hot(
    bits: UInt[Array, "rows cols"],
    first: Shaped[Array, ""],
    stop: Shaped[Array, ""],
    *,
    n_bits: int,
    operand: Literal["bfloat16", "int8"] = "bfloat16",
) -> Int32[Array, " bins"]:
    """The same counts for an accelerator with matrix units: counts[h, l] = Σ one_hot(high)[h] · one_hot(low)[l].

    A key is cut into a high and a low half of n_bits / 2, and the sum runs over a chunk of the rows. In bfloat16 it is
    formed in float32, exactly, since a chunk has at most 2^24 values, and in int8 in int32; chunks add up in int32.
    """
    n_rows, n_cols = bits.shape
    step = rows_within(ONE_HOT_VALUES, n_rows, n_cols)
    shift, low_bits = bits_below(bits, n_bits), n_bits // 2
    n_high, n_low = 1 << (n_bits - low_bits), 1 << low_bits
    exact = jnp.float32 if operand == "bfloat16" else jnp.int32

    def one_hot(key: Array, n: int) -> Array:
        return (key == lax.broadcasted_iota(jnp.int32, (n, 1), 0)).astype(operand)

    def count_chunk(number: Array, counts: Array) -> Array:
        start = jnp.minimum(number * step, n_rows - step)  # the last chunk reaches back over rows already counted
        chunk = lax.dynamic_slice_in_dim(bits, start, step)
        wanted = _wanted(chunk, jnp.maximum(first, number * step) - start, stop - start)
        key = (chunk >> shift).astype(jnp.int32)
        high = jnp.where(wanted, key >> low_bits, -1).reshape(1, -1)  # −1 is in no row
        low = (key & (n_low - 1)).reshape(1, -1)
        a, b = (one_hot(k, n) for k, n in ((high, n_high), (low, n_low)))
        product = lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=exact)
        return counts + product.astype(jnp.int32)

    counts = lax.fori_loop(first // step, -(-stop // step), count_chunk, jnp.zeros((n_high, n_low), jnp.int32))
    return counts.reshape(-1)


def bits_below(bits: Array, n_bits: int) -> int:
    """How many bits lie below the leading `n_bits`."""
    return 8 * bits.dtype.itemsize - n_bits


def rows_within(most: int, n_rows: int, n_cols: int) -> int:
    """Rows of a chunk: as many as `most` values allow, at least one, at most all.

    Raises ValueError where even one row has more ones than float32 counts exactly.
    """
    if n_cols > FLOAT32_EXACT:
        raise ValueError(f"found rows of {n_cols} values; needed at most {FLOAT32_EXACT}. Use narrower rows.")
    return max(1, min(n_rows, most // n_cols))


def _wanted(bits: Array, first: Array, stop: Array) -> Bool[Array, "rows cols"]:
    """Which values lie in rows [first, stop)."""
    row = lax.broadcasted_iota(jnp.int32, bits.shape, 0)
    return (row >= first) & (row < stop)
