"""`measure` on one array in memory, from a million values to as many as fit."""

from __future__ import annotations

import pytest
from conftest import Runner, Sizes

from teleojax.bench import log_moments, weights
from teleojax.bench._contestants import measure_contestants
from teleojax.bench._record import read_contestant

LARGE = 4_000_000_000  # past what 32 bits count


def measured_array(size: int, dtype: str, race: Runner, rounds: int) -> None:
    values = weights(size, dtype)
    contestants = measure_contestants(values, [log_moments(values)], size, values.nbytes)
    race(f"measure {size:.2g} values", [*contestants, read_contestant(values)], dtype=dtype, rounds=rounds)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [10**6, 10**7, 1 << 25, 1 << 28])
def test_array(size: int, dtype: str, race: Runner, sizes: Sizes) -> None:
    measured_array(size // 64 if sizes.quick else size, dtype, race, sizes.rounds)


@pytest.mark.usefixtures("only_large")
@pytest.mark.parametrize(("size", "dtype"), [(1 << 30, "float32"), (1 << 30, "bfloat16"), (LARGE, "bfloat16")])
def test_large_array(size: int, dtype: str, race: Runner, sizes: Sizes) -> None:
    measured_array(size // 64 if sizes.quick else size, dtype, race, 3)
