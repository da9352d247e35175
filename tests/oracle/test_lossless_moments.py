"""Moments that follow from counts of every bit pattern, against those of the values one by one in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from teleojax.stats import TensorStats, careful_moments
from teleojax.stats._bithist import pattern_dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_moments_from_counts_are_those_of_the_values(dtype: str) -> None:
    rng = np.random.default_rng(0)
    skewed = np.exp(0.3 * rng.exponential(1.0, 20_000) - 1) * rng.choice([-1, 1, 1], 20_000)
    skewed[:300], skewed[300:310] = 0, np.nan
    values = skewed.astype(ml_dtypes.finfo(dtype).dtype)
    bits = values.view(pattern_dtype(dtype))
    got = TensorStats.from_pattern_counts(dtype, np.bincount(bits, minlength=1 << (8 * bits.itemsize))).moments
    want = careful_moments(values)
    for name in ("n", "n_zero", "n_nonfinite", "n_negative", "min", "max"):
        assert getattr(got, name) == getattr(want, name), name
    for name in ("mean", "m2", "m3", "m4", "sum_x", "sum_x2"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-10), name
    assert got.skew > 0.5
