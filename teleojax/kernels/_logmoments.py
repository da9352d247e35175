"""Rows of float32 bits -> per-row log-moment sums: one fused, branch-free pass.

The logarithm comes from the bits: the exponent by integer arithmetic, the mantissa, brought to [2/3, 4/3), by a short
polynomial. Each row is centred on an integer pivot (the mean exponent of a sample of it), so that multiplying the
weights by a power of two changes the pivot and not one bit of the sums, and the fourth powers stay small.
Every question about zeros, NaN, infinities and subnormals is asked of the integer bits: XLA on CPU flushes subnormals
to zero, and comparisons of floats keep it from vectorising.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float32, Int32, UInt32

SAMPLES = 64  # values a row that choose its pivot
MAGNITUDE = 0x7FFFFFFF
SMALLEST_NORMAL = 0x00800000
INFINITY = 0x7F800000
TWO_THIRDS = 0x3F2AAAAB  # the bits of 2/3 in float32


def _log2_coefficients(degree: int = 8) -> list[np.float32]:
    """log2(1 + t) / t on [-1/3, 1/3] as a polynomial: least squares at Chebyshev nodes, within 1e-8 of minimax."""
    t = np.cos(np.pi * (np.arange(4096) + 0.5) / 4096) / 3
    fit = np.polynomial.Polynomial.fit(t, np.log1p(t) / np.log(2) / t, degree, domain=[-1, 1])
    return [np.float32(c) for c in fit.convert().coef]


LOG2_COEFFICIENTS = _log2_coefficients()


class RowSums(eqx.Module):
    """Sums over each row, over its values that are not ±0. With p = pivot and l = log2|w| − p:

    `s1`…`s4` = Σ l^k, `u1`, `u2` = Σ (|w| 2^−p)^k; `n_zero` counts ±0, `n_negative` the negative non-zero values;
    `min_bits` and `max_bits` are the extreme magnitudes as bit patterns (`min_bits` of the non-zero ones, 0
    without any). A row with subnormals, NaN or inf holds finite garbage in the sums; its extreme bits tell.
    """

    pivot: Int32[Array, " rows"]
    s1: Float32[Array, " rows"]
    s2: Float32[Array, " rows"]
    s3: Float32[Array, " rows"]
    s4: Float32[Array, " rows"]
    u1: Float32[Array, " rows"]
    u2: Float32[Array, " rows"]
    n_zero: Int32[Array, " rows"]
    n_negative: Int32[Array, " rows"]
    min_bits: UInt32[Array, " rows"]
    max_bits: Int32[Array, " rows"]


def _log2_mantissa(t: Array) -> Array:
    """log2(1 + t) for t in [-1/3, 1/3), by Estrin's scheme."""
    c = LOG2_COEFFICIENTS
    t2 = t * t
    t4 = t2 * t2
    low = (c[0] + c[1] * t) + (c[2] + c[3] * t) * t2
    high = (c[4] + c[5] * t) + (c[6] + c[7] * t) * t2
    return t * (low + t4 * (high + t4 * c[8]))


def _pivot(magnitude: Int32[Array, "rows cols"]) -> Int32[Array, " rows"]:
    """The mean exponent of the ordinary values in an even sample of each row, 0 without any."""
    sample = magnitude[:, :: max(1, magnitude.shape[1] // SAMPLES)]
    ordinary = (sample >= SMALLEST_NORMAL) & (sample < INFINITY)
    total = jnp.sum(jnp.where(ordinary, (sample >> 23) - 127, 0), axis=1)
    count = jnp.sum(ordinary, axis=1, dtype=jnp.int32)
    return jnp.clip(total // jnp.maximum(count, 1), -126, 126)


def row_sums(bits: Int32[Array, "rows cols"]) -> RowSums:
    """Log-moment sums of each row of float32 bit patterns (as int32)."""
    magnitude = bits & MAGNITUDE
    pivot = _pivot(magnitude)
    zero = magnitude == 0
    exponent = (magnitude - TWO_THIRDS) >> 23
    mantissa = lax.bitcast_convert_type(magnitude - (exponent << 23), jnp.float32)
    log2 = (exponent - pivot[:, None]).astype(jnp.float32) + _log2_mantissa(mantissa - 1)
    log2 = jnp.where(zero, 0, log2)
    square = log2 * log2
    scale = lax.bitcast_convert_type((127 - pivot) << 23, jnp.float32)  # 2^-pivot, exact
    u = lax.bitcast_convert_type(magnitude, jnp.float32) * scale[:, None]
    operands = (
        log2,
        square,
        square * log2,
        square * square,
        u,
        u * u,
        zero.astype(jnp.int32),
        ((bits < 0) & ~zero).astype(jnp.int32),
        lax.bitcast_convert_type(magnitude - 1, jnp.uint32),  # unsigned: a zero becomes the largest
        magnitude,
    )
    start = (*(np.float32(0),) * 6, np.int32(0), np.int32(0), np.uint32(0xFFFFFFFF), np.int32(0))

    def add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        return (*(x + y for x, y in zip(a[:8], b[:8], strict=True)), lax.min(a[8], b[8]), lax.max(a[9], b[9]))

    *sums, least, most = lax.reduce(operands, start, add, (1,))
    return RowSums(pivot, *sums, least + np.uint32(1), most)  # pyright: ignore[reportCallIssue]
