"""Laws of the game that hold for any utilities and shares: signs, concavity, symmetries, ascent."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teleojax.teleo._density import density_distance
from teleojax.teleo._equilibrium import equilibrium, potential, potential_gap, utility_spread
from teleojax.teleo._flow import utility_flow
from teleojax.teleo._games import logit_dynamics, replicator
from teleojax.teleo._utility import effective_utility, lognormal_parameters, utility_parameters

few = settings(max_examples=25, deadline=None, derandomize=True)
TIMES = np.array([0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 30.0])


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@st.composite
def games(draw):
    """Shares, some of them zero or tiny, utilities over a few or many nats, and γ."""
    m = draw(st.sampled_from([2, 3, 8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p = rng.dirichlet(np.full(m, draw(st.sampled_from([0.05, 1.0, 20.0]))))
    p[draw(st.integers(0, m - 1))] *= draw(st.sampled_from([0.0, 1e-9, 1.0, 1.0]))
    p[np.argmax(p)] += 1 - p.sum()
    u = draw(st.sampled_from([0.0, 0.1, 1.0, 20.0])) * rng.normal(size=m) + draw(st.floats(-50, 50))
    return p, u, draw(st.floats(0.1, 10.0))


@few
@given(games(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_potential_is_concave(game, share, seed):
    p, u, gamma = game
    q = np.random.default_rng(seed).dirichlet(np.ones(p.size))
    between = float(potential(share * p + (1 - share) * q, u, gamma))
    ends = share * float(potential(p, u, gamma)) + (1 - share) * float(potential(q, u, gamma))
    assert between >= ends - 1e-11 * (1 + abs(u).max() + gamma)


@few
@given(games())
def test_gap_is_what_the_potential_lacks_and_nothing_at_equilibrium_only(game):
    p, u, gamma = game
    rest = equilibrium(u, gamma)
    gap = float(potential_gap(p, u, gamma))
    scale = 1 + abs(u).max() + gamma
    assert gap >= -1e-14 * gamma
    assert gap == pytest.approx(float(rest.potential - potential(p, u, gamma)), abs=1e-12 * scale)
    assert abs(float(potential_gap(rest.p, u, gamma))) < 1e-13 * scale
    # Pinsker: a gap of nothing leaves no room for other shares
    assert gap / gamma >= 0.5 * np.abs(p - np.asarray(rest.p)).sum() ** 2 - 1e-13


@few
@given(games())
def test_all_utilities_are_equal_at_equilibrium(game):
    _, u, gamma = game
    rest = equilibrium(u, gamma)
    h = u - gamma * np.asarray(rest.log_p)
    scale = 1 + abs(u).max()
    np.testing.assert_allclose(h, float(rest.h_star(1)), rtol=0, atol=1e-13 * scale)
    spread = utility_spread(h, rest.p)
    assert max(float(spread.sd), float(spread.high - spread.low)) < 1e-12 * scale


@few
@given(games(), st.floats(-5, 5), st.floats(0.2, 5), st.integers(0, 2**32 - 1))
def test_origin_scale_and_order_of_categories(game, shift, stretch, seed):
    p, u, gamma = game
    rest, scale = equilibrium(u, gamma), 1 + abs(u).max() + gamma
    moved = equilibrium(u + shift, gamma)
    np.testing.assert_allclose(moved.p, rest.p, rtol=1e-10, atol=1e-14)
    assert float(moved.potential - rest.potential) == pytest.approx(shift, abs=1e-12 * scale)
    np.testing.assert_allclose(equilibrium(stretch * u, stretch * gamma).p, rest.p, rtol=1e-10, atol=1e-14)
    order = np.random.default_rng(seed).permutation(u.size)
    np.testing.assert_allclose(equilibrium(u[order], gamma).p, rest.p[order], rtol=1e-12)
    one, other = utility_spread(u, p), utility_spread(u[order], 1000 * p[order])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert float(a) == pytest.approx(float(b), abs=1e-9 * scale)


@few
@given(games(), st.floats(-20, 20))
def test_an_empty_category_changes_nothing(game, h):
    p, u, gamma = game
    wider_p, wider_u = np.append(p, 0.0), np.append(u, h)
    assert float(potential(wider_p, wider_u, gamma)) == pytest.approx(float(potential(p, u, gamma)), abs=1e-11)
    one, other = utility_spread(u, p), utility_spread(wider_u, wider_p)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert float(a) == pytest.approx(float(b), abs=1e-10)
    path = replicator(wider_p, wider_u, TIMES, gamma=gamma)
    assert (np.asarray(path.p[:, -1]) == 0).all()
    np.testing.assert_allclose(path.p[:, :-1], replicator(p, u, TIMES, gamma=gamma).p, rtol=0, atol=1e-13)


@few
@given(games())
def test_dynamics_never_lower_the_potential_and_arrive(game):
    p, u, gamma = game
    rest = equilibrium(u, gamma)
    scale = 1 + abs(u).max() + gamma
    for path in (replicator(p, u, TIMES, gamma=gamma), logit_dynamics(p, u, TIMES, gamma=gamma)):
        assert (np.diff(path.potential) >= -1e-12 * scale).all()
        np.testing.assert_allclose(path.p.sum(axis=1), 1, rtol=0, atol=1e-12)
        np.testing.assert_allclose(path.p[0], p, rtol=0, atol=1e-15)
        assert (np.asarray(path.potential) <= float(rest.potential) + 1e-12 * scale).all()
    np.testing.assert_allclose(logit_dynamics(p, u, 40.0, gamma=gamma).p, rest.p, rtol=0, atol=1e-12)
    if (p > 0).all():
        np.testing.assert_allclose(replicator(p, u, 60 / gamma, gamma=gamma).p, rest.p, rtol=0, atol=1e-12)


@few
@given(games(), st.floats(0, 3), st.floats(0, 3))
def test_a_path_may_be_interrupted(game, first, second):
    p, u, gamma = game
    for dynamics in (replicator, logit_dynamics):
        whole = dynamics(p, u, first + second, gamma=gamma).p
        parts = dynamics(dynamics(p, u, first, gamma=gamma).p, u, second, gamma=gamma).p
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-11)


@few
@given(games())
def test_replicator_integrated_is_the_closed_form(game):
    p, u, gamma = game
    times = np.array([0.0, 0.3, 1.0, 2.5]) / gamma
    exact = replicator(p, u, times, gamma=gamma)
    numeric = replicator(p, u, times, gamma=gamma, method="runge-kutta", n_steps=150)
    np.testing.assert_allclose(numeric.p, exact.p, rtol=0, atol=1e-8)
    np.testing.assert_allclose(numeric.potential, exact.potential, rtol=0, atol=1e-8 * (1 + abs(u).max() + gamma))


@few
@given(games(), st.integers(1, 10**6))
def test_counts_and_shares_differ_by_the_size_of_the_layer(game, n):
    p, _, gamma = game
    x = np.exp(np.linspace(-2, 1, p.size))
    by_share = effective_utility(p, x, 0.5, 0.3, gamma=gamma)
    by_count = effective_utility(n * p, x, 0.5, 0.3, gamma=gamma)
    held = np.asarray(by_share.occupied)
    np.testing.assert_allclose((by_share.h - by_count.h)[held], gamma * np.log(n), rtol=0, atol=1e-11 * (1 + gamma))
    assert np.isfinite(by_count.h).all()
    mean = float(utility_spread(by_share.h, p).mean)
    assert mean == pytest.approx(float(potential(p, by_share.benefit - by_share.cost, gamma)), abs=1e-10 * (1 + gamma))


@few
@given(st.floats(-20, 20), st.floats(1e-3, 1e3), st.floats(0.1, 10), st.sampled_from(["dx", "dlnx"]))
def test_conversions_go_round(mu, sigma, gamma, measure):
    law = utility_parameters(mu, sigma, gamma=gamma, measure=measure)
    other = law.to_measure("dx" if measure == "dlnx" else "dlnx")
    back = lognormal_parameters(other.alpha, other.beta, gamma=gamma, measure=other.measure)
    assert back.sigma == pytest.approx(sigma, rel=1e-12)
    # α = γ (μ/σ² − 1) has lost what is small beside 1 when σ is large
    assert back.mu == pytest.approx(mu, rel=1e-12, abs=1e-14 * (1 + sigma**2))
    assert other.h_star(1000) == pytest.approx(law.h_star(1000), rel=1e-9, abs=1e-9)


@few
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(-3, 3), st.floats(0.3, 3), st.sampled_from([0.5, 1.0, 3.0])
)
def test_log_sobolev_bounds_the_gap_by_the_gradient(seed, heaps, mu, sigma, gamma):
    """Any mixture of normal laws of y against any lognormal: gap ≤ ½ σ² · fisher/γ."""
    rng = np.random.default_rng(seed)
    centres, widths, weights = rng.normal(size=heaps), rng.uniform(0.2, 1, heaps), rng.dirichlet(np.ones(heaps))
    y = np.linspace(-12, 12, 2401)
    z = (y - centres[:, None]) / widths[:, None]
    each = weights[:, None] / widths[:, None] / np.sqrt(2 * np.pi) * np.exp(-0.5 * z**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_density, score = np.log(each.sum(0)), (-z / widths[:, None] * each).sum(0) / each.sum(0)
    got = density_distance(y, log_density, mu, sigma, gamma=gamma, score=score)
    assert 0 <= float(got.gap_nats) <= 0.5 * sigma**2 * float(got.fisher) / gamma * (1 + 1e-9)
    assert float(got.utility.low) <= float(got.utility.high)
    assert float(got.mass) == pytest.approx(1, abs=1e-9)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.3, 2), st.floats(0, 3), st.floats(0, 3))
def test_the_flow_keeps_order_and_units(seed, mu, sigma, t, shift):
    """Values move without overtaking; shifting all of them with the equilibrium changes nothing else."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([rng.normal(size=150), 3 + 0.1 * rng.normal(size=50)])
    moved = np.asarray(utility_flow(y, mu, sigma, t, n_bins=256))
    assert (np.diff(moved[np.argsort(y)]) >= -1e-9).all()
    there = np.asarray(utility_flow(2 * y + shift, 2 * mu + shift, 2 * sigma, 4 * t, n_bins=256))
    np.testing.assert_allclose(there, 2 * moved + shift, rtol=0, atol=1e-5)
    np.testing.assert_allclose(utility_flow(y, mu, sigma, 0.0, n_bins=256), y, rtol=0, atol=1e-6)
