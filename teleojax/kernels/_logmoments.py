"""Rows of bit patterns -> per-row log-moment sums: one fused, branch-free pass.

The logarithm comes from the bits: read as an integer they are nearly a straight line of it, and a short polynomial in
the mantissa gives the rest. Each row is centred on an integer pivot (the mean exponent of a sample of it), so that
multiplying the weights by a power of two changes the pivot and not one bit of the sums, and the fourth powers stay
small.
Every question about zeros, NaN, infinities and subnormals is asked of the integer bits: XLA on CPU flushes subnormals
to zero, and comparisons of floats keep it from vectorising.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float32, Int32, UInt

SAMPLE, RUN_SPACING = 32, 2048  # values a row that choose its pivot, in few runs: each costs cache lines of its own
USUAL_PIVOT = -6  # of a row whose sample holds no ordinary value: trained weights lie about 2^-6
MAGNITUDE = 0x7FFFFFFF
SMALLEST_NORMAL = 0x00800000
INFINITY = 0x7F800000
NAN = 0x7FC00000
NONE = 0x7FFFFFFF  # the smallest magnitude of a row of zeros
MANTISSA = 0x007FFFFF
ONE = 0x3F800000  # the bits of 1
STEPS = 2.0**23  # of the integer that a pattern is, an octave


def _log2_coefficients(degree: int = 6) -> list[np.float32]:
    """q with log2(1.5 + t) = 0.5 + t + (1/4 − t²) q(t) on [-1/2, 1/2], times STEPS: log2 within 5.8e-8.

    Least squares of that error at Chebyshev nodes. Powers of two are exact, and over mantissas as they come the error
    averages out: 1e-10 in the mean, 1e-8 relative in the variance, with the rounding of what is computed.
    """
    t = np.cos(np.pi * (np.arange(4096) + 0.5) / 4096) / 2
    factor = 0.25 - t * t
    lacking = (np.log2(1.5 + t) - (0.5 + t)) / factor
    fit = np.polynomial.Polynomial.fit(t, lacking, degree, domain=[-1, 1], w=factor)
    return [np.float32(STEPS * c) for c in fit.convert().coef]


LOG2_COEFFICIENTS = _log2_coefficients()


class RowSums(eqx.Module):
    """Sums over each row, over its values that are not ±0. With p = pivot and l = log2|w| − p:

    `s1`…`s4` = Σ l^k, `u1`, `u2` = Σ |w|^k; `n_zero` counts ±0, `n_negative` the negative non-zero values;
    `min_bits` and `max_bits` are the extreme magnitudes as bit patterns (`min_bits` of the non-zero ones, NONE
    without any). A row with subnormals, NaN or inf holds finite garbage in the sums; its extreme bits tell. `s4` is inf
    where the root mean square of l is past some fifty octaves.
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
    min_bits: Int32[Array, " rows"]
    max_bits: Int32[Array, " rows"]


def log2_steps(magnitude: Int32[Array, "*shape"], pivot: Int32[Array, "*#shape"]) -> Float32[Array, "*shape"]:
    """STEPS · (log2 − pivot) of normal positive float32 numbers from their bits; of others finite, but not that.

    Read as an integer, a pattern is a straight line of the logarithm from one power of two to the next, in steps of
    1/STEPS; a polynomial in the mantissa gives what the line lacks. Its pairs of terms are joined by Horner's scheme in
    t²: as many operations as Horner's in t, in a chain half as long. The product keeps a compiler that may reassociate
    from adding the constant first, which would round alike for all values of an octave.
    """
    t = lax.bitcast_convert_type((magnitude & MANTISSA) | ONE, jnp.float32) - np.float32(1.5)
    c, t2 = LOG2_COEFFICIENTS, t * t
    q = c[6]
    for k in (4, 2, 0):
        q = q * t2 + (c[k + 1] * t + c[k])
    return (magnitude - ((127 + pivot) << 23)).astype(jnp.float32) + (np.float32(0.25) - t2) * q


def _pivot(magnitude: Int32[Array, "rows cols"]) -> Int32[Array, " rows"]:
    """The mean exponent of the ordinary values in a sample of each row, within the range that 2^pivot has."""
    n_rows, n_cols = magnitude.shape
    runs = max(1, min(4, n_cols // RUN_SPACING))
    spread = magnitude[:, : n_cols // runs * runs].reshape(n_rows, runs, -1)
    sample = spread[:, :, : SAMPLE // runs].reshape(n_rows, -1)
    ordinary = (sample >= SMALLEST_NORMAL) & (sample < INFINITY)
    # one reduction for both: the biased exponents from bit 8 up, their number below it
    total = jnp.sum(jnp.where(ordinary, ((sample >> 23) << 8) + 1, 0), axis=1)
    count = total & 0xFF
    mean = (total >> 8) // jnp.maximum(count, 1) - 127
    return jnp.where(count > 0, jnp.clip(mean, -126, 126), USUAL_PIVOT)


class Layout(NamedTuple):
    """How a type of at most 16 bits holds a number: bits of its mantissa, bias of its exponent, and which magnitudes
    are not finite ("ieee": the largest exponent; "last": all ones; "zero": that of zero, with the sign).
    """

    mantissa: int
    bias: int
    nonfinite: Literal["ieee", "last", "zero"]


LAYOUTS = {
    "float16": Layout(10, 15, "ieee"),
    "float8_e5m2": Layout(2, 15, "ieee"),
    "float8_e4m3fn": Layout(3, 7, "last"),
    "float8_e5m2fnuz": Layout(2, 16, "zero"),
    "float8_e4m3fnuz": Layout(3, 8, "zero"),
}


def float32_bits(bits: UInt[Array, "rows cols"], dtype: str) -> Int32[Array, "rows cols"]:
    """The bit patterns of `dtype` as those of the same numbers in float32; exact for every type of at most 32 bits.

    By integer arithmetic alone, since a conversion of floats may flush subnormals. NaN and inf stay NaN and inf.
    """
    if dtype == "float32":
        return lax.bitcast_convert_type(bits, jnp.int32)
    wide = bits.astype(jnp.int32)
    if dtype == "bfloat16":
        return wide << 16
    layout = LAYOUTS[dtype]
    sign = 1 << (8 * bits.dtype.itemsize - 1)
    low = wide & (sign - 1)
    magnitude = (low << (23 - layout.mantissa)) + ((127 - layout.bias) << 23)
    # a subnormal is low · 2^(1 − bias − mantissa): the integer as float32, its exponent lowered
    lowered = lax.bitcast_convert_type(low.astype(jnp.float32), jnp.int32) - ((layout.bias - 1 + layout.mantissa) << 23)
    magnitude = jnp.where(low >> layout.mantissa == 0, jnp.where(low == 0, 0, lowered), magnitude)
    match layout.nonfinite:
        case "ieee":
            largest = (sign - 1) >> layout.mantissa
            infinite = low >> layout.mantissa == largest
            magnitude += jnp.where(infinite, (255 - largest - 127 + layout.bias) << 23, 0)
        case "last":
            magnitude = jnp.where(low == sign - 1, NAN, magnitude)
        case "zero":
            magnitude = jnp.where(wide == sign, NAN, magnitude)
    return magnitude | jnp.where(wide & sign != 0, np.int32(-(1 << 31)), 0)


def row_sums(bits: UInt[Array, "rows cols"], *, dtype: str) -> RowSums:
    """Log-moment sums of each row of bit patterns of `dtype`, a floating-point type of at most 32 bits.

    Rows have at most 2^24 values. They are counted in float32, since what is chosen between 1.0 and 0.0 a CPU adds
    under a mask, in one instruction where the sum of a comparison takes two.
    """
    signed = float32_bits(bits, dtype)
    magnitude = signed & MAGNITUDE
    pivot = _pivot(magnitude)
    counted = magnitude != 0
    log2 = jnp.where(counted, log2_steps(magnitude, pivot[:, None]), 0)
    square = log2 * log2
    u = lax.bitcast_convert_type(magnitude, jnp.float32)
    one, none = np.float32(1), np.float32(0)
    operands = (
        log2,
        square,
        square * log2,
        square * square,
        u,
        u * u,
        jnp.where(counted, one, none),
        jnp.where(counted & (signed < 0), one, none),
        jnp.where(counted, magnitude, NONE),
        magnitude,
    )
    start = (*(none,) * 8, np.int32(NONE), np.int32(0))

    def add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        return (*(x + y for x, y in zip(a[:8], b[:8], strict=True)), lax.min(a[8], b[8]), lax.max(a[9], b[9]))

    sums: Sequence[Array] = lax.reduce(operands, start, add, (1,))  # pyright: ignore[reportAssignmentType]
    s1, s2, s3, s4 = (total * np.float32(STEPS**-k) for k, total in enumerate(sums[:4], 1))
    u1, u2, n, n_negative, least, most = sums[4:]
    n_zero = bits.shape[1] - n.astype(jnp.int32)
    return RowSums(pivot, s1, s2, s3, s4, u1, u2, n_zero, n_negative.astype(jnp.int32), least, most)
