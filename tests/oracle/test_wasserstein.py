"""The Wasserstein-1 distance between two histograms against SciPy's, of the raw values."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import teleojax as tj
from teleojax.diagnose import log_wasserstein

CELL = math.log1p(1 / 128)  # of ln x: the widest cell of a large float32 histogram


def drawn(law: str, n: int, seed: int, dtype: object = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = {"normal": rng.normal(0, 0.02, n), "t": 0.03 * rng.standard_t(3, n), "lognormal": rng.lognormal(-4, 1, n)}[law]
    return x.astype(dtype)


def histogram(x: np.ndarray) -> tj.BitHistogram:
    found = tj.measure({"x": x})["x"].histogram
    assert found is not None
    return found


def direct(a: np.ndarray, b: np.ndarray) -> float:
    """Zeros are in neither law."""
    return float(wasserstein_distance(*(np.log(np.abs(v[v != 0].astype(np.float64))) for v in (a, b))))


@pytest.mark.parametrize("other", ["normal", "t", "lognormal"])
@pytest.mark.parametrize("n", [1, 2, 500, 8000])
def test_exact_of_values_kept_with_all_bits(other: str, n: int) -> None:
    a, b = drawn("normal", 700, 1), drawn(other, n, 2)
    assert log_wasserstein(histogram(a), histogram(b)) == pytest.approx(direct(a, b), rel=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16"])
def test_exact_across_types(dtype: str) -> None:
    a = drawn("t", 6000, 3)
    b = a.astype(getattr(ml_dtypes, dtype, dtype))
    got = log_wasserstein(histogram(a), histogram(b))
    assert got == pytest.approx(direct(a, b), rel=1e-10)
    assert got == log_wasserstein(histogram(b), histogram(a))


def test_exact_of_quantised_integers_against_their_original() -> None:
    a = drawn("normal", 8000, 4)
    codes = np.round(a / 0.001).astype(np.int8)
    counts = np.bincount(codes.view(np.uint8), minlength=256)
    b = tj.TensorStats.from_pattern_counts("int8", counts, scale=0.001)
    assert b.histogram is not None
    values = codes[codes != 0] * 0.001
    assert log_wasserstein(histogram(a), b.histogram) == pytest.approx(direct(a, values), rel=1e-10)


@pytest.mark.parametrize(("law", "seeds"), [("t", (5, 6)), ("normal", (5, 7)), ("normal", (5, 5))])
def test_coarse_cells_are_off_by_less_than_their_width(law: str, seeds: tuple[int, int]) -> None:
    a, b = drawn("normal", 60_000, seeds[0]), drawn(law, 50_000, seeds[1])
    assert not histogram(a).lossless
    assert log_wasserstein(histogram(a), histogram(b)) == pytest.approx(direct(a, b), abs=CELL / 4)


@pytest.mark.parametrize("n", [5000, 50_000])
def test_of_itself_it_is_nothing_and_of_a_scaled_copy_the_logarithm_of_the_scale(n: int) -> None:
    x = drawn("t", n, 8)
    assert log_wasserstein(histogram(x), histogram(x)) == 0
    assert log_wasserstein(histogram(x), histogram(4 * x)) == pytest.approx(math.log(4), rel=1e-9)


def test_of_no_values_there_is_none() -> None:
    assert math.isnan(log_wasserstein(histogram(drawn("t", 9, 0)), histogram(np.zeros(9, np.float32))))
