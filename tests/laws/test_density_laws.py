"""Laws of the density estimate that hold for any data: signs, inequalities, symmetries, independence of companions."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from teleojax.diagnose._density import penalised_log_density

few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def samples(draw):
    """Counts of values of y from heaps, long tails, steps or atoms, in bins even in z, uneven, or coarse."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(20, 5000))
    shape = draw(st.sampled_from(["normal", "half-normal", "uniform", "heaps", "t", "atoms", "outlier"]))
    y = {
        "normal": lambda: rng.normal(size=n),
        "half-normal": lambda: np.log(np.abs(rng.normal(size=n))),
        "uniform": lambda: rng.uniform(size=n),
        "heaps": lambda: np.where(rng.uniform(size=n) < 0.3, rng.normal(-8, 0.5, n), rng.normal(0, 1, n)),
        "t": lambda: rng.standard_t(3, n),
        "atoms": lambda: np.round(rng.normal(size=n) * 4),
        "outlier": lambda: np.append(rng.normal(size=n), -40.0),
    }[shape]()
    y = draw(st.floats(-8, 3)) + 10.0 ** draw(st.floats(-2, 0.7)) * y
    mu, sigma = y.mean(), y.std()
    inner = {
        "even": lambda: np.arange(y.min(), y.max(), 0.05 * sigma),
        "coarse": lambda: np.arange(y.min(), y.max(), 0.4 * sigma),
        "uneven": lambda: np.sort(rng.uniform(y.min(), y.max(), 150)),
    }[draw(st.sampled_from(["even", "coarse", "uneven"]))]()
    edges = np.concatenate(([y.min() - 0.05 * sigma], inner, [y.max() + 0.05 * sigma]))
    edges = edges[np.append(True, np.diff(edges) > 1e-6 * sigma)]
    counts, _ = np.histogram(y, edges)
    assume(np.count_nonzero(counts) >= 4)
    return edges, counts, mu, sigma


def estimate(*binned):
    edges, counts, mu, sigma = zip(*binned, strict=True)
    return penalised_log_density(list(edges), list(counts), np.array(mu), np.array(sigma))


def numbers(fit):
    names = ("kl_nats", "kl_se", "dispersion", "utility_low", "utility_high", "edf", "log_lambda")
    return np.array([getattr(fit, name) for name in names] + [fit.fisher * fit.sigma**2, fit.log_sd / fit.sigma])


@few
@given(samples())
def test_gap_is_positive_and_under_the_log_sobolev_bound(binned):
    (fit,) = estimate(binned)
    assert fit.status == "ok"
    assert np.isfinite(numbers(fit)).all()
    assert 0 <= fit.kl_nats <= 0.5 * fit.log_sd**2 * fit.fisher * (1 + 1e-9)
    assert fit.utility_low <= fit.utility_high
    assert fit.dispersion >= 0
    assert fit.kl_se > 0
    assert fit.edf > 2.9


@few
@given(samples())
def test_density_integrates_to_one_and_its_numbers_are_its_own(binned):
    (fit,) = estimate(binned)
    low, high = (fit.mu + fit.sigma * z for z in fit.curve.reach)
    knots = fit.mu + fit.sigma * fit.curve.knots
    breaks = np.unique(np.concatenate((np.linspace(low, high, 3000), knots, binned[0])))
    point, weight = np.polynomial.legendre.leggauss(6)
    half = 0.5 * np.diff(breaks)
    y = 0.5 * (breaks[1:] + breaks[:-1]) + point[:, None] * half
    p = weight[:, None] * half * np.exp(fit.log_density(y))
    assert abs(p.sum() - 1) < 2e-5
    mean = (p * y).sum()
    assert abs(mean - fit.log_mean) < 1e-3 * fit.sigma
    assert abs(np.sqrt((p * (y - mean) ** 2).sum()) / fit.log_sd - 1) < 1e-3
    scaled = (y - fit.log_mean) / fit.log_sd
    utility = -fit.log_density(y) - 0.5 * scaled**2 - 0.5 * np.log(2 * np.pi) - np.log(fit.log_sd)
    gap = -(p * utility).sum()
    np.testing.assert_allclose(fit.kl_nats, gap, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fit.dispersion, np.sqrt((p * (utility + gap) ** 2).sum()), rtol=2e-3, atol=1e-4)
    fisher = (p * (scaled / fit.log_sd + fit.score(y)) ** 2).sum()
    np.testing.assert_allclose(fit.fisher * fit.sigma**2, fisher * fit.sigma**2, rtol=5e-3, atol=1e-4)


@few
@given(samples())
def test_score_is_the_slope_of_the_log_density_and_the_tails_stay_finite(binned):
    (fit,) = estimate(binned)
    y = np.linspace(fit.mu - 3 * fit.sigma, fit.mu + 3 * fit.sigma, 101)
    step = 1e-5 * fit.sigma
    slope = (fit.log_density(y + step) - fit.log_density(y - step)) / (2 * step)
    np.testing.assert_allclose(fit.score(y), slope, rtol=1e-3, atol=1e-3 * (1 + np.abs(slope).max()) / fit.sigma)
    far = fit.mu + fit.sigma * np.array([-1e6, -1e3, 1e3, 1e6])
    assert np.isfinite(fit.log_density(far)).all()
    assert (fit.log_density(far) < 0).all()
    assert (fit.score(far) * np.array([1, 1, -1, -1]) >= 0).all()


@few
@given(samples(), st.integers(-40, 40), st.sampled_from([0.25, 2.0, 64.0]))
def test_units_do_not_matter(binned, shift, stretch):
    """|w| → c·|w|^k moves and stretches y; nothing measured in units of sigma may notice."""
    edges, counts, mu, sigma = binned
    moved = (edges * stretch + shift, counts, mu * stretch + shift, sigma * stretch)
    here, there = estimate(binned, moved)
    np.testing.assert_allclose(numbers(here), numbers(there), rtol=1e-3, atol=1e-5)


@few
@given(st.lists(samples(), min_size=2, max_size=5))
def test_a_batch_is_its_tensors_one_by_one(batch):
    for together, (alone,) in zip(estimate(*batch), (estimate(binned) for binned in batch), strict=True):
        np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-9, atol=1e-12)


@few
@given(samples(), st.integers(1, 5), st.integers(1, 5))
def test_empty_bins_outside_the_data_change_nothing(binned, before, after):
    edges, counts, mu, sigma = binned
    padded = np.concatenate((edges[0] - np.arange(before, 0, -1.0), edges, edges[-1] + np.arange(1.0, after + 1)))
    zeros = np.concatenate((np.zeros(before, np.int64), counts, np.zeros(after, np.int64)))
    here, there = estimate(binned, (padded, zeros, mu, sigma))
    np.testing.assert_array_equal(numbers(here), numbers(there))


@few
@given(samples(), st.integers(2, 5))
def test_more_of_the_same_data_is_fitted_no_more_smoothly(binned, times):
    edges, counts, mu, sigma = binned
    once, more = estimate(binned, (edges, counts * times, mu, sigma))
    assert more.edf >= once.edf - 0.05
