"""Counts of leading bits as a Pallas kernel for NVIDIA GPUs: a table a program, in registers, merged afterwards.

A histogram in CUDA adds to shared memory by atomics. Pallas has none at indices that depend on the data: in Mosaic GPU
`atomic_add` takes whole slices, in Triton it reaches global memory alone. So each program fills its table by products
of one-hot matrices, which it makes from the keys in registers: only the keys are read, and no atomics are needed.

It has run in Pallas's interpreter, and what it lowers to was compiled by Triton for compute capability 9.0 (no register
spills). It has not run on a GPU; the engine takes it only where it counts right and is the fastest.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int32, Shaped, UInt

from teleojax.kernels._bithist import bits_below, rows_within

PROGRAM_VALUES = 1 << 16  # values a program: small frames still fill the GPU
TILE = 128  # the largest side of a program's table: 128 × 128 float32 are 64 registers a thread
KEYS = 64  # keys a product: its one-hot matrices take 32 KiB
LEAST_KEYS = 16  # what a product of matrix units contracts at the least
WARP_CELLS = 2048  # cells of a table a warp: 8 warps for the largest, 1 for 16 × 16


def pattern_counts_pallas(
    bits: UInt[Array, "rows cols"],
    first: Shaped[Array, ""],
    stop: Shaped[Array, ""],
    *,
    n_bits: int,
    interpret: bool = False,
) -> Int32[Array, " bins"]:
    """Counts of the leading `n_bits` bits over rows [first, stop), as `pattern_counts`.

    Raises ValueError unless the columns are a multiple of 16.
    """
    from jax.experimental import pallas as pl  # slow to import, and only an accelerator needs it
    from jax.experimental.pallas import triton

    n_rows, n_cols = bits.shape
    keys = math.gcd(n_cols, KEYS)
    if keys < LEAST_KEYS:
        raise ValueError(f"found rows of {n_cols} values; needed a multiple of {LEAST_KEYS}. Pad the rows.")
    step = rows_within(PROGRAM_VALUES, n_rows, n_cols)
    low_bits = n_bits // 2
    n_high, n_low = 1 << (n_bits - low_bits), 1 << low_bits
    tile = min(TILE, n_high), min(TILE, n_low)
    programs = pl.cdiv(n_rows, step)
    tables = pl.pallas_call(
        partial(_count, shift=bits_below(bits, n_bits), low_bits=low_bits, keys=keys, step=step, n_cols=n_cols),
        out_shape=jax.ShapeDtypeStruct((programs, n_high, n_low), jnp.int32),
        grid=(programs, n_high // tile[0], n_low // tile[1]),
        in_specs=[pl.BlockSpec((2,), lambda *_: (0,)), pl.BlockSpec((bits.size,), lambda *_: (0,))],
        out_specs=pl.BlockSpec((None, *tile), lambda program, high, low: (program, high, low)),
        compiler_params=triton.CompilerParams(num_warps=max(1, tile[0] * tile[1] // WARP_CELLS)),
        interpret=interpret,
    )(jnp.stack([first, stop]).astype(jnp.int32), bits.reshape(-1))
    return jnp.sum(tables, axis=0, dtype=jnp.int32).reshape(-1)


def _count(bounds: Any, bits: Any, table: Any, *, shift: int, low_bits: int, keys: int, step: int, n_cols: int) -> None:
    """One program: the tile of the table that is its own, over those of its `step` rows that are wanted."""
    from jax.experimental import pallas as pl

    program, high_tile, low_tile = (pl.program_id(axis) for axis in range(3))
    begin = jnp.maximum(bounds[0], program * step) * n_cols
    end = jnp.minimum(bounds[1], (program + 1) * step) * n_cols
    n_high, n_low = table.shape
    highs = high_tile * n_high + lax.broadcasted_iota(jnp.int32, (n_high, keys), 0)
    lows = low_tile * n_low + lax.broadcasted_iota(jnp.int32, (keys, n_low), 1)
    one, zero = jnp.bfloat16(1), jnp.bfloat16(0)

    def add(number: Array, counts: Array) -> Array:
        key = (bits[pl.ds(begin + number * keys, keys)] >> shift).astype(jnp.int32)
        a = jnp.where((key >> low_bits)[None, :] == highs, one, zero)
        b = jnp.where((key & ((1 << low_bits) - 1))[:, None] == lows, one, zero)
        return counts + lax.dot(a, b, preferred_element_type=jnp.float32)

    products = jnp.maximum(end - begin, 0) // keys
    counts = lax.fori_loop(0, products, add, jnp.zeros((n_high, n_low), jnp.float32))
    table[...] = counts.astype(jnp.int32)
