"""Any floating-point values -> log-moments in float64 NumPy: slower by far, right for every input.

For what the fast kernel does not promise: float64 input, rows with subnormals, NaN or inf, layers so narrow in ln x
that float32 sums would lose their variance, and pieces of less than a row.
"""

from __future__ import annotations

import math

import numpy as np

from teleojax.stats._logmoments import LogMoments


def careful_moments(values: np.ndarray) -> LogMoments:
    """LogMoments of a one-dimensional array of any floating-point type, every step in float64."""
    finite = np.isfinite(values)
    x = np.abs(values[finite].astype(np.float64))
    nonzero = x > 0
    x = x[nonzero]
    n = len(x)
    n_finite = int(np.count_nonzero(finite))
    counts = {
        "n": n,
        "n_zero": n_finite - n,
        "n_nonfinite": len(values) - n_finite,
        "n_negative": int(np.count_nonzero(values[finite] < 0)),
    }
    if n == 0:
        return LogMoments(**counts, mean=0.0, m2=0.0, m3=0.0, m4=0.0, sum_x=0.0, sum_x2=0.0, min=math.inf, max=0.0)
    low, high = float(x.min()), float(x.max())
    y = np.log(x)
    mean = float(y.mean()) if low < high else math.log(low)  # equal values have no spread, not a rounding error's
    d = y - mean if low < high else np.zeros(n)
    d2 = d * d
    with np.errstate(over="ignore"):  # of float64 values past 1e154 the sums are inf, and rms then null
        sum_x, sum_x2 = float(x.sum()), float(x @ x)
    return LogMoments(
        **counts,
        mean=mean,
        m2=float(d2.sum()),
        m3=float((d2 * d).sum()),
        m4=float((d2 * d2).sum()),
        sum_x=sum_x,
        sum_x2=sum_x2,
        min=low,
        max=high,
    )
