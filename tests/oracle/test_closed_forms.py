"""Maximum likelihood of the families that have it in closed form, against SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from teleojax import UsageError
from teleojax.families import FAMILIES
from teleojax.fits import FamilyFit, families_by_name, maximum_likelihood
from teleojax.stats import TensorStats, careful_moments

TWINS = [  # family, parameters, SciPy's frozen distribution
    ("lognormal", {"mu": -4.0, "sigma": 1.1}, stats.lognorm(1.1, scale=math.exp(-4.0))),
    ("lognormal", {"mu": 2.0, "sigma": 0.03}, stats.lognorm(0.03, scale=math.exp(2.0))),
    ("halfnormal", {"scale": 0.02}, stats.halfnorm(scale=0.02)),
    ("halfnormal", {"scale": 3.0}, stats.halfnorm(scale=3.0)),
    ("exponential", {"scale": 0.02}, stats.expon(scale=0.02)),
]
LEVEL_ONE_SE = 0.6826894921370859
IDS = [f"{name}{tuple(p.values())}" for name, p, _ in TWINS]


def fit_moments(name: str, values: np.ndarray) -> FamilyFit:
    (fits,) = maximum_likelihood([FAMILIES[name]], [TensorStats(careful_moments(values), None)])
    return fits[name]


@pytest.mark.parametrize(("name", "params", "twin"), TWINS, ids=IDS)
def test_estimate_is_scipys_maximum_of_likelihood(name: str, params: dict, twin: stats.rv_continuous) -> None:
    family = FAMILIES[name]
    x = family.sample(np.random.default_rng(0), params, 4000)
    fit = fit_moments(name, x)
    generator = getattr(stats, twin.dist.name)
    *shape, _, scale = generator.fit(x, floc=0)
    want = [math.log(scale), *shape] if name == "lognormal" else [scale]
    np.testing.assert_allclose(list(fit.params.values()), want, rtol=1e-7)
    loglik = float(np.sum(generator(*shape, scale=scale).logpdf(x)))
    assert fit.loglik_per_value * 4000 == pytest.approx(loglik, rel=1e-9)
    k = len(family.parameters)
    assert fit.aic == pytest.approx(2 * k - 2 * loglik)
    assert fit.bic == pytest.approx(k * math.log(4000) - 2 * loglik)
    for i, parameter in enumerate(fit.params):
        theta = np.asarray(list(fit.params.values()))
        step = 1e-4 * np.eye(k)[i] * max(abs(theta[i]), 1)

        def at(theta: np.ndarray) -> float:
            return float(np.sum(family.logpdf(x, dict(zip(fit.params, theta, strict=True)))))

        curvature = (at(theta + step) - 2 * at(theta) + at(theta - step)) / step[i] ** 2
        assert fit.se[parameter] == pytest.approx((-curvature) ** -0.5, rel=1e-4)  # off the diagonal it is 0 here


def test_intervals() -> None:
    fit = FamilyFit("weibull", {"shape": 1.2, "scale": 0.5}, 0.0, 0.0, 0.0, "ok", 10, {"shape": 0.12, "scale": 0.1})
    low, high = fit.interval("shape", level=LEVEL_ONE_SE)
    assert (low, high) == pytest.approx((1.2 * math.exp(-0.1), 1.2 * math.exp(0.1)))
    assert fit.interval("shape", kind="jackknife") == pytest.approx((math.nan, math.nan), nan_ok=True)
    real = FamilyFit("lognormal", {"mu": -4.0, "sigma": 1.0}, 0.0, 0.0, 0.0, "ok", 10, {"mu": 0.1, "sigma": 0.1})
    assert real.interval("mu", level=LEVEL_ONE_SE) == pytest.approx((-4.1, -3.9))
    falling = FamilyFit("gengamma", {"a": 1.0, "c": -2.0, "scale": 1.0}, 0.0, 0.0, 0.0, "ok", 10, {"c": 0.2})
    assert falling.interval("c", level=LEVEL_ONE_SE) == pytest.approx((-2 * math.exp(0.1), -2 * math.exp(-0.1)))
    with pytest.raises(UsageError, match="between 0 and 1"):
        fit.interval("shape", level=95)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.5], [0.5, -0.5]], ids=["none", "zeros", "one", "equal"])
def test_no_maximum_is_a_status(values: list[float]) -> None:
    fit = fit_moments("lognormal", np.asarray(values))
    assert fit.status == "degenerate"
    assert fit.params == {}
    assert math.isnan(fit.loglik_per_value)


def test_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'gaussian'.*lognormal, halfnormal"):
        families_by_name(["lognormal", "gaussian"])


def test_parameters_are_attributes_and_copies_survive() -> None:
    import copy
    import pickle

    fit = FamilyFit("halfnormal", {"scale": 2.0}, -1.0, 1.0, 1.0, "ok")
    assert fit.scale == 2.0
    assert copy.copy(fit) == pickle.loads(pickle.dumps(fit)) == fit
    with pytest.raises(AttributeError, match="halfnormal has no 'mu'"):
        _ = fit.mu
