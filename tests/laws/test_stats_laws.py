"""Algebraic laws of the statistics, for arbitrary values and splits."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import teleojax as tj
from teleojax.stats import BitHistogram, LogMoments, TensorStats, careful_moments
from tests.reference import assert_moments

ARRAYS = {
    "float32": hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)),
    "float64": hnp.arrays(np.float64, st.integers(0, 60), elements=st.floats(-1e100, 1e100)),
    "float16": hnp.arrays(np.float16, st.integers(0, 60), elements=st.floats(width=16)),
}


def stats_of(values: np.ndarray) -> TensorStats:
    return tj.measure({"w": values})["w"] if len(values) else TensorStats.zero(values.dtype.name)


def close(a: LogMoments, b: LogMoments) -> None:
    assert (a.n, a.n_zero, a.n_nonfinite, a.n_negative) == (b.n, b.n_zero, b.n_nonfinite, b.n_negative)
    assert (a.min, a.max) == (b.min, b.max)
    spread = math.sqrt(max(a.m2, b.m2) / max(a.n, 1)) + 1e-12 * max(1, abs(a.mean))
    assert abs(a.mean - b.mean) <= 1e-12 * max(1, abs(a.mean))
    for k, name in ((2, "m2"), (3, "m3"), (4, "m4")):
        assert abs(getattr(a, name) - getattr(b, name)) <= 1e-9 * a.n * (spread + 1e-3) ** k


@pytest.mark.parametrize("dtype", ARRAYS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_split_merges_to_the_whole(dtype: str, data: st.DataObject) -> None:
    values = data.draw(ARRAYS[dtype])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    parts = [stats_of(p) for p in np.split(values, cuts)]
    whole, merged = stats_of(values), tj.merge(*parts)
    close(whole.moments, merged.moments)
    assert whole.histogram == merged.histogram or whole.moments.n == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_merge_is_associative_and_has_an_identity(data: st.DataObject) -> None:
    a, b, c = (stats_of(data.draw(ARRAYS["float32"])) for _ in range(3))
    close(a.merge(b).merge(c).moments, a.merge(b.merge(c)).moments)
    assert a.merge(b).merge(c).histogram == a.merge(b.merge(c)).histogram
    close(a.merge(TensorStats.zero()).moments, a.moments)
    assert a.merge(TensorStats.zero()).histogram == a.histogram


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_split_of_a_large_tensor_merges_to_the_whole(dtype: type) -> None:
    values = (np.random.default_rng(0).standard_normal(150_001) * 0.02).astype(dtype)
    whole = tj.measure({"w": values})["w"]
    merged = tj.merge(*(tj.measure({"w": p})["w"] for p in np.split(values, [5, 4000, 31_000, 90_000])))
    assert merged.histogram == whole.histogram
    assert_moments(merged.moments, values)
    assert merged.moments.sigma == pytest.approx(whole.moments.sigma, rel=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_parts_of_a_large_tensor_merge_to_its_resolution(dtype: type) -> None:
    values = np.random.default_rng(0).standard_normal(15_000).astype(dtype)
    whole = tj.measure({"w": values})["w"]
    merged = tj.merge(*(tj.measure({"w": p})["w"] for p in np.split(values, 3)))
    assert not whole.histogram.lossless
    assert merged.histogram == whole.histogram


@given(st.integers(-60, 60), ARRAYS["float32"])
def test_scaling_by_a_power_of_two_shifts_mu_alone(power: int, values: np.ndarray) -> None:
    values = values[(values == 0) | ((np.abs(values) > 1e-15) & (np.abs(values) < 1e15))]
    a, b = careful_moments(values), careful_moments(values * np.float32(2.0**power))
    close(
        LogMoments(a.n, a.n_zero, a.n_nonfinite, a.n_negative, b.mean, a.m2, a.m3, a.m4, 0, 0, b.min, b.max),
        LogMoments(b.n, b.n_zero, b.n_nonfinite, b.n_negative, b.mean, b.m2, b.m3, b.m4, 0, 0, b.min, b.max),
    )
    if a.n:
        assert b.mean - a.mean == pytest.approx(power * math.log(2), abs=1e-11)


def test_counts_past_two_to_the_31_are_exact() -> None:
    big = 2**33 + 1
    one = BitHistogram("bfloat16", 0, np.asarray([16256]), np.asarray([big]))
    stats = TensorStats(LogMoments(big, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, float(big), float(big), 1.0, 1.0), one)
    merged = tj.merge(*[stats] * 5)
    assert merged.moments.n == merged.histogram.n == 5 * big


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float16", "bfloat16"), ("float64", "float16")])
def test_unlike_types_merge_without_losing_a_value(dtypes: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal(20_000) * 0.02).astype(getattr(ml_dtypes, d, d)) for d in dtypes]
    a, b = (tj.measure({"w": p})["w"] for p in parts)
    for merged in (a.merge(b), b.merge(a)):
        assert merged.histogram.n == merged.moments.n == sum(np.count_nonzero(p) for p in parts)
        both = np.concatenate([p.astype(np.float64) for p in parts])
        assert_moments(merged.moments, both)
        mean = merged.histogram.counts @ np.log(merged.histogram.values()) / merged.histogram.n
        assert mean == pytest.approx(merged.moments.mean, abs=0.004)
