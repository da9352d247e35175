"""A fit per row of a matrix of a million rows, beside the kernel that reads the same memory and fits it as one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conftest import Runner, Sizes
from peers import FLOAT32_SUM_RTOL

import teleojax as tj
from teleojax.bench import SUBJECT, Contestant, log_moments, weights
from teleojax.bench._contestants import kernel_contestant, whole_calls
from teleojax.bench._data import usable_cores
from teleojax.bench._record import read_contestant

WIDTH = 256
ROW_RTOL = 5e-6  # of one fit to 256 float32 values


def row_moments(matrix: np.ndarray) -> np.ndarray:
    """(means, standard deviations) of ln|w| row by row, in float64."""

    def moments(part: np.ndarray) -> np.ndarray:
        y = np.log(np.abs(part.astype(np.float64)))
        return np.stack([y.mean(axis=1), y.std(axis=1)])

    with ThreadPoolExecutor(usable_cores()) as threads:
        parts = np.array_split(matrix, max(1, len(matrix) // 4096))
        return np.concatenate(list(threads.map(moments, parts)), axis=1)


@jax.jit
def naive(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = jnp.log(jnp.abs(matrix))
    return jnp.mean(y, axis=1), jnp.std(y, axis=1)


def test_a_million_rows(race: Runner, sizes: Sizes) -> None:
    rows = 10**6 // (64 if sizes.quick else 1)
    matrix = weights(rows * WIDTH).reshape(rows, WIDTH)
    expected = row_moments(matrix)
    flat = whole_calls(matrix.reshape(-1))

    def answer(report: Any) -> tuple[np.ndarray, np.ndarray]:
        return report["array"].mu, report["array"].sigma

    def numpy_naive() -> tuple[np.ndarray, np.ndarray]:
        y = np.log(np.abs(matrix))
        return y.mean(axis=1), y.std(axis=1)

    make = partial(Contestant, expected=expected, n_values=matrix.size, n_bytes=matrix.nbytes)
    contestants = [
        make(
            SUBJECT, partial(tj.fit, matrix, axis=0), answer=answer, rtol=ROW_RTOL, note=f"{rows:,} fits, fit(axis=0)"
        ),
        replace(kernel_contestant(flat, log_moments(flat)), name="teleojax, flat", note="one fit: the kernel alone"),
        # not last before a turn of ours: the gigabyte it frees is still being unmapped then
        make("jax.numpy", lambda: jax.block_until_ready(naive(matrix)), rtol=FLOAT32_SUM_RTOL, note="one jit"),
        make("NumPy", numpy_naive, rtol=FLOAT32_SUM_RTOL, note="mean and standard deviation of every row"),
        read_contestant(matrix),
    ]
    race(f"fit every row of a matrix {WIDTH} wide", contestants, dtype="float32")
