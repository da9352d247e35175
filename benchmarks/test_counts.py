"""Exact counts of bit patterns: teleojax's threads beside the memory limit and everybody else."""

from __future__ import annotations

import pytest
from conftest import Runner, Sizes
from peers import COUNTS, entrants

from teleojax.bench import weights
from teleojax.bench._contestants import counts_contestants, whole_calls
from teleojax.bench._data import rows_of
from teleojax.bench._record import read_contestant


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
def test_exact_counts(dtype: str, race: Runner, sizes: Sizes) -> None:
    values = whole_calls(weights(sizes.values, dtype))
    ours = counts_contestants(values)
    others, absent = entrants("exact counts", COUNTS, rows_of(values), ours[0].expected)
    race("exact counts", [*ours, *others, read_contestant(values)], dtype=dtype, absent=absent)
