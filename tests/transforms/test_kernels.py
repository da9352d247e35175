"""The kernels alone: the logarithm's accuracy, exact counts, jit against eager, one trace whatever the tensors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from teleojax.engine import _counting
from teleojax.engine._compile import compiled_pattern_counts, compiled_row_fits, compiled_row_sums
from teleojax.kernels import (
    RowSums,
    _bithist,
    _bithist_pallas,
    pattern_counts,
    pattern_counts_one_hot,
    pattern_counts_pallas,
    pattern_counts_scattered,
    pattern_counts_sorted,
    pattern_counts_whole,
    row_sums,
)
from teleojax.kernels._logmoments import STEPS, float32_bits, log2_steps
from teleojax.stats import careful_moments, row_moments
from teleojax.stats._bithist import pattern_dtype, pattern_values
from tests.arrays import PackedSource


def rows(n_rows: int = 4, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n_rows, 8192)) * 0.02).astype(np.float32)


def sums_of(values: np.ndarray) -> RowSums:
    return compiled_row_sums()(values.view(pattern_dtype(values.dtype.name)), dtype=values.dtype.name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_pattern_of_a_small_type_is_the_same_number_in_float32(dtype: str, compiled: bool) -> None:
    patterns = np.arange(1 << (8 * pattern_dtype(dtype).itemsize)).astype(pattern_dtype(dtype)).reshape(1, -1)
    function = jax.jit(float32_bits, static_argnames="dtype") if compiled else float32_bits
    got = np.asarray(function(jnp.asarray(patterns), dtype=dtype)).view(np.float32)
    want = pattern_values(dtype, patterns)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[~np.isnan(want)].astype(np.float64), want[~np.isnan(want)])


def test_log2_from_the_bits_is_good_to_float32() -> None:
    mantissas = np.linspace(1, 2, 200_001, endpoint=False).astype(np.float32)
    got = np.asarray(jax.jit(log2_steps)(mantissas.view(np.int32), jnp.int32(0)), np.float64) / STEPS
    error = got - np.log2(mantissas.astype(np.float64))
    assert np.abs(error).max() < 1e-7
    assert abs(error.mean()) < 1e-9


@pytest.mark.parametrize("pivot", [-126, -6, 0, 126])
def test_log2_from_the_bits_of_every_exponent(pivot: int) -> None:
    exponents = np.arange(-126, 128)
    powers = np.ldexp(1.0, exponents).astype(np.float32)
    np.testing.assert_array_equal(
        log2_steps(jnp.asarray(powers.view(np.int32)), jnp.int32(pivot)) / STEPS, exponents - pivot
    )
    between = (1.25 * powers).view(np.int32)
    got = np.asarray(log2_steps(jnp.asarray(between), jnp.int32(pivot)), np.float64) / STEPS
    np.testing.assert_allclose(got, exponents - pivot + np.log2(1.25), rtol=1.5e-7, atol=1e-7)


def test_row_moments_match_float64() -> None:
    values = rows(64)
    moments = row_moments(sums_of(values))
    assert not moments.redo.any()
    for row, row_values in enumerate(values):
        want, got = careful_moments(row_values), moments.partials.take(np.asarray([row])).total()
        assert (got.n, got.n_zero, got.n_negative, got.min, got.max) == (
            want.n, want.n_zero, want.n_negative, want.min, want.max)  # fmt: skip
        assert abs(got.mean - want.mean) < 5e-7
        assert abs(got.sigma / want.sigma - 1) < 5e-7
        assert abs(got.skew - want.skew) < 2e-5
        assert abs(got.excess_kurtosis - want.excess_kurtosis) < 1e-4


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e-40, np.float32(1e38)], ids=["nan", "inf", "-inf", "subnormal", "huge"]
)
def test_rows_the_kernel_cannot_do_are_marked(value: float) -> None:
    values = rows(3)
    values[1, 4097] = value
    redo = row_moments(sums_of(values)).redo
    assert redo.tolist() == [False, True, False]


def test_negative_zeros_are_zeros_and_not_negative() -> None:
    values = rows(1)
    values[0, :100], values[0, 100:300] = -0.0, 0.0
    moments = row_moments(sums_of(values)).partials
    assert moments.n_zero[0] == 300
    assert moments.n_negative[0] == np.count_nonzero(values < 0)


@pytest.mark.parametrize("columns", [256, 8192])
def test_a_row_over_fifty_octaves_is_fitted_or_marked(columns: int) -> None:
    values = np.tile(np.asarray([2.0**-120, -(2.0**55)], np.float32), (1, columns // 2))
    fits = compiled_row_fits()(values.view(np.uint32), dtype="float32")
    moments = row_moments(sums_of(values), columns)
    for redo, kurtosis in (
        (fits.redo[0], float(fits.excess_kurtosis[0])),
        (moments.redo[0], moments.partials.total().excess_kurtosis),
    ):
        assert redo or kurtosis == pytest.approx(-2, abs=1e-4)  # of two values; the squares of w are in range


def test_power_of_two_scaling_moves_the_pivot_and_no_other_bit() -> None:
    values = rows(8)
    a, b = (row_moments(sums_of(v)).partials for v in (values, values * np.float32(2.0**-9)))
    for name in ("m2", "m3", "m4", "n_zero", "n_negative"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_allclose(a.mean - b.mean, 9 * np.log(2), rtol=0, atol=1e-14)


def test_jit_equals_eager_within_rounding() -> None:
    bits = jnp.asarray(rows(2).view(np.uint32))
    eager, compiled = row_sums(bits, dtype="float32"), compiled_row_sums()(bits, dtype="float32")
    for name in ("pivot", "n_zero", "n_negative", "min_bits", "max_bits"):
        np.testing.assert_array_equal(getattr(eager, name), getattr(compiled, name))
    for name in ("s1", "s2", "s3", "s4", "u1", "u2"):
        np.testing.assert_allclose(getattr(eager, name), getattr(compiled, name), rtol=2e-5)


COUNTING: dict[str, Callable[..., Any]] = {
    "rows": pattern_counts,
    "sorted": pattern_counts_sorted,
    "scattered": pattern_counts_scattered,
    "one-hot bfloat16": partial(pattern_counts_one_hot, operand="bfloat16"),
    "one-hot int8": partial(pattern_counts_one_hot, operand="int8"),
    "Pallas": partial(pattern_counts_pallas, interpret=True),
}
N_ROWS, N_COLS = 11, 128


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 3 and programs of 2 rows, neither of which divides N_ROWS."""
    monkeypatch.setattr(_bithist, "ONE_HOT_VALUES", 3 * N_COLS)
    monkeypatch.setattr(_bithist_pallas, "PROGRAM_VALUES", 2 * N_COLS)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize(
    ("dtype", "n_bits"), [(np.uint8, 8), (np.uint16, 8), (np.uint16, 16), (np.uint32, 8), (np.uint32, 16)]
)
def test_every_way_of_counting_is_exact(name: str, dtype: type, n_bits: int) -> None:
    bits = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (N_ROWS, N_COLS), dtype, endpoint=True)
    keys = bits >> (8 * bits.itemsize - n_bits)
    # first, since parts of Pallas that are imported at its first call have JAX trace everything again
    eager = COUNTING[name](jnp.asarray(bits), jnp.int32(1), jnp.int32(8), n_bits=n_bits)
    np.testing.assert_array_equal(eager, np.bincount(keys[1:8].ravel(), minlength=1 << n_bits))
    assert eager.dtype == np.int32
    traces = []

    def counted(bits: jax.Array, first: int, stop: int) -> jax.Array:
        traces.append(name)
        return COUNTING[name](bits, first, stop, n_bits=n_bits)

    compiled = jax.jit(counted)
    for first, stop in ((0, N_ROWS), (2, 9), (4, 5), (10, N_ROWS), (4, 4), (0, 0), (N_ROWS, N_ROWS)):
        want = np.bincount(keys[first:stop].ravel(), minlength=1 << n_bits)
        np.testing.assert_array_equal(compiled(bits, first, stop), want, f"rows {first} to {stop}")
    assert len(traces) == 1  # the bounds are values


@pytest.mark.parametrize("name", COUNTING)
def test_equal_keys_are_all_counted(name: str) -> None:
    bits = np.full((20, 8192), 0xBC12, np.uint16)  # more of one key than a product in bfloat16 or 16 bits could hold
    counts = np.asarray(jax.jit(COUNTING[name], static_argnames="n_bits")(bits, 1, 20, n_bits=8))
    assert counts[0xBC] == counts.sum() == 19 * 8192


@pytest.mark.parametrize("most", [_bithist.ONE_HOT_VALUES, _bithist_pallas.PROGRAM_VALUES])
def test_no_float32_sum_reaches_the_end_of_its_integers(most: int) -> None:
    for n_rows, n_cols in ((64, 8192), (8192, 8192), (1 << 20, 16), (3, 1 << 20), (3, 1 << 24)):
        step = _bithist.rows_within(most, n_rows, n_cols)
        assert 1 <= step <= n_rows
        assert step * n_cols <= 1 << 24
        assert step * n_cols <= most or step == 1
    with pytest.raises(ValueError, match="narrower"):
        _bithist.rows_within(most, 1, (1 << 24) + 1)


def test_pallas_refuses_columns_that_matrix_units_cannot_contract() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        pattern_counts_pallas(jnp.zeros((2, 24), jnp.uint16), jnp.int32(0), jnp.int32(2), n_bits=16)


@pytest.mark.skipif(jaxlib.version.__version_info__ > (0, 10, 2), reason="lowering compiles for the GPU at once")
@pytest.mark.parametrize(("dtype", "n_bits"), [(np.uint8, 8), (np.uint16, 16), (np.uint32, 16)])
def test_the_pallas_kernel_lowers_to_triton(dtype: type, n_bits: int) -> None:
    rows = jax.ShapeDtypeStruct((64, 8192), dtype)
    traced = jax.jit(pattern_counts_pallas, static_argnames="n_bits").trace(rows, 0, 64, n_bits=n_bits)
    assert "xla.gpu.triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize(("first", "stop"), [(0, 16), (0, 4), (3, 7), (1, 16), (5, 6), (7, 7)])
def test_jobs_together_count_every_row_once(
    dtype: type, first: int, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_counting, "JOB_KEYS", 4 * 64)  # four rows; of pairs of bytes, eight
    rows = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (16, 64), dtype, endpoint=True)
    n_bits = min(16, 8 * rows.itemsize)
    with ThreadPoolExecutor(2) as threads:
        parts = [part() for part in _counting.begin_counting(rows, first, stop, n_bits, threads)]
    keys = rows[first:stop] >> (8 * rows.itemsize - n_bits)
    np.testing.assert_array_equal(sum(parts, np.zeros(1 << n_bits)), np.bincount(keys.ravel(), minlength=1 << n_bits))
    assert len(parts) == -(-(stop - first) // (8 if dtype is np.uint8 else 4))


class ChangedScatter:
    def bind(self, *_: object, **__: object) -> None:
        raise TypeError("bind() got an unexpected keyword argument 'update_consts'")


@pytest.mark.parametrize("scatter", [None, ChangedScatter()], ids=["elsewhere", "changed"])
def test_a_jax_whose_scatter_is_another_counts_the_same(scatter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bithist, "scatter_p", scatter)
    keys = np.random.default_rng(2).integers(0, 1 << 16, 5000).astype(np.uint16)
    counts = jax.jit(lambda k, ones: pattern_counts_whole(k, ones))(keys, np.ones(5000, np.int32))  # traced anew
    np.testing.assert_array_equal(counts, np.bincount(keys, minlength=1 << 16))


def test_what_a_scatter_is_given_to_add_is_not_read() -> None:
    keys = np.random.default_rng(3).integers(0, 1 << 16, 5000).astype(np.uint16)
    counts = jax.jit(pattern_counts_whole)(keys, np.full(5000, 7, np.int32))
    np.testing.assert_array_equal(counts, np.bincount(keys, minlength=1 << 16))


def test_no_retrace_for_new_shapes() -> None:
    import teleojax as tj

    rng = np.random.default_rng(0)

    def network(sizes: list[int]) -> PackedSource:
        return PackedSource({str(n): rng.standard_normal(n).astype(np.float32) for n in sizes})

    tj.measure(network([600_000, 20_000, 9000]))
    before = compiled_row_sums()._cache_size(), compiled_pattern_counts()._cache_size()
    tj.measure(network([555_555, 21_111, 12_345, 31, 77_777, 8193]))
    assert (compiled_row_sums()._cache_size(), compiled_pattern_counts()._cache_size()) == before


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from teleojax.engine import _compile

    assert _compile._options() == _compile.CPU_OPTIONS
    known = {"xla_cpu_enable_fast_math": True}
    monkeypatch.setattr(_compile, "CPU_OPTIONS", {**known, "xla_cpu_no_such_option": True})
    _compile._options.cache_clear()
    assert _compile._options() == known
    _compile._options.cache_clear()
