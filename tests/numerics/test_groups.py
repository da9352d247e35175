"""Statistics of a tensor's stretches, against NumPy on the stretches, and what their merge must equal."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import teleojax as tj
from teleojax.engine import _pass
from teleojax.engine._groups import group_ends
from teleojax.stats import LogMoments, TensorStats
from tests.arrays import PackedSource
from tests.numerics.test_measure import DTYPES, awkward, gaussian
from tests.reference import assert_moments, reference_moments

LAYOUTS = [{}, {"shift": 24, "gap": 16}, {"shift": 3, "gap": 1, "stream": True}]
LAYOUT_IDS = ["aligned", "gaps", "unaligned-stream"]
LOSSLESS = [d for d in DTYPES if d not in ("float32", "float64")]


def stretches_of(values: np.ndarray, stats: TensorStats) -> list[np.ndarray]:
    """The values cut where the groups end: as many as they say they saw, one group after another."""
    ends = np.cumsum([g.moments.size for g in stats.groups])
    assert ends[-1] == values.size
    return np.split(values.reshape(-1), ends[:-1])


def assert_histogram(stats: TensorStats, values: np.ndarray) -> None:
    """Every cell holds as many magnitudes as NumPy finds in it, and all that are finite and not zero lie in one."""
    histogram = stats.histogram
    assert histogram is not None
    v = np.abs(values.reshape(-1).astype(np.float64))
    x, counts = np.unique(v[np.isfinite(v) & (v > 0)], return_counts=True)
    if histogram.lossless:
        np.testing.assert_array_equal(histogram.values(), x)
        np.testing.assert_array_equal(histogram.counts, counts)
    else:
        lower, upper = histogram.edges()
        upper = np.where(upper == np.finfo(np.float64).max, np.inf, upper)  # which holds the largest float64 too
        below = np.append(0, np.cumsum(counts))
        inside = below[np.searchsorted(x, upper)] - below[np.searchsorted(x, lower)]
        np.testing.assert_array_equal(inside, histogram.counts)
        assert np.all(histogram.counts > 0)
        assert histogram.counts.sum() == counts.sum()


def assert_rounding_apart(a: LogMoments, b: LogMoments, relative: float = 1e-12) -> None:
    """Counts and extremes equal, moments equal to `relative` of the size that the spread gives them."""
    for name in ("n", "n_zero", "n_nonfinite", "n_negative", "min", "max"):
        assert getattr(a, name) == getattr(b, name), name
    sigma = math.sqrt(b.m2 / b.n) if b.n else 0.0
    scales = {"mean": max(abs(b.mean), sigma), "sum_x": b.sum_x, "sum_x2": b.sum_x2}
    scales |= {f"m{k}": b.n * sigma**k for k in (2, 3, 4)}
    for name, scale in scales.items():
        assert getattr(a, name) == getattr(b, name) or abs(getattr(a, name) - getattr(b, name)) <= relative * scale, (
            name
        )


@pytest.mark.parametrize("groups", [2, 3, 20, 77])
@pytest.mark.parametrize("size", [154, 155, 8192, 8193, 100_000, 5_242_879, 5_242_880, 7_000_001, 20_185_088, 2**33])
def test_stretches_are_nearly_equal_and_large_ones_end_at_rows(size: int, groups: int) -> None:
    ends = group_ends(size, groups)
    lengths = np.diff([0, *ends])
    assert (len(ends), ends[-1]) == (groups, size)
    if size / groups < 32 * 8192:
        assert lengths.max() - lengths.min() <= 1
    else:
        assert all(end % 8192 == 0 for end in ends[:-1])
        assert np.abs(lengths - size / groups).max() <= 8192


@pytest.mark.parametrize(
    ("layout", "histogram"),
    [*((layout, True) for layout in LAYOUTS), (LAYOUTS[1], False)],
    ids=[*LAYOUT_IDS, "moments-alone"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_are_numpys_statistics_of_the_stretches(dtype: str, layout: dict, histogram: bool) -> None:
    arrays = awkward(dtype) | {"million": gaussian(1_000_003, dtype, 1.0 if dtype.startswith("float8") else 0.02)}
    for groups in (3, 20):  # stretches of up to 333,000 values; and none past the short ones
        measured = tj.measure(PackedSource(arrays, **layout), groups=groups, histogram=histogram)
        assert set(measured) == set(arrays)
        for name, array in arrays.items():
            stats = measured[name]
            assert len(stats.groups) == (groups if array.size >= 2 * groups else 0)
            assert_moments(stats.moments, array)
            for group, values in zip(stats.groups, stretches_of(array, stats) if stats.groups else [], strict=True):
                assert group.groups == ()
                assert_moments(group.moments, values)
                if histogram:
                    assert_histogram(group, values)
                else:
                    assert group.histogram is None
            assert stats.histogram is None or histogram


@pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_are_those_without_groups(dtype: str, layout: dict) -> None:
    arrays = awkward(dtype)
    plain, grouped = (tj.measure(PackedSource(arrays, **layout), groups=g) for g in (None, 20))
    for name, array in arrays.items():
        assert grouped[name].histogram == plain[name].histogram
        if dtype in (*LOSSLESS, "float64"):
            assert_rounding_apart(grouped[name].moments, plain[name].moments)
        if array.size < 40:
            assert grouped[name] == plain[name]
        else:
            assert grouped[name] != plain[name]


def test_what_is_left_without_a_stretch() -> None:
    values = {
        "small": gaussian(400, "float32"),
        "short": gaussian(50_001, "bfloat16"),
        "long": gaussian(90_000, "float32"),
    }
    measured = tj.measure(values, groups=5)
    for name, array in values.items():
        stats = measured[name]
        parts = stretches_of(array, stats)
        for k in range(5):
            left = np.concatenate(parts[:k] + parts[k + 1 :])
            without = stats.without(k)
            assert without.groups == ()
            assert_moments(without.moments, left)
            assert_histogram(without, left)


def test_a_jackknife_of_the_mean_of_log_w() -> None:
    values = gaussian(81_920, "bfloat16")
    stats = tj.measure({"w": values})["w"], tj.measure({"w": values}, groups=10)["w"]
    y = np.log(np.abs(values[values != 0].astype(np.float64)))
    assert stats[0].moments.mean == pytest.approx(y.mean(), rel=1e-12)
    means = np.asarray([stats[1].without(k).moments.mean for k in range(10)])
    blocks = np.split(values, 10)
    want = [np.log(np.abs(b[b != 0].astype(np.float64))) for b in blocks]
    left = [(y.sum() - w.sum()) / (len(y) - len(w)) for w in want]
    np.testing.assert_allclose(means, left, rtol=1e-12)
    error = math.sqrt(0.9 * np.sum((means - means.mean()) ** 2))
    assert 0.5 < error / (y.std() / math.sqrt(len(y))) < 2  # independent values; a chi of 9 degrees is 0.5 to 1.6


@pytest.mark.parametrize(("dtype", "size"), [("float32", 9000), ("float32", 20_000), ("float64", 9000)])
def test_stretches_have_the_cells_of_their_tensor(dtype: str, size: int) -> None:
    stats = tj.measure({"w": gaussian(size, dtype)}, groups=4)["w"]
    assert not stats.histogram.lossless
    assert {g.histogram.drop for g in stats.groups} == {stats.histogram.drop}
    assert {stats.without(k).histogram.drop for k in range(4)} == {stats.histogram.drop}
    exact = [tj.measure({"w": part})["w"] for part in np.split(gaussian(size, dtype), 4)]
    assert {e.histogram.drop for e in exact} == {0}
    assert {g.histogram.drop for g in TensorStats.from_groups(exact).groups} == {stats.histogram.drop}


@pytest.mark.parametrize("size", [100, 8192, 50_000, 700_001])
def test_quantised_values_keep_their_scale(size: int) -> None:
    steps = np.random.default_rng(0).integers(-128, 128, size).astype(np.int8)
    source = PackedSource({"w": steps}, shift=5)
    source.specs = tuple(replace(s, skip=None, scale=0.03125) for s in source.specs)
    plain, grouped = (tj.measure(source, groups=g)["w"] for g in (None, 4))
    assert grouped.histogram == plain.histogram
    assert_rounding_apart(grouped.moments, plain.moments)
    for group, values in zip(grouped.groups, stretches_of(steps, grouped), strict=True):
        assert_moments(group.moments, values.astype(np.float64) * 0.03125)
        assert_histogram(group, values.astype(np.float64) * 0.03125)


def test_stretches_follow_the_storage_not_the_indices(tmp_path: Path) -> None:
    values = gaussian(60_000, "float32").reshape(200, 300) * np.arange(1, 301, dtype=np.float32)
    np.save(tmp_path / "w.npy", np.asfortranarray(values))
    stats = next(iter(tj.measure(tmp_path / "w.npy", groups=6).values()))
    for k, group in enumerate(stats.groups):
        assert_moments(group.moments, values[:, 50 * k : 50 * (k + 1)])


@pytest.mark.parametrize("size", [1, 19, 20, 39, 40])
def test_tensors_of_fewer_than_two_values_a_group_stay_whole(size: int) -> None:
    stats = tj.measure({"w": gaussian(size, "float32")}, groups=20)["w"]
    assert [g.moments.size for g in stats.groups] == ([2] * 20 if size == 40 else [])


def test_tensors_with_names_like_numbers_and_stretches() -> None:
    names = ["w", "w[0]", "w#1", "0", "1", "2", "19", "w.0"]
    arrays = {name: gaussian(20_000 + 100 * i, "float32", seed=i) for i, name in enumerate(names)}
    measured = tj.measure(PackedSource(arrays, shift=8), groups=20)
    assert set(measured) == set(names)
    for name, array in arrays.items():
        assert_moments(measured[name].moments, array)
        assert_moments(measured[name].groups[3].moments, stretches_of(array, measured[name])[3])


def test_neither_budget_nor_source_nor_the_order_of_work_changes_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {
        "a": gaussian(9_000_001, "float32"),
        "b": gaussian(9_000_001, "bfloat16"),
        "c": gaussian(400_000, "float32"),
        "d": gaussian(777, "float64"),
        "e": gaussian(200_001, "float64"),
    }
    plain, want = (dict(tj.measure(PackedSource(arrays, shift=24), groups=g)) for g in (None, 20))
    for held in (1 << 25, 1):  # stretches begun together, and one by one
        monkeypatch.setattr(_pass, "HELD_BYTES", held)
        for stream in (False, True):
            tight = tj.measure(PackedSource(arrays, shift=24, stream=stream), groups=20, budget_bytes=64 << 20)
            assert dict(tight) == want
        assert dict(tj.measure(PackedSource(arrays, shift=24))) == plain


def test_a_tensor_with_a_stretch_missing_has_failed() -> None:
    arrays = {
        "whole": gaussian(1_000_000, "float32"),
        "cut": gaussian(9_000_000, "float32"),
        "after": gaussian(9, "float32"),
    }
    source = PackedSource(arrays, stream=True)
    source._bytes = source._bytes[:36_000_000]  # 16 of the 18 windows of 2 MiB; eight ninths of "cut"
    seen: list[tuple[int, int]] = []
    measured = tj.measure(
        source, groups=20, budget_bytes=64 << 20, progress=lambda done, total: seen.append((done, total))
    )
    assert list(measured) == ["whole"]
    assert set(measured.failed) == {"cut", "after"}
    assert measured["whole"] == tj.measure(PackedSource(arrays), groups=20)["whole"]
    assert 4_000_000 <= seen[-1][0] <= 36_000_000
    with pytest.raises(tj.CorruptInputError):
        tj.measure(source, groups=20, include="cut")


def test_progress_counts_the_bytes_of_tensors() -> None:
    seen: list[tuple[int, int]] = []
    arrays = {"a": gaussian(100_003, "float32"), "b": gaussian(30, "float32"), "ids": np.arange(10)}
    measured = tj.measure(arrays, groups=20, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (400_132, 400_132)
    assert all(a[0] < b[0] for a, b in pairwise(seen))
    assert measured.nbytes == 400_132
    assert measured.specs["a"].shape == (100_003,)
    assert measured.skipped == {"ids": "integer type int64"}


def test_a_merge_of_tensors_has_no_groups() -> None:
    a, b = tj.measure({"a": gaussian(9000, "float32"), "b": gaussian(90, "float32", seed=1)}, groups=4).values()
    assert tj.merge(a, b).groups == a.merge(b).groups == tj.merge(a).groups == TensorStats.zero().groups == ()
    assert replace(a, groups=()) == tj.merge(a) == tj.merge(*a.groups)
    assert tj.merge(a, b) == tj.merge(replace(a, groups=()), replace(b, groups=()))
    assert a != replace(a, groups=a.groups[::-1])


@pytest.mark.parametrize("groups", [1, 0, -20])
def test_fewer_than_two_groups_are_refused(groups: int) -> None:
    with pytest.raises(tj.UsageError, match=f"groups: found {groups}; needed 2 or more"):
        tj.measure({"w": gaussian(100, "float32")}, groups=groups)


def test_a_stretch_that_is_none_is_refused() -> None:
    grouped, plain = (tj.measure({"w": gaussian(100, "float32")}, groups=g)["w"] for g in (4, None))
    for k in (4, -1):
        with pytest.raises(tj.UsageError, match=f"found {k}; needed 0 to 3"):
            grouped.without(k)
    with pytest.raises(tj.UsageError, match="without groups"):
        plain.without(0)


def test_counts_of_many_stretches_do_not_fill_the_memory() -> None:
    arrays = {f"w{i}": gaussian(2_700_000, "bfloat16") for i in range(12)}  # one window: 240 tables of half a MiB
    source = PackedSource(arrays)
    tj.measure(source, groups=20)
    tracemalloc.start()
    measured = tj.measure(source, groups=20)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(measured["w0"].groups) == 20
    assert peak - kept < 120 << 20  # all at once: 180 MiB and more


def test_a_stretch_of_nothing_but_zeros_and_nan() -> None:
    values = gaussian(40_000, "float32")
    values[:10_000], values[10_000:20_000] = 0, np.nan
    stats = tj.measure({"w": values}, groups=4)["w"]
    assert [(g.moments.n, g.moments.n_zero, g.moments.n_nonfinite) for g in stats.groups[:2]] == [
        (0, 10_000, 0),
        (0, 0, 10_000),
    ]
    assert [g.histogram.n for g in stats.groups] == [0, 0, 10_000, 10_000]
    two = tj.measure({"w": values[10_000:30_000]}, groups=2)["w"].without(1)
    assert two.moments.n == 0
    assert math.isnan(two.moments.sigma)
    assert reference_moments(values)["n"] == stats.moments.n == 20_000
