"""What `measure` counts and sums, against float64 NumPy, for every type, layout and awkward value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import teleojax as tj
from tests.arrays import PackedSource
from tests.reference import assert_moments

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
SIZES = (1, 2, 384, 8191, 8192, 8193, 40_000, 700_001)
# the smallest subnormal and the largest number of each type, and what else a file can hold
SPECIAL = {
    name: np.asarray(
        [0.0, -0.0, np.nan, ml_dtypes.finfo(t).smallest_subnormal, -ml_dtypes.finfo(t).max, 1.0, -1.0], dtype=t
    )
    for name, t in DTYPES.items()
}
INFINITE = {name for name in DTYPES if name in ("float32", "float64", "float16", "bfloat16", "float8_e5m2")}


def gaussian(n: int, dtype: str, scale: float = 0.02, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(DTYPES[dtype])


def awkward(dtype: str) -> dict[str, np.ndarray]:
    scale = 1.0 if dtype.startswith("float8") else 0.02
    arrays = {f"gaussian{n}": gaussian(n, dtype, scale) for n in SIZES}
    with_special = gaussian(50_000, dtype, scale, seed=1)
    with_special[100:50_000:97] = np.resize(SPECIAL[dtype], len(with_special[100:50_000:97]))
    if dtype in INFINITE:
        with_special[5::1001], with_special[6::1001] = np.inf, -np.inf
    arrays |= {
        "special": with_special,
        "zeros": np.zeros(20_000, DTYPES[dtype]),
        "nan": np.full(20_000, np.nan, DTYPES[dtype]),
        "constant": np.full(20_000, -1.5, DTYPES[dtype]),
        "sparse": np.where(np.arange(30_000) % 1009 == 0, 1.5, 0).astype(DTYPES[dtype]),
        "scalar": np.asarray(0.5, DTYPES[dtype]),
        "matrix": gaussian(300 * 77, dtype, scale, seed=2).reshape(300, 77),
    }
    return arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout",
    [{}, {"shift": 8}, {"shift": 24, "gap": 16}, {"shift": 3, "gap": 1}, {"shift": 3, "stream": True}],
    ids=["aligned", "shifted", "gaps", "unaligned", "stream"],
)
def test_every_type_and_layout(dtype: str, layout: dict) -> None:
    arrays = awkward(dtype)
    measured = tj.measure(PackedSource(arrays, **layout))
    assert set(measured) == set(arrays)
    for name, array in arrays.items():
        assert_moments(measured[name].moments, array)
        assert measured[name].histogram.n == measured[name].moments.n


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_all_subnormal_tensor(dtype: str) -> None:
    smallest = float(ml_dtypes.finfo(DTYPES[dtype]).smallest_subnormal)
    steps = np.random.default_rng(0).integers(-60, 60, 20_000)
    values = (steps * smallest).astype(DTYPES[dtype])
    assert np.any(values.astype(np.float64) == smallest)
    assert_moments(tj.measure({"w": values})["w"].moments, values)


def test_sixteen_bit_histogram_is_lossless() -> None:
    values = gaussian(100_000, "bfloat16")
    histogram = tj.measure({"w": values})["w"].histogram
    want, counts = np.unique(np.abs(values.astype(np.float64))[values != 0], return_counts=True)
    np.testing.assert_array_equal(histogram.values(), want)
    np.testing.assert_array_equal(histogram.counts, counts)


def test_float32_cells_hold_what_lies_between_their_edges() -> None:
    values = gaussian(200_000, "float32")
    histogram = tj.measure({"w": values})["w"].histogram
    assert not histogram.lossless
    lower, upper = histogram.edges()
    x = np.sort(np.abs(values[values != 0]).astype(np.float64))
    np.testing.assert_array_equal(np.searchsorted(x, upper) - np.searchsorted(x, lower), histogram.counts)
    assert np.all(upper / lower <= 1 + 1 / 128)


def test_small_float32_tensor_keeps_every_bit() -> None:
    values = gaussian(8192, "float32")
    histogram = tj.measure({"w": values})["w"].histogram
    np.testing.assert_array_equal(histogram.values(), np.unique(np.abs(values)).astype(np.float64))


@pytest.mark.parametrize("sigma", [1e-2, 1e-3, 1e-5])
def test_narrow_layers_keep_their_spread(sigma: float) -> None:
    values = np.exp(sigma * np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    assert_moments(tj.measure({"w": values})["w"].moments, values)


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-18, 1e-12, 1.0, 1e15, 1e19])
def test_accuracy_does_not_depend_on_scale(scale: float) -> None:
    values = gaussian(300_000, "float32", scale)
    assert_moments(tj.measure({"w": values})["w"].moments, values)


def test_outliers_do_not_spoil_a_row() -> None:
    values = gaussian(100_000, "float32")
    values[::5000], values[1::5000] = 1e30, 1e-30
    assert_moments(tj.measure({"w": values})["w"].moments, values)


def test_a_pivot_that_misses_its_row_is_noticed() -> None:
    values = gaussian(100_000, "float32")
    for run in range(4):  # where a row of 8192 is sampled
        values[2048 * run :: 8192] = values[2048 * run + 1 :: 8192] = 1e-25
        for k in range(2, 8):
            values[2048 * run + k :: 8192] = 0
    assert_moments(tj.measure({"w": values})["w"].moments, values)


def test_memory_budget_changes_no_bit() -> None:
    arrays = {"a": gaussian(9_000_001, "float32"), "b": gaussian(9_000_001, "bfloat16"), "c": gaussian(77, "float64")}
    free, tight = (tj.measure(PackedSource(arrays, shift=8), budget_bytes=b) for b in (None, 64 << 20))
    for name in arrays:
        assert free[name].moments == tight[name].moments
        assert free[name].histogram == tight[name].histogram


def test_stream_and_memory_give_the_same_bits() -> None:
    arrays = {"a": gaussian(20_000_000, "float32"), "b": gaussian(3_000_001, "float16")}
    tight = 64 << 20  # six windows, so that every buffer is filled twice
    mapped, streamed = (tj.measure(PackedSource(arrays, shift=24, stream=s), budget_bytes=tight) for s in (False, True))
    for name in arrays:
        assert mapped[name].moments == streamed[name].moments
        assert mapped[name].histogram == streamed[name].histogram


def test_integer_and_empty_tensors_are_skipped_with_a_reason() -> None:
    arrays = {"w": gaussian(10, "float32"), "ids": np.arange(4), "none": np.empty((3, 0), np.float32)}
    measured = tj.measure(arrays)
    assert list(measured) == ["w"]
    assert measured.skipped == {"ids": "integer type int64", "none": "empty"}


def test_selection_by_name_and_size() -> None:
    arrays = {"a.weight": gaussian(10, "float32"), "a.bias": gaussian(3, "float32"), "b.weight": gaussian(2, "float32")}
    assert list(tj.measure(arrays, include=r"weight$", min_size=3)) == ["a.weight"]
    assert list(tj.measure(arrays, exclude="^a")) == ["b.weight"]
    with pytest.raises(tj.UsageError, match="regular expression"):
        tj.measure(arrays, include="(")


def test_progress_reaches_all_bytes() -> None:
    seen: list[tuple[int, int]] = []
    arrays = {"a": gaussian(100_000, "float32"), "ids": np.arange(10)}
    tj.measure(arrays, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (400_000, 400_000)


def test_global_jax_configuration_is_untouched() -> None:
    import jax

    before = dict(jax.config.values)
    tj.fit({"w": gaussian(100_000, "float32")})
    assert dict(jax.config.values) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [{}, {"shift": 3, "gap": 1, "stream": True}], ids=["aligned", "unaligned-stream"])
def test_moments_alone(dtype: str, layout: dict) -> None:
    arrays = awkward(dtype)
    measured = tj.measure(PackedSource(arrays, **layout), histogram=False)
    assert set(measured) == set(arrays)
    for name, array in arrays.items():
        assert_moments(measured[name].moments, array)
        assert measured[name].histogram is None
    report = tj.fit(measured)
    fit = report["gaussian700001"]
    assert fit.reason is not None
    assert "only moments" in fit.reason
    assert fit.lognormal is not None
    assert np.isnan(fit.lognormal.kl_nats)
    assert fit.lognormal.mu == fit.moments.mean
    assert report.group_by("model")["packed"].stats.histogram is None
