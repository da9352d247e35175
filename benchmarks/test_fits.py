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
from teleojax.fits import families_by_name, maximum_likelihood

WEIBULL_MLE = (1.262757, 0.855417 * 0.02)  # of |N(0, 0.02)|: shape, scale
SCIPY_EVERY = 50
SCIPY_FAMILIES = {
    "weibull": "weibull_min", "gamma": "gamma", "halfgennorm": "halfgennorm", "loglogistic": "fisk",
    "invgauss": "invgauss", "exponential": "expon",
}  # fmt: skip
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
    """From statistics alone: maximum likelihood of every family, and everything that `fit` says besides.

    Speeds are values times families: SciPy, which reads the values, fits six families to every 50th tensor.
    """
    tensors = split_unevenly(weights(FITTED * FITTED_SIZE, dtype), FITTED)
    expected = [log_moments(tensor) for tensor in tensors.values()]
    measured = tj.measure(tensors)
    families = families_by_name(["all"])
    n_values = sum(t.size for t in tensors.values()) * len(families)

    def logliks(fits: Any) -> list[float]:
        return [fit["weibull"].loglik_per_value for fit in fits]

    alone = maximum_likelihood(families, list(measured.values()))
    some = [np.abs(t.astype(np.float64)) for t in list(tensors.values())[::SCIPY_EVERY]]
    some = [x[x > 0] for x in some]
    scipy_expected = [[fits[name].loglik_per_value for name in SCIPY_FAMILIES] for fits in alone[::SCIPY_EVERY]]
    contestants = [
        Contestant(
            SUBJECT, lambda: maximum_likelihood(families, list(measured.values())), logliks(alone), n_values, 0,
            logliks, 1e-9, note=f"{len(families)} families by maximum likelihood",
        ),
        Contestant(
            "teleojax fit", partial(tj.fit, measured, families=["all"]), expected, n_values, 0, lognormals,
            note="and density, distances and checks of every family",
        ),
        Contestant(
            "SciPy fit", lambda: [scipy_logliks(x) for x in some], scipy_expected,
            sum(x.size for x in some) * len(SCIPY_FAMILIES), 0, rtol=1e-2,  # its simplex stops early
            note=f"floc=0, {len(SCIPY_FAMILIES)} families, every {SCIPY_EVERY}th tensor",
        ),
    ]  # fmt: skip
    race(f"fit {FITTED} tensors, all families", contestants, dtype=dtype, bound_by_memory=False)


def scipy_logliks(x: np.ndarray) -> list[float]:
    """Mean log-likelihood of each of SCIPY_FAMILIES where SciPy's maximisation ends, location fixed at 0."""
    from scipy import stats

    found = []
    for name in SCIPY_FAMILIES.values():
        generator = getattr(stats, name)
        found.append(float(np.mean(generator.logpdf(x, *generator.fit(x, floc=0)))))
    return found


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
