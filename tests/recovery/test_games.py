"""Flow, dynamics and populations arrive where the theory says, as fast, and with its fluctuations. Seeds are fixed."""

from __future__ import annotations

import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import erf, ndtr, softmax
from scipy.stats import chi2, multinomial, norm

import teleojax as tj
from teleojax.teleo._equilibrium import Equilibrium, equilibrium, potential, utility_spread
from teleojax.teleo._flow import utility_flow
from teleojax.teleo._games import logit_dynamics, replicator
from teleojax.teleo._population import Population, simulate_population
from teleojax.teleo._utility import lognormal_utility, utility_parameters

N_AGENTS, N_CATEGORIES = 100_000, 64
MU, SIGMA = -1.2, 0.9  # where the flows go


def halfnormal_quantiles(n: int) -> np.ndarray:
    """ln x at n equally likely places of the half-normal law."""
    return np.log(norm.isf(0.5 - 0.5 * (np.arange(n) + 0.5) / n))


def normal_gap(y: np.ndarray) -> float:
    """KL(law of y ‖ N(MU, SIGMA²)) from 200 bins, less the bias of a raw estimate."""
    edges = np.linspace(y.min() - 1e-6, y.max() + 1e-6, 201)
    counts, _ = np.histogram(y, edges)
    p = counts / y.size
    z = (edges - MU) / SIGMA
    expected = np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
    held = counts > 0
    return float(np.sum(p[held] * np.log(p[held] / expected[held])) - (held.sum() - 1) / (2 * y.size))


@pytest.mark.parametrize("method", ["deterministic", "langevin"])
@pytest.mark.parametrize("start", ["normal", "half-normal"])
def test_mean_and_variance_relax_as_ornstein_and_uhlenbeck_say(method: str, start: str) -> None:
    normal = np.random.default_rng(0).standard_normal(1_000_000)
    y = (0.7 + 0.4 * normal if start == "normal" else np.log(abs(normal))).astype(np.float32)
    gap = before = normal_gap(y)
    for time in (0.1, 1.0, 3.0):
        moved = utility_flow(y, MU, SIGMA, time * SIGMA**2, method=method, key=jax.random.key(1))
        moved = np.asarray(moved, np.float64)
        a = math.exp(-time)
        mean, variance = MU + a * (y.mean(dtype=float) - MU), SIGMA**2 + a**2 * (y.var(dtype=float) - SIGMA**2)
        assert moved.mean() == pytest.approx(mean, abs=0.005 * SIGMA)
        assert moved.var() == pytest.approx(variance, rel=0.005)
        now = normal_gap(moved)
        assert now < before
        assert now <= gap * a**2 + 4 * math.sqrt(2 * gap * a**2 / y.size) + 1e-4
        before = now


def test_a_normal_ensemble_moves_by_the_affine_map() -> None:
    m, s = 0.7, 0.4
    y = m + s * norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    for time in (0.1, 1.0, 3.0):
        a = math.exp(-time)
        width = math.sqrt(SIGMA**2 + a**2 * (s**2 - SIGMA**2))
        want = MU + a * (m - MU) + width * (y - m) / s
        for density, tolerance in (("empirical", 2e-3), ("lognormal", 2e-4)):
            got = np.asarray(utility_flow(y, MU, SIGMA, time * SIGMA**2, density=density))
            assert abs(got - want)[1000:-1000].max() < tolerance * SIGMA


@pytest.mark.parametrize("n", [2, 20, 150])
def test_values_far_apart_come_to_rest_at_even_quantiles(n: int) -> None:
    rng = np.random.default_rng(n)
    y = rng.permutation(np.cumsum(rng.uniform(0.5, 1.5, n)))
    moved = np.asarray(utility_flow(y, MU, SIGMA, 40 * SIGMA**2))
    want = MU + SIGMA * norm.ppf((np.argsort(np.argsort(y)) + 0.5) / n)
    assert np.sqrt(np.mean((moved - want) ** 2)) < 0.003 * SIGMA
    assert np.unique(utility_flow(np.full(n, 0.3), MU, SIGMA, 1.0)).size == 1


@pytest.mark.parametrize("time", [0.02, 0.3, 1.0])
def test_the_flow_is_the_utility_gradient_of_the_ensemble_as_it_is(time: float) -> None:
    """From a half-normal ensemble: places by F_t⁻¹(F_0(y)), velocities by −(y − μ)/σ² − s, both from quadrature."""
    y = halfnormal_quantiles(200_000)
    t, step = time * SIGMA**2, 1e-3 * SIGMA**2
    grid, weight = np.polynomial.legendre.leggauss(400)
    grid, weight = -14 + 8 * (grid + 1), 8 * weight  # y from −14 to 2
    weight = weight * np.sqrt(2 / np.pi) * np.exp(grid - 0.5 * np.exp(2 * grid))
    a, spread = math.exp(-time), SIGMA * math.sqrt(-math.expm1(-2 * time))
    at = np.linspace(10_000, 189_999, 60).astype(int)  # the central 90%
    with jax.enable_x64(True):
        here, before, after = (
            np.asarray(utility_flow(y, MU, SIGMA, s, n_bins=512))[at] for s in (t, t - step, t + step)
        )
    z = (here[:, None] - MU - a * (grid - MU)) / spread
    np.testing.assert_allclose((weight * ndtr(z)).sum(1), erf(np.exp(y[at]) / math.sqrt(2)), rtol=0, atol=5e-4)
    density = (weight * norm.pdf(z)).sum(1) / spread
    score = -(weight * z * norm.pdf(z)).sum(1) / spread**2 / density
    velocity = (after - before) / (2 * step)
    gradient = -(here - MU) / SIGMA**2 - score
    assert np.sqrt(np.mean((velocity - gradient) ** 2)) < 0.01 * np.sqrt(np.mean(gradient**2))


def test_replicator_against_a_solver_of_its_equation() -> None:
    rng = np.random.default_rng(5)
    p0, u, gamma = rng.dirichlet(np.ones(6)), rng.normal(size=6), 0.7

    def replicate(_: float, p: np.ndarray) -> np.ndarray:
        h = u - gamma * np.log(p)
        return p * (h - p @ h)

    def respond(_: float, p: np.ndarray) -> np.ndarray:
        return softmax(u / gamma) - p

    times = np.array([0.2, 1.0, 4.0])
    with jax.enable_x64(True):
        for right, got in (
            (replicate, replicator(p0, u, times, gamma=gamma)),
            (replicate, replicator(p0, u, times, gamma=gamma, method="runge-kutta")),
            (respond, logit_dynamics(p0, u, times, gamma=gamma)),
        ):
            want = solve_ivp(right, (0, 4), p0, t_eval=times, rtol=1e-11, atol=1e-13).y.T
            np.testing.assert_allclose(got.p, want, rtol=0, atol=1e-8)
            np.testing.assert_allclose(got.potential, [float(potential(p, u, gamma)) for p in want], rtol=0, atol=1e-8)


def test_utilities_may_depend_on_the_shares() -> None:
    rng = np.random.default_rng(6)
    p0, u = rng.dirichlet(np.ones(5)), rng.normal(size=5)
    with jax.enable_x64(True):
        # crowding −ln p in the utility, and γ = 0.5 beside it, is a game of γ = 1.5
        got = replicator(p0, lambda p: jnp.asarray(u) - jnp.log(p), 2.0, gamma=0.5, method="runge-kutta")
        np.testing.assert_allclose(got.p, replicator(p0, u, 2.0, gamma=1.5).p, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def game() -> tuple[np.ndarray, Equilibrium]:
    law = utility_parameters(-3.0, 0.8)
    edges = np.linspace(0, 0.3, N_CATEGORIES + 1)
    u = np.asarray(lognormal_utility(0.5 * (edges[1:] + edges[:-1]), law.alpha, law.beta))
    return u, equilibrium(u)


@pytest.fixture(scope="module")
def run(game: tuple[np.ndarray, Equilibrium]) -> Population:
    """From the worst start: all in the least attractive category."""
    u, rest = game
    start = np.where(np.arange(N_CATEGORIES) == np.argmin(rest.p), N_AGENTS, 0)
    return simulate_population(jax.random.key(0), u, N_AGENTS, 3000, start=start, burn_in=400)


@pytest.fixture(scope="module")
def replicas(game: tuple[np.ndarray, Equilibrium]) -> Population:
    keys = jax.random.split(jax.random.key(1), 400)
    return jax.vmap(lambda key: simulate_population(key, game[0], N_AGENTS, 120))(keys)


def test_a_population_comes_to_rest(run: Population, game: tuple[np.ndarray, Equilibrium]) -> None:
    u, rest = game
    assert run.counts.dtype == jnp.int32
    assert int(run.counts.sum()) == N_AGENTS
    p = np.asarray(run.counts) / N_AGENTS
    spread = utility_spread(u - np.log(np.maximum(p, 1e-9)), p)
    assert float(run.dispersion[-1]) == pytest.approx(float(spread.sd), abs=1e-5)
    assert float(run.dispersion[-1]) <= 0.03
    assert np.mean(run.dispersion[400:]) == pytest.approx(math.sqrt((N_CATEGORIES - 1) / N_AGENTS), rel=0.05)
    assert float(run.gap[0]) > 2
    assert np.all(np.asarray(run.gap[400:]) < 2 * (N_CATEGORIES - 1) / N_AGENTS)
    np.testing.assert_allclose(run.potential + run.gap, float(rest.potential), rtol=1e-6)
    assert float(run.potential[-1]) == pytest.approx(float(potential(p, u)), abs=1e-5)


def test_shares_in_time_are_those_of_equilibrium(run: Population, game: tuple[np.ndarray, Equilibrium]) -> None:
    z = np.asarray((run.mean_shares - game[1].p) / run.mean_shares_se)
    # 64 values of Student's t on 15 degrees of freedom: one in 110 lies outside 3
    assert (abs(z) < 3).sum() >= N_CATEGORIES - 3
    assert abs(z).max() < 5
    assert np.mean(z**2) == pytest.approx(15 / 13, rel=0.4)
    np.testing.assert_allclose(run.mean_shares, game[1].p, rtol=0.02)


def test_replicas_are_multinomial_at_rest(replicas: Population, game: tuple[np.ndarray, Equilibrium]) -> None:
    p, shares = np.asarray(game[1].p, np.float64), np.asarray(replicas.counts) / N_AGENTS
    n = len(shares)
    z = (shares.mean(axis=0) - p) / np.sqrt(p * (1 - p) / N_AGENTS / n)
    assert abs(z).max() < 4
    ratio = shares.var(axis=0) / (p * (1 - p) / N_AGENTS)
    assert abs(ratio - 1).max() < 4.5 * math.sqrt(2 / n)
    # what is left of the potential is ½ χ² on m − 1 degrees of freedom, over M
    gap = np.asarray(replicas.gap[:, -1], np.float64)
    mean, sd = (N_CATEGORIES - 1) / (2 * N_AGENTS), math.sqrt((N_CATEGORIES - 1) / 2) / N_AGENTS
    assert gap.mean() == pytest.approx(mean, abs=4 * sd / math.sqrt(n))
    assert gap.std() == pytest.approx(sd, rel=4 / math.sqrt(2 * n))


def test_steps_burnt_in_are_not_averaged() -> None:
    start = np.array([1000, 0])
    options = {"start": start, "move": "single"}
    key, u = jax.random.key(0), np.zeros(2, np.float32)
    last = simulate_population(key, u, 1000, 40, burn_in=39, **options)
    np.testing.assert_allclose(last.mean_shares, last.counts / 1000, rtol=1e-6)
    assert np.isnan(last.mean_shares_se).all()
    some = simulate_population(key, u, 1000, 40, burn_in=20, **options).mean_shares
    each = [simulate_population(key, u, 1000, 40, burn_in=b, **options).mean_shares for b in (20, 21)]
    # the mean of 20 is that of the last 19 and of the one before
    first = 20 * some - 19 * each[1]
    np.testing.assert_allclose(first * 1000, np.round(first * 1000), rtol=0, atol=0.02)


@pytest.mark.parametrize(("move", "n_steps"), [("pairs", 30), ("single", 80)])
def test_the_law_at_rest_is_exact_for_a_handful(move: str, n_steps: int) -> None:
    """Every state of 5 connections in 3 categories, as often as M!/ΠM_i! · exp(Σ M_i u_i/γ) says."""
    u, gamma, n = np.array([0.0, 0.9, -0.6], np.float32), 0.7, 3000
    keys = jax.random.split(jax.random.key(2), n)
    start = np.array([0, 0, 5])
    got = jax.vmap(lambda key: simulate_population(key, u, 5, n_steps, gamma=gamma, start=start, move=move))(keys)
    states = [s for s in product(range(6), repeat=3) if sum(s) == 5]
    want = multinomial(5, softmax(u.astype(float) / gamma)).pmf(states)
    seen = np.array([(np.asarray(got.counts) == s).all(axis=1).sum() for s in states])
    assert seen.sum() == n
    pooled = n * want > 5
    rest = [(seen[~pooled].sum(), n * want[~pooled].sum())] if n * want[~pooled].sum() > 1 else []
    pairs = [*zip(seen[pooled], n * want[pooled], strict=True), *rest]
    statistic = sum((s - e) ** 2 / e for s, e in pairs)
    assert statistic < chi2.isf(1e-3, len(pairs) - 1)


def test_a_large_population_is_drawn_whole_in_parcels() -> None:
    n = 5_000_001
    u = np.array([0.0, 0.5], np.float32)
    keys = jax.random.split(jax.random.key(4), 500)
    counts = np.asarray(jax.vmap(lambda key: simulate_population(key, u, n, 1))(keys).counts, np.int64)
    assert (counts.sum(axis=1) == n).all()
    p = 1 / (1 + math.exp(-0.5))
    z = (counts[:, 1] - n * p) / math.sqrt(n * p * (1 - p))
    assert abs(z.mean()) < 4 / math.sqrt(500)
    assert np.mean(z**2) == pytest.approx(1, abs=4 * math.sqrt(2 / 500))


def test_a_bad_start_is_refused_with_a_remedy() -> None:
    key, u = jax.random.key(0), np.zeros(3, np.float32)
    y = np.array([0.0, 1.0])
    for refused, match in (
        (lambda: simulate_population(key, u, 5, 10, start=np.array([1, 1, 1])), "sum n_agents = 5"),
        (lambda: simulate_population(key, u, 5, 10, start=np.array([6, 0, -1])), "counts ≥ 0"),
        (lambda: simulate_population(key, u, 5, 10, start=np.array([5, 0])), "equal length"),
        (lambda: simulate_population(key, u, 0, 10), "n_agents = 0"),
        (lambda: simulate_population(key, u, 2**31, 10), "1 to 1073741824"),
        (lambda: simulate_population(key, u, 5, 0), "n_steps = 0"),
        (lambda: simulate_population(key, u, 5, 10, burn_in=10), "burn_in under n_steps = 10"),
        (lambda: simulate_population(key, u, 5, 10, gamma=0.0), "gamma > 0"),
        (lambda: simulate_population(key, u, 5, 10, move="all"), "'pairs', 'single'"),
        (lambda: utility_flow(y, 0.0, 0.0, 1.0), "sigma > 0"),
        (lambda: utility_flow(y, 0.0, 1.0, -1.0), "t ≥ 0"),
        (lambda: utility_flow(y, 0.0, 1.0, 1.0, method="langevin"), "key=jax.random.key"),
        (lambda: utility_flow(y, 0.0, 1.0, 1.0, method="euler"), "'deterministic', 'langevin'"),
        (lambda: utility_flow(y, 0.0, 1.0, 1.0, density="normal"), "'empirical', 'lognormal'"),
        (lambda: utility_flow(y, 0.0, 1.0, 1.0, n_bins=2), "8 or more"),
        (lambda: utility_flow(np.array([0.0, np.nan]), 0.0, 1.0, 1.0), "1 of 2"),
        (lambda: utility_flow(np.ones((2, 2)), 0.0, 1.0, 1.0), "one-dimensional"),
        (lambda: replicator(y, y, 1.0, gamma=-1.0), "gamma > 0"),
        (lambda: replicator(y, y[:1], 1.0), "equal length"),
        (lambda: replicator(0 * y, y, 1.0), "some share above 0"),
        (lambda: replicator(-y, y, 1.0), "p0 ≥ 0"),
        (lambda: replicator(y, y, np.ones((2, 2))), "row of times"),
        (lambda: replicator(y, y, -1.0), "t ≥ 0"),
        (lambda: replicator(y, lambda p: p, 1.0), "method='runge-kutta'"),
        (lambda: replicator(y, y, 1.0, method="euler"), "'exact', 'runge-kutta'"),
        (lambda: logit_dynamics(y, y, 1.0, gamma=0.0), "gamma > 0"),
    ):
        with pytest.raises(tj.UsageError, match=match):
            refused()
