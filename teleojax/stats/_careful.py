"""Any floating-point values -> log-moments in float64 NumPy: slower by far, right for every input.

For what the fast kernel does not promise: float64 input, rows with subnormals, NaN or inf, layers so narrow in ln x
that float32 sums would lose their variance, and pieces of less than a row.
"""

from __future__ import annotations

import numpy as np

from teleojax.stats._logmoments import LogMoments, Partials


def careful_moments(values: np.ndarray) -> LogMoments:
    """LogMoments of a one-dimensional array of any floating-point type, every step in float64."""
    return careful_rows(values.reshape(1, -1)).total() if values.size else LogMoments.zero()


def careful_rows(values: np.ndarray) -> Partials:
    """Log-moments of each row of a (rows, columns) array of any floating-point type, columns > 0, in float64."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # signalling NaNs raise the flag and stay NaN
        x = np.abs(values.astype(np.float64))
        negative = values < 0
    counted = finite & (x > 0)
    n, n_finite = np.count_nonzero(counted, axis=1), np.count_nonzero(finite, axis=1)
    y = np.log(np.where(counted, x, 1.0))
    x = np.where(counted, x, 0.0)
    low, high = np.where(counted, x, np.inf).min(axis=1), x.max(axis=1)
    # equal values have no spread, not a rounding error's
    mean = y.sum(axis=1) / np.maximum(n, 1)
    same = low == high
    mean[same] = np.log(low[same])
    d = np.where(counted & ~same[:, None], y - mean[:, None], 0.0)
    d2 = d * d
    with np.errstate(over="ignore"):  # of float64 values past 1e154 the sums are inf, and rms then null
        sum_x, sum_x2 = x.sum(axis=1), np.einsum("ij,ij->i", x, x)
    return Partials(
        n=n,
        n_zero=n_finite - n,
        n_nonfinite=values.shape[1] - n_finite,
        n_negative=np.count_nonzero(counted & negative, axis=1),
        mean=mean,
        m2=d2.sum(axis=1),
        m3=np.einsum("ij,ij->i", d2, d),
        m4=np.einsum("ij,ij->i", d2, d2),
        sum_x=sum_x,
        sum_x2=sum_x2,
        min=low,
        max=high,
    )
