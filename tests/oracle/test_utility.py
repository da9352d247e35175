"""Utility parameters against quadrature and the definitions."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import teleojax as tj


@pytest.mark.parametrize(("mu", "sigma"), [(-4.0, 1.1), (0.0, 0.3), (2.0, 2.5)])
def test_conversions_invert_each_other(mu: float, sigma: float) -> None:
    utility = tj.teleo.utility_parameters(mu, sigma)
    back = tj.teleo.lognormal_parameters(utility.alpha, utility.beta)
    assert (back.mu, back.sigma) == pytest.approx((mu, sigma), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize(("mu", "sigma"), [(-4.0, 1.1), (0.0, 0.3), (2.0, 1.5)])
def test_log_z_is_the_integral(mu: float, sigma: float) -> None:
    utility = tj.teleo.utility_parameters(mu, sigma)
    # in y = ln x the integrand is exp((α + 1) y − β y²), a Gaussian about mu
    z = mpmath.quad(
        lambda y: mpmath.exp((utility.alpha + 1) * y - utility.beta * y * y),
        [mu - 12 * sigma, mu, mu + 12 * sigma],
    )
    assert utility.log_z == pytest.approx(float(mpmath.log(z)), rel=1e-12)


def test_all_categories_have_the_same_utility_at_equilibrium() -> None:
    mu, sigma, n = -3.0, 0.8, 10**6
    utility = tj.teleo.utility_parameters(mu, sigma)
    x = np.exp(np.linspace(mu - 3, mu + 3, 41))
    logpdf = tj.FAMILIES["lognormal"].logpdf(x, {"mu": mu, "sigma": sigma})
    h = utility.alpha * np.log(x) - utility.beta * np.log(x) ** 2 - logpdf - math.log(n)
    np.testing.assert_allclose(h, utility.h_star(n), rtol=0, atol=1e-10)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_spread_that_is_not_positive_is_refused(bad: float) -> None:
    with pytest.raises(tj.UsageError, match="sigma > 0"):
        tj.teleo.utility_parameters(0.0, bad)
    with pytest.raises(tj.UsageError, match="beta > 0"):
        tj.teleo.lognormal_parameters(0.0, bad)
