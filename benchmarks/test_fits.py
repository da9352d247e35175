"""From statistics to fitted records: many tensors side by side, and one array from its values on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Runner, Sizes
from peers import SAMPLE, Peer, entrants, npm_weibull, powerlaw_lognormal

import teleojax as tj
from teleojax.bench import SUBJECT, Contestant, log_moments, weights
from teleojax.bench._contestants import scipy_contestant
from teleojax.bench._data import split_unevenly
from teleojax.bench._suite import FITTED, FITTED_SIZE, fit_contestants

WEIBULL_MLE = (1.262757, 0.855417 * 0.02)  # of |N(0, 0.02)|: shape, scale
ONE_ARRAY = (
    Peer("powerlaw lognormal", "powerlaw", powerlaw_lognormal),
    Peer("npm-weibull-py", "npm_weibull", npm_weibull),
)


def lognormals(report: tj.Report) -> list[tuple[float, float]]:
    return [(r.lognormal.mu, r.lognormal.sigma) for r in report.values()]


def test_fit_300_tensors(race: Runner) -> None:
    contestants = fit_contestants(split_unevenly(weights(FITTED * FITTED_SIZE), FITTED))
    race(f"fit {FITTED} tensors", contestants, dtype="float32", bound_by_memory=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fit_300_tensors_with_all_families(dtype: str, race: Runner) -> None:
    tensors = split_unevenly(weights(FITTED * FITTED_SIZE, dtype), FITTED)
    expected = [log_moments(tensor) for tensor in tensors.values()]
    measured = tj.measure(tensors)
    make = partial(Contestant, expected=expected, n_values=0, n_bytes=0, answer=lognormals)
    contestants = [
        make(SUBJECT, partial(tj.fit, measured, families=tuple(tj.FAMILIES)), note=f"{len(tj.FAMILIES)} families"),
        make("teleojax, lognormal", partial(tj.fit, measured, families=()), note="and its distances"),
    ]
    race(f"fit {FITTED} tensors, all families", contestants, dtype=dtype, bound_by_memory=False)


def test_fit_a_million_values(race: Runner, sizes: Sizes) -> None:
    values = weights(SAMPLE)
    expected = log_moments(values)
    name = "fit 10⁶ values, from values"
    others, absent = entrants(name, ONE_ARRAY, values, expected)
    ours = Contestant(
        SUBJECT, partial(tj.fit, values), [expected], values.size, values.nbytes, lognormals,
        note="measured and fitted: lognormal, half-normal, distance from equilibrium",
    )  # fmt: skip
    contestants = [ours, scipy_contestant(values, expected), scipy_weibull(values[: SAMPLE // 10]), *others]
    race(name, contestants, dtype="float32", bound_by_memory=False, absent=absent, rounds=min(3, sizes.rounds))


def scipy_weibull(values: np.ndarray) -> Contestant:
    """SciPy's Weibull by maximum likelihood, location fixed at 0: no closed form."""
    from scipy import stats

    x = np.abs(values.astype(np.float64))

    def run() -> Any:
        shape, _, scale = stats.weibull_min.fit(x, floc=0)
        return shape, scale

    note = f"a sample of {len(values):,}"
    return Contestant("SciPy weibull_min.fit", run, WEIBULL_MLE, x.size, x.nbytes, rtol=2e-2, note=note)
