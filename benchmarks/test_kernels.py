"""Log moments of one long array: the fused kernel beside the memory limit and everybody else."""

from __future__ import annotations

import pytest
from conftest import Runner, Sizes
from peers import MOMENTS, entrants

from teleojax.bench import log_moments, weights
from teleojax.bench._contestants import moments_contestants, whole_calls
from teleojax.bench._record import read_contestant
from teleojax.bench._suite import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_moments(dtype: str, race: Runner, sizes: Sizes) -> None:
    values = whole_calls(weights(sizes.values, dtype))
    expected = log_moments(values)
    others, absent = entrants("log moments", MOMENTS, values, expected)
    contestants = [*moments_contestants(values, expected), *others, read_contestant(values)]
    race("log moments", contestants, dtype=dtype, absent=absent)
