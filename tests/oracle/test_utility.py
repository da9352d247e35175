"""Utility, equilibrium and distance from it, against quadrature, closed forms and the definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, rel_entr

import teleojax as tj
from teleojax.teleo._density import _slope, density_distance, density_potential, relative_fisher
from teleojax.teleo._equilibrium import equilibrium, potential, potential_gap, utility_spread
from teleojax.teleo._utility import (
    connection_utility,
    effective_utility,
    lognormal_parameters,
    lognormal_utility,
    utility_parameters,
)

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
LAWS = [(-4.0, 1.1, 1.0), (0.0, 0.3, 1.0), (2.0, 1.5, 0.5), (-1.0, 0.8, 2.5)]


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def game(m: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(m)), rng.normal(size=m)


@pytest.mark.parametrize(("mu", "sigma"), [(-4.0, 1.1), (0.0, 0.3), (2.0, 2.5)])
def test_conversions_invert_each_other(mu: float, sigma: float) -> None:
    utility = tj.teleo.utility_parameters(mu, sigma)
    back = tj.teleo.lognormal_parameters(utility.alpha, utility.beta)
    assert (back.mu, back.sigma) == pytest.approx((mu, sigma), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize(("mu", "sigma", "gamma"), LAWS)
@pytest.mark.parametrize("measure", ["dx", "dlnx"])
def test_measures_hold_the_same_law(mu: float, sigma: float, gamma: float, measure: str) -> None:
    utility = utility_parameters(mu, sigma, gamma=gamma, measure=measure)
    back = lognormal_parameters(utility.alpha, utility.beta, gamma=gamma, measure=measure)
    assert (back.mu, back.sigma) == pytest.approx((mu, sigma), rel=1e-13, abs=1e-13)
    other = utility.to_measure("dx" if measure == "dlnx" else "dlnx")
    assert other.alpha - utility.alpha == pytest.approx(gamma if measure == "dx" else -gamma, rel=1e-12)
    assert other.log_z == pytest.approx(utility.log_z, rel=1e-12)
    assert other.to_measure(measure).alpha == pytest.approx(utility.alpha, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize(("mu", "sigma", "gamma"), LAWS)
def test_log_z_is_the_integral_in_either_measure(mu: float, sigma: float, gamma: float) -> None:
    by_x = utility_parameters(mu, sigma, gamma=gamma)
    by_log = by_x.to_measure("dlnx")
    lows, highs = mu - 12 * sigma, mu + 12 * sigma

    def of_x(x: mpmath.mpf) -> mpmath.mpf:
        y = mpmath.log(x)
        return mpmath.exp((by_x.alpha * y - by_x.beta * y * y) / gamma)

    # two different integrals over different grids, and one number
    breaks = [mpmath.exp(mu + k * sigma) for k in range(-12, 13)]
    by_dx = mpmath.log(mpmath.quad(of_x, breaks))
    by_dlnx = mpmath.log(
        mpmath.quad(lambda y: mpmath.exp((by_log.alpha * y - by_log.beta * y * y) / gamma), [lows, mu, highs])
    )
    assert by_x.log_z == pytest.approx(float(by_dx), rel=1e-11, abs=1e-11)
    assert by_log.log_z == pytest.approx(float(by_dlnx), rel=1e-11, abs=1e-11)


def test_all_categories_have_the_same_utility_at_equilibrium() -> None:
    mu, sigma, n = -3.0, 0.8, 10**6
    utility = tj.teleo.utility_parameters(mu, sigma)
    x = np.exp(np.linspace(mu - 3, mu + 3, 41))
    logpdf = tj.FAMILIES["lognormal"].logpdf(x, {"mu": mu, "sigma": sigma})
    h = utility.alpha * np.log(x) - utility.beta * np.log(x) ** 2 - logpdf - math.log(n)
    np.testing.assert_allclose(h, utility.h_star(n), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mu", "sigma", "gamma"), LAWS[1:])
@pytest.mark.parametrize("measure", ["dx", "dlnx"])
def test_connection_utility_is_h_star_under_its_own_lognormal(
    dtype: str, mu: float, sigma: float, gamma: float, measure: str
) -> None:
    n = 5000
    utility = utility_parameters(mu, sigma, gamma=gamma, measure=measure)
    y = mu + sigma * np.linspace(-2, 2, 17)
    log_density = -0.5 * ((y - mu) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    log_density -= y if measure == "dx" else 0
    h = connection_utility(np.exp(y), log_density, utility.alpha, utility.beta, n=n, gamma=gamma)
    assert h.dtype == dtype
    terms = 1 + abs(utility.alpha * y) + utility.beta * y**2 + gamma * abs(log_density + math.log(n))
    assert (abs(np.asarray(h) - utility.h_star(n)) < TOLERANCE[dtype] * terms).all()


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_effective_utility_is_its_formula_and_level_at_equilibrium(dtype: str, gamma: float) -> None:
    alpha, beta, n = -2.5, 0.8, 1_000_000
    x = np.linspace(0.05, 2, 40)
    u = alpha * np.log(x) - beta * np.log(x) ** 2
    occupancy = n * np.exp(log_softmax(u / gamma))
    got = effective_utility(occupancy, x, alpha, beta, gamma=gamma)
    tolerance = 20 * TOLERANCE[dtype]  # of terms up to 20
    np.testing.assert_allclose(got.h, u - gamma * np.log(occupancy), rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.h, gamma * (logsumexp(u / gamma) - math.log(n)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.h, equilibrium(u, gamma).h_star(n), rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.benefit - got.cost - got.competition, got.h, rtol=0, atol=tolerance)
    np.testing.assert_allclose(lognormal_utility(x, alpha, beta), u, rtol=0, atol=tolerance)
    shares = effective_utility(occupancy / n, x, alpha, beta, gamma=gamma)
    np.testing.assert_allclose(shares.h - got.h, gamma * math.log(n), rtol=0, atol=tolerance)


@pytest.mark.parametrize("measure", ["dx", "dlnx"])
def test_edges_of_any_width_give_the_utility_of_the_density(measure: str) -> None:
    mu, sigma, n = -2.0, 0.7, 10**5
    law = utility_parameters(mu, sigma, measure=measure)
    edges = np.exp(mu + sigma * np.sort(np.random.default_rng(0).uniform(-2.5, 2.5, 4000)))
    phi = np.array([math.erf((math.log(e) - mu) / sigma / math.sqrt(2)) / 2 for e in edges])
    with jax.enable_x64(True):
        got = effective_utility(n * np.diff(phi), edges, law.alpha, law.beta, measure=measure)
        np.testing.assert_allclose(got.h, law.h_star(n), rtol=0, atol=1e-4)
        # of equal width: the published formula, up to the logarithm of the width
        even = np.linspace(0, 1, 11) if measure == "dx" else np.exp(np.linspace(-2, 0, 11))
        middle = 0.5 * (even[1:] + even[:-1]) if measure == "dx" else np.sqrt(even[1:] * even[:-1])
        counts = np.arange(1, 11)
        width = 0.1 if measure == "dx" else 0.2
        by_edges = effective_utility(counts, even, law.alpha, law.beta, measure=measure)
        by_value = effective_utility(counts, middle, law.alpha, law.beta, measure=measure)
        np.testing.assert_allclose(by_edges.h - by_value.h, math.log(width), rtol=0, atol=1e-12)
        np.testing.assert_allclose(by_edges.x, middle, rtol=1e-14)


def test_counts_may_pass_32_bits() -> None:
    x = np.array([0.5, 1.0, 2.0])
    h = effective_utility(np.array([2**33, 2**31, 7]), x, 1.0, 1.0).h
    want = np.log(x) - np.log(x) ** 2 - np.log([2.0**33, 2.0**31, 7.0])
    np.testing.assert_allclose(h, want, rtol=1e-5)
    n = connection_utility(x, 0 * x, 1.0, 1.0, n=2**40) - connection_utility(x, 0 * x, 1.0, 1.0)
    np.testing.assert_allclose(n, -40 * np.log(2), rtol=1e-5)
    assert float(equilibrium(x).h_star(2**40) - equilibrium(x).h_star(1)) == pytest.approx(-40 * np.log(2), rel=1e-5)


def test_another_utility_can_be_tried() -> None:
    x, counts = np.linspace(0.1, 3, 20), np.arange(20)
    with jax.enable_x64(True):
        got = effective_utility(counts, x, benefit=jnp.sqrt, cost=lambda v: 0.3 * v, gamma=0.7)
        half = effective_utility(counts, x, 1.5, cost=lambda v: 0.3 * v)
    want = np.sqrt(x) - 0.3 * x - 0.7 * np.log(np.where(counts > 0, counts, 1))
    np.testing.assert_allclose(got.h, want, rtol=0, atol=1e-12)
    assert got.occupied.tolist() == [False, *[True] * 19]
    np.testing.assert_allclose(half.benefit, 1.5 * np.log(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.3, 4.0])
def test_gap_is_a_divergence_and_the_equilibrium_is_the_best(dtype: str, gamma: float) -> None:
    p, u = game()
    p[3], p = 0, np.r_[p[:3], 0, p[4:]] / (1 - p[3])
    rest = equilibrium(u, gamma)
    tolerance = TOLERANCE[dtype] * max(1.0, gamma)
    want = log_softmax(u / gamma)
    np.testing.assert_allclose(rest.log_p, want, rtol=0, atol=tolerance)
    assert rest.p.dtype == rest.potential.dtype == dtype
    assert float(rest.potential) == pytest.approx(gamma * logsumexp(u / gamma), abs=tolerance)
    assert float(potential(rest.p, u, gamma)) == pytest.approx(float(rest.potential), abs=tolerance)
    kl = rel_entr(p, np.exp(want)).sum()
    assert float(potential_gap(p, u, gamma)) == pytest.approx(gamma * kl, abs=tolerance)
    assert float(rest.potential - potential(p, u, gamma)) == pytest.approx(gamma * kl, abs=tolerance)
    assert abs(float(potential_gap(rest.p, u, gamma))) < tolerance


def test_stirling_limit_of_the_entropy() -> None:
    p, _ = game(4)
    n = 10**9
    counts = np.round(n * p)
    exact = (math.lgamma(counts.sum() + 1) - sum(math.lgamma(c + 1) for c in counts)) / n
    with jax.enable_x64(True):
        assert float(potential(p, np.zeros(4))) == pytest.approx(exact, abs=1e-7)


def test_spread_of_utility_over_connections() -> None:
    rng = np.random.default_rng(3)
    h, counts = rng.normal(size=30), rng.integers(0, 50, 30)
    with jax.enable_x64(True):
        got = utility_spread(h, counts)
        without = utility_spread(h[counts > 0], counts[counts > 0])
    each = np.repeat(h, counts)
    assert float(got.mean) == pytest.approx(each.mean(), abs=1e-12)
    assert float(got.sd) == pytest.approx(each.std(), abs=1e-12)
    with jax.enable_x64(True):  # the middles of 40 equal shares lie at 1/80, 3/80, …
        even = utility_spread(np.arange(40.0), np.ones(40))
    assert (float(even.low), float(even.high)) == pytest.approx((1.5, 37.5), abs=1e-12)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(without), strict=True):
        assert float(one) == pytest.approx(float(other), abs=1e-12)


def halfnormal_grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.linspace(-36, 2.6, n)
    return y, y + 0.5 * math.log(2 / math.pi) - 0.5 * np.exp(2 * y)


def test_halfnormal_gap_is_the_negentropy_of_y_at_the_fit() -> None:
    y, log_density = halfnormal_grid(6001)
    mu, variance = -(np.euler_gamma + math.log(2)) / 2, math.pi**2 / 8
    with jax.enable_x64(True):
        got = density_distance(y, log_density, mu, math.sqrt(variance))
        entropy = density_potential(y, log_density, np.zeros_like(y))
        fisher = relative_fisher(y, log_density, mu, math.sqrt(variance), score=1 - np.exp(2 * y))
    assert float(got.mass) == pytest.approx(1, abs=1e-10)
    assert float(got.gap_nats) == pytest.approx(0.162975, abs=5e-7)
    negentropy = 0.5 * math.log(2 * math.pi * math.e * variance) - float(entropy)
    assert float(got.gap_nats) == pytest.approx(negentropy, abs=1e-9)
    # E[(s + z/σ)²] = E[s²] − 1/σ² at the fit, E[(1 − x²)²] = 2 for x = e^y half-normal
    assert float(fisher) == pytest.approx(2 - 1 / variance, abs=1e-9)
    assert float(got.fisher) == pytest.approx(2 - 1 / variance, rel=1e-3)
    assert float(got.gap_nats) < 0.5 * variance * float(fisher)
    assert float(got.utility.mean) == pytest.approx(-float(got.gap_nats), abs=1e-12)


@pytest.mark.parametrize("uneven", [False, True])
def test_a_lognormal_density_is_at_equilibrium(dtype: str, uneven: bool) -> None:
    mu, sigma = -1.0, 0.8
    z = np.linspace(-6, 6, 801)
    y = mu + sigma * (z + (0.3 * np.sin(z) if uneven else 0))
    log_density = -0.5 * ((y - mu) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    got = density_distance(y, log_density, mu, sigma)
    assert got.fisher.dtype == dtype
    for number in (got.gap_nats, got.utility.sd, got.utility.low, got.utility.high):
        assert abs(float(number)) < (1e-5 if dtype == "float32" else 1e-8)
    assert float(got.fisher) < (1e-5 if dtype == "float32" else 1e-10)


def test_slope_of_a_parabola_on_an_uneven_grid_is_exact() -> None:
    y = np.sort(np.random.default_rng(4).uniform(-2, 2, 30))
    with jax.enable_x64(True):
        np.testing.assert_allclose(_slope(jnp.asarray(y), jnp.asarray(3 * y**2 - y)), 6 * y - 1, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_two_lognormals_have_closed_forms(gamma: float) -> None:
    (m, s), (mu, sigma) = (-2.2, 0.5), (-1.5, 0.9)
    y = m + s * np.linspace(-9, 9, 2001)
    log_density = -0.5 * ((y - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
    law = utility_parameters(mu, sigma, gamma=gamma, measure="dlnx")
    with jax.enable_x64(True):
        got = density_distance(y, log_density, mu, sigma, gamma=gamma)
        phi = density_potential(y, log_density, law.alpha * y - law.beta * y**2, gamma)
        # the same number in measure dx, where the grid, the density and α are others
        by_x = law.to_measure("dx")
        phi_dx = density_potential(np.exp(y), log_density - y, by_x.alpha * y - by_x.beta * y**2, gamma)
    kl = math.log(sigma / s) + (s**2 + (m - mu) ** 2) / (2 * sigma**2) - 0.5
    fisher = s**2 * (1 / s**2 - 1 / sigma**2) ** 2 + ((m - mu) / sigma**2) ** 2
    assert float(got.gap_nats) == pytest.approx(gamma * kl, abs=1e-10)
    assert float(got.fisher) == pytest.approx(gamma**2 * fisher, rel=1e-10)
    assert gamma * law.log_z - float(phi) == pytest.approx(gamma * kl, abs=1e-10)
    assert float(phi_dx) == pytest.approx(float(phi), abs=1e-4)
    # ĥ is a (y − m)² + b (y − m) + c
    a, b = gamma * (1 / s**2 - 1 / sigma**2) / 2, -gamma * (m - mu) / sigma**2
    assert float(got.utility.sd) == pytest.approx(math.sqrt(2 * a**2 * s**4 + b**2 * s**2), rel=1e-9)


def test_density_may_vanish() -> None:
    y = np.linspace(-4, 4, 2001)
    log_density = np.where(abs(y) < 1, math.log(0.5), -np.inf)
    with jax.enable_x64(True):
        got = density_distance(y, log_density, 0.0, 1.0)
        entropy = density_potential(y, log_density, np.where(abs(y) < 1, 0, -np.inf))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(got))
    assert float(got.gap_nats) == pytest.approx(0.5 * math.log(2 * math.pi) + 1 / 6 - math.log(2), abs=2e-3)
    assert float(got.fisher) == pytest.approx(1 / 3, abs=0.01)  # less the two end points
    assert float(entropy) == pytest.approx(math.log(2), abs=2e-3)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_spread_that_is_not_positive_is_refused(bad: float) -> None:
    with pytest.raises(tj.UsageError, match="sigma > 0"):
        tj.teleo.utility_parameters(0.0, bad)
    with pytest.raises(tj.UsageError, match="beta > 0"):
        tj.teleo.lognormal_parameters(0.0, bad)
    x = np.array([0.5, 1.0])
    with pytest.raises(tj.UsageError, match="beta > 0"):
        effective_utility(np.array([1, 2]), x, 1.0, bad)
    with pytest.raises(tj.UsageError, match="beta > 0"):
        lognormal_utility(x, 1.0, bad)
    for refused in (
        lambda: utility_parameters(0.0, 1.0, gamma=bad),
        lambda: lognormal_parameters(0.0, 1.0, gamma=bad),
        lambda: effective_utility(np.array([1, 2]), x, 1.0, 1.0, gamma=bad),
        lambda: equilibrium(x, bad),
        lambda: potential(x, x, bad),
        lambda: potential_gap(x, x, bad),
        lambda: density_potential(x, x, x, bad),
    ):
        with pytest.raises(tj.UsageError, match="gamma > 0"):
            refused()


def test_what_does_not_fit_is_refused_with_a_remedy() -> None:
    x = np.array([0.5, 1.0, 2.0])
    for refused, match in (
        (lambda: effective_utility(x[:2], np.ones(5), 1.0, 1.0), r"occupancy of shape \(2,\), x of shape \(5,\)"),
        (lambda: effective_utility(np.ones((2, 2)), x, 1.0, 1.0), "jax.vmap"),
        (lambda: effective_utility(np.array([1, -1, 1]), x, 1.0, 1.0), "occupancy ≥ 0"),
        (lambda: effective_utility(np.array([1, 1, 1]), np.array([0.0, 1.0, 2.0]), 1.0, 1.0), "x > 0"),
        (lambda: effective_utility(np.array([1, 1]), np.array([1.0, 0.5, 2.0]), 1.0, 1.0), "x strictly increasing"),
        (lambda: effective_utility(np.array([1, 1]), np.array([0.0, 0.5, 2.0]), 1.0, 1.0, measure="dlnx"), "x > 0"),
        (lambda: effective_utility(np.array([1, 1, 1]), x, 1.0, 1.0, measure="dy"), "'dx', 'dlnx'"),
        (lambda: effective_utility(np.array([1, 1, 1]), x, 1.0), "no beta"),
        (lambda: effective_utility(np.array([1, 1, 1]), x, beta=1.0), "no alpha"),
        (lambda: connection_utility(x, x[:2], 1.0, 1.0), "equal length"),
        (lambda: connection_utility(x, x, 1.0, 1.0, n=0), "n > 0"),
        (lambda: utility_parameters(0.0, 1.0, measure="dy"), "'dx', 'dlnx'"),
        (lambda: potential(x, x[:2]), "equal length"),
        (lambda: potential(-x, x), "p ≥ 0"),
        (lambda: potential_gap(x, np.ones(())), "one-dimensional"),
        (lambda: equilibrium(np.ones(0)), "not empty"),
        (lambda: utility_spread(x, x[:2]), "equal length"),
        (lambda: density_distance(x[:2], x[:2], 0.0, 1.0), "3 or more"),
        (lambda: density_distance(x[::-1].copy(), x, 0.0, 1.0), "strictly increasing"),
        (lambda: density_distance(x, x, 0.0, 0.0), "sigma > 0"),
    ):
        with pytest.raises(tj.UsageError, match=match):
            refused()
