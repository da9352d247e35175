"""Rows of bit patterns -> one lognormal fit a row, all in float32 on the device: nothing to finish on the host."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32, UInt

from teleojax.kernels._logmoments import INFINITY, SMALLEST_NORMAL, row_sums

LN2 = float(np.log(2.0))


class RowFits(eqx.Module):
    """Of each row: counts; mean and maximum-likelihood standard deviation of ln|w|, their skewness and excess kurtosis;
    extremes and root mean square of |w|. `redo` marks rows whose numbers are not to be used, for `row_sums`' reasons.
    """

    n: Int32[Array, " rows"]
    n_zero: Int32[Array, " rows"]
    n_negative: Int32[Array, " rows"]
    mu: Float32[Array, " rows"]
    sigma: Float32[Array, " rows"]
    skew: Float32[Array, " rows"]
    excess_kurtosis: Float32[Array, " rows"]
    min: Float32[Array, " rows"]
    max: Float32[Array, " rows"]
    rms: Float32[Array, " rows"]
    redo: Bool[Array, " rows"]


def row_fits(bits: UInt[Array, "rows cols"], *, dtype: str, narrow: float, far: float, tiny: float) -> RowFits:
    """Fit each row of at most some thousands of values of `dtype`.

    A row is marked `redo` when it holds subnormals, NaN or inf, when the variance of log2|w| is below `narrow`, its
    mean more than `far` octaves from the row's pivot, or the mean of w² below `tiny` or, as that of the fourth power of
    log2|w| less the pivot, past float32.
    """
    sums = row_sums(bits, dtype=dtype)
    n = bits.shape[1] - sums.n_zero
    weight = jnp.maximum(n, 1).astype(jnp.float32)
    d = sums.s1 / weight
    a2, a3, a4 = sums.s2 / weight, sums.s3 / weight, sums.s4 / weight
    variance = jnp.maximum(a2 - d * d, 0)
    third = a3 - 3 * d * a2 + 2 * d * d * d
    fourth = a4 - 4 * d * a3 + 6 * d * d * a2 - 3 * d * d * d * d
    square = sums.u2 / weight
    usable = jnp.where(variance > 0, variance, 1)
    least, most = (lax.bitcast_convert_type(b, jnp.float32) for b in (sums.min_bits, sums.max_bits))
    strange = (sums.min_bits < SMALLEST_NORMAL) | (sums.max_bits >= INFINITY)
    most_float = np.finfo(np.float32).max
    in_range = (jnp.abs(d) <= far) & (variance >= narrow) & (square > tiny) & (square < most_float) & (a4 < most_float)
    return RowFits(
        n=n,
        n_zero=sums.n_zero,
        n_negative=sums.n_negative,
        mu=(sums.pivot.astype(jnp.float32) + d) * LN2,
        sigma=jnp.sqrt(variance) * LN2,
        skew=third / (usable * jnp.sqrt(usable)),
        excess_kurtosis=fourth / (usable * usable) - 3,
        min=least,
        max=most,
        rms=jnp.sqrt(square),
        redo=(n > 0) & (strange | ~in_range),
    )
