"""Maximum likelihood of the families that have it in closed form, against SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from teleojax.families import FAMILIES
from teleojax.fits import FamilyFit, families_by_name, maximum_likelihood
from teleojax.stats import careful_moments

TWINS = [  # family, parameters, SciPy's frozen distribution
    ("lognormal", {"mu": -4.0, "sigma": 1.1}, stats.lognorm(1.1, scale=math.exp(-4.0))),
    ("lognormal", {"mu": 2.0, "sigma": 0.03}, stats.lognorm(0.03, scale=math.exp(2.0))),
    ("halfnormal", {"scale": 0.02}, stats.halfnorm(scale=0.02)),
    ("halfnormal", {"scale": 3.0}, stats.halfnorm(scale=3.0)),
]
IDS = [f"{name}{tuple(p.values())}" for name, p, _ in TWINS]


@pytest.mark.parametrize(("name", "params", "twin"), TWINS, ids=IDS)
def test_estimate_is_scipys_maximum_of_likelihood(name: str, params: dict, twin: stats.rv_continuous) -> None:
    family = FAMILIES[name]
    x = family.sample(np.random.default_rng(0), params, 4000)
    fit = maximum_likelihood(family, careful_moments(x))
    generator = getattr(stats, twin.dist.name)
    *shape, _, scale = generator.fit(x, floc=0)
    want = [math.log(scale), *shape] if name == "lognormal" else [scale]
    np.testing.assert_allclose(list(fit.params.values()), want, rtol=1e-7)
    loglik = float(np.sum(generator(*shape, scale=scale).logpdf(x)))
    assert fit.loglik_per_value * 4000 == pytest.approx(loglik, rel=1e-9)
    k = len(family.parameters)
    assert fit.aic == pytest.approx(2 * k - 2 * loglik)
    assert fit.bic == pytest.approx(k * math.log(4000) - 2 * loglik)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.5], [0.5, -0.5]], ids=["none", "zeros", "one", "equal"])
def test_no_maximum_is_a_status(values: list[float]) -> None:
    fit = maximum_likelihood(FAMILIES["lognormal"], careful_moments(np.asarray(values)))
    assert fit.status == "degenerate"
    assert fit.params == {}
    assert math.isnan(fit.loglik_per_value)


def test_unknown_family_names_the_known_ones() -> None:
    from teleojax import UsageError

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
