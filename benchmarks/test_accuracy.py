"""How far four moments of a long float32 array are from sums in extended precision, timed as they are checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Runner, Sizes

import teleojax as tj
from teleojax.bench import SUBJECT, Contestant, weights
from teleojax.bench._contestants import jax_naive_contestant, numpy_blocked_contestant, numpy_naive_contestant
from teleojax.bench._data import CHUNK, SCALE, usable_cores
from teleojax.bench._record import read_contestant

RTOL = {"mean": 5e-9, "variance": 5e-8, "skew": 1e-6, "kurtosis": 1e-5}


def extended_moments(values: np.ndarray) -> dict[str, float]:
    """Mean, variance, skewness and kurtosis of ln|w|: float64 logarithms, sums of powers in extended precision."""
    centre = np.log(SCALE) - 0.635  # near the mean of the log of a half-normal: powers about it lose nothing

    def sums(part: np.ndarray) -> np.ndarray:
        d = np.log(np.abs(part.astype(np.float64))) - centre
        square = d * d
        return np.asarray([np.sum(x, dtype=np.longdouble) for x in (d, square, square * d, square * square)])

    with ThreadPoolExecutor(usable_cores()) as threads:
        parts = np.array_split(values, max(1, len(values) // CHUNK))
        e1, e2, e3, e4 = np.sum(list(threads.map(sums, parts)), axis=0) / len(values)
    variance = e2 - e1**2
    third = e3 - 3 * e1 * e2 + 2 * e1**3
    fourth = e4 - 4 * e1 * e3 + 6 * e1**2 * e2 - 3 * e1**4
    return {
        "mean": float(centre + e1),
        "variance": float(variance),
        "skew": float(third / variance**1.5),
        "kurtosis": float(fourth / variance**2),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [("accuracy", {}), ("accuracy, moments only", {"histogram": False})],
    ids=["with counts", "moments only"],
)
def test_moments_against_extended_precision(
    name: str, options: dict[str, Any], race: Runner, benchmark: Any, sizes: Sizes
) -> None:
    values = weights(sizes.most)
    true = extended_moments(values)
    errors: dict[str, float] = {}

    def answer(measured: tj.Measured) -> list[float]:
        m = measured["array"].moments
        found = {"mean": m.mean, "variance": m.m2 / m.n, "skew": m.skew, "kurtosis": m.excess_kurtosis + 3}
        errors.update({moment: abs(found[moment] / true[moment] - 1) for moment in true})
        return [found[moment] for moment in RTOL]

    contestants = [
        Contestant(
            SUBJECT, partial(tj.measure, values, **options), [true[moment] for moment in RTOL], values.size,
            values.nbytes, answer, tuple(RTOL.values()), "mean, variance, skewness, kurtosis",
        ),
    ]  # fmt: skip
    expected = (true["mean"], true["variance"] ** 0.5)
    contestants.append(numpy_blocked_contestant([values], [expected]))
    contestants += [make(values, expected) for make in (numpy_naive_contestant, jax_naive_contestant)]
    contestants.append(read_contestant(values))
    race(name, contestants, dtype="float32", rounds=min(3, sizes.rounds))
    benchmark.extra_info["relative_errors"] = errors
