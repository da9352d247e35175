"""The penalised log-density finds known laws again: KL, its error bar, utility spread, gradient and score.

Counts are drawn as multinomials from exact bin probabilities wherever that equals drawing the values; seeds are fixed.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from scipy import integrate, special, stats

from teleojax.diagnose._bspline import PiecewiseCubic
from teleojax.diagnose._density import LogDensity, penalised_log_density

LN2 = np.log(2.0)
KL_HALF_NORMAL, KL_EXPONENTIAL = 0.1629749, 0.0905730


def _tails(family):
    return lambda y: (family.cdf(np.exp(y)), family.sf(np.exp(y)))


HALF_NORMAL = _tails(stats.halfnorm)
EXPONENTIAL = _tails(stats.expon)
WEIBULL = _tails(stats.weibull_min(0.7))


def lognormal(mu, sigma):
    return lambda y: (special.ndtr((y - mu) / sigma), special.ndtr((mu - y) / sigma))


def mixture(y):
    z = (y[..., None] - np.array([-4.0, -1.0])) / np.array([0.5, 0.7])
    return special.ndtr(z) @ np.array([0.6, 0.4]), special.ndtr(-z) @ np.array([0.6, 0.4])


def octave_edges(low, high, max_bins=512):
    """Edges of k equal bins of |w| in each octave [2^e, 2^(e+1)), k the largest power of two that max_bins allows."""
    first, last = int(np.floor(low / LN2)), int(np.floor(high / LN2))
    for k in (128, 64, 32, 16, 8, 4, 2, 1):
        within = np.log1p(np.arange(k) / k)
        edges = np.append((LN2 * np.arange(first, last + 1)[:, None] + within).ravel(), LN2 * (last + 1))
        start, stop = np.searchsorted(edges, low, "right") - 1, np.searchsorted(edges, high, "right")
        if stop - start <= max_bins:
            return edges[start : stop + 1]
    raise AssertionError("float32 has 277 octaves")


def even_edges(y, mu, sigma, width=0.05):
    """Edges uniform in (y − mu)/sigma, as used for small tensors."""
    low, high = np.floor((y.min() - mu) / sigma / width), np.floor((y.max() - mu) / sigma / width)
    return mu + sigma * width * np.arange(low, high + 2)


def bin_values(y, *, even=False):
    mu, sigma = y.mean(), y.std()
    edges = even_edges(y, mu, sigma) if even else octave_edges(y.min(), y.max())
    counts, _ = np.histogram(y, edges)
    assert counts.sum() == y.size
    return edges, counts, mu, sigma


def draw(tails, n, rng):
    """Counts of n values in octave bins, with moments of y from cells of 128 an octave."""
    fine = LN2 * (np.arange(-60 * 128, 24 * 128 + 1) // 128) + np.log1p(
        (np.arange(-60 * 128, 24 * 128 + 1) % 128) / 128
    )
    lower, upper = tails(fine)
    p = np.where(lower[1:] < 0.5, np.diff(lower), -np.diff(upper))
    counts = rng.multinomial(n, p / p.sum())
    middle = 0.5 * (fine[1:] + fine[:-1])
    mu = counts @ middle / n
    sigma = np.sqrt(counts @ (middle - mu) ** 2 / n)
    occupied = np.flatnonzero(counts)
    edges = octave_edges(middle[occupied[0]], middle[occupied[-1]])
    binned, _ = np.histogram(middle, edges, weights=counts)
    assert binned.sum() == n
    return edges, binned.astype(np.int64), mu, sigma


def estimate(binned) -> list[LogDensity]:
    edges, counts, mu, sigma = zip(*binned, strict=True)
    return penalised_log_density(list(edges), list(counts), np.array(mu), np.array(sigma))


def repeat(tails, n, seeds, seed=0):
    rng = np.random.default_rng(seed)
    fits = estimate([draw(tails, n, rng) for _ in range(seeds)])
    assert {fit.status for fit in fits} == {"ok"}
    return fits


def kls(fits):
    return np.array([fit.kl_nats for fit in fits])


def errors(fits):
    return np.array([fit.kl_se for fit in fits])


def test_half_normal_gap_at_a_million():
    kl = kls(repeat(HALF_NORMAL, 10**6, 40))
    assert abs(kl.mean() - KL_HALF_NORMAL) < 4 * 0.00073 / np.sqrt(40)
    assert np.sqrt(np.mean((kl - KL_HALF_NORMAL) ** 2)) < 0.001


@pytest.mark.parametrize(("mu", "sigma"), [(-4, 1), (0, 0.3), (-3, 2)])
@pytest.mark.parametrize(("n", "limit"), [(10**4, 1e-4), (10**6, 2e-6)])
def test_a_lognormal_is_at_equilibrium(mu, sigma, n, limit):
    fits = repeat(lognormal(mu, sigma), n, 50)
    assert 0 <= kls(fits).mean() < limit
    assert np.median([fit.edf for fit in fits]) < 3.2
    for fit in fits:
        assert abs(fit.log_mean - mu) < 5 * sigma / np.sqrt(n)
        assert abs(fit.log_sd - sigma) < 5 * sigma / np.sqrt(2 * n)
        assert fit.kl_nats < 4 * fit.kl_se


@pytest.mark.parametrize(("tails", "truth"), [(HALF_NORMAL, KL_HALF_NORMAL), (EXPONENTIAL, KL_EXPONENTIAL)])
def test_error_bars_cover(tails, truth):
    fits = repeat(tails, 10**4, 200, seed=1)
    inside = np.abs(kls(fits) - truth) <= 1.96 * errors(fits)
    assert 0.90 <= inside.mean() <= 0.99  # outside once in 1,300 tries if the true rate is 95%
    assert abs(kls(fits).mean() - truth) < 0.25 * errors(fits).mean()
    assert errors(fits).mean() == pytest.approx(kls(fits).std(), rel=0.2)  # an SD of 200 is good to 5%


@pytest.mark.parametrize("tails", [EXPONENTIAL, WEIBULL])
def test_exponential_and_weibull_share_their_gap(tails):
    kl = kls(repeat(tails, 10**6, 20))
    assert abs(kl.mean() - KL_EXPONENTIAL) < 4 * 0.00053 / np.sqrt(20)


def test_counts_beyond_32_bits():
    fits = repeat(HALF_NORMAL, 10**10, 4)
    np.testing.assert_allclose(kls(fits), KL_HALF_NORMAL, atol=4e-5)


@pytest.mark.parametrize("law", ["half-normal", "t3"])
@pytest.mark.parametrize("n", [10**4, 10**5])
def test_scaling_the_weights_changes_nothing(law, n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=n) if law == "half-normal" else rng.standard_t(3, size=n)
    y = np.log(np.abs(x))
    shifts = np.append(0.0, rng.uniform(-5, 5, 6))
    powers_of_two = LN2 * np.array([0, -7, 1, 20])
    even = kls(estimate([bin_values(y + shift, even=True) for shift in shifts]))
    assert np.ptp(even) < 1e-5
    assert np.ptp(kls(estimate([bin_values(y + shift) for shift in powers_of_two]))) < 1e-6
    octave = estimate([bin_values(y + shift) for shift in shifts])  # bins cut the sample in other places
    assert np.ptp(kls(octave)) < 0.1 * octave[0].kl_se


@pytest.mark.parametrize(
    ("tails", "score"),
    [
        (HALF_NORMAL, lambda y: 1 - np.exp(2 * y)),
        (EXPONENTIAL, lambda y: 1 - np.exp(y)),
        (WEIBULL, lambda y: 0.7 * (1 - np.exp(0.7 * y))),
    ],
)
def test_score_over_the_central_98_percent(tails, score):
    fits = repeat(tails, 10**6, 12)
    grid = np.linspace(-12, 5, 20_001)
    lower, upper = tails(grid)
    middle, p = 0.5 * (grid[1:] + grid[:-1]), np.where(lower[1:] < 0.5, np.diff(lower), -np.diff(upper))
    p = p * ((lower[1:] > 0.01) & (upper[1:] > 0.01))
    truth = score(middle)
    error = [np.sqrt(p @ (fit.score(middle) - truth) ** 2 / (p @ truth**2)) for fit in fits]
    assert np.mean(error) < 0.025
    assert np.max(error) < 0.04


def test_utility_of_a_half_normal_layer():
    def log_density(y):
        return y - 0.5 * np.exp(2 * y) + 0.5 * np.log(2 / np.pi)

    mu, variance = -0.5 * (np.euler_gamma + LN2), np.pi**2 / 8

    def expect(g):
        return integrate.quad(lambda y: np.exp(log_density(y)) * g(y), -40, 3, limit=200)[0]

    def utility(y):
        return -(log_density(y) + (y - mu) ** 2 / (2 * variance) + 0.5 * np.log(2 * np.pi * variance))

    mean = expect(utility)
    dispersion = np.sqrt(expect(lambda y: (utility(y) - mean) ** 2))
    fisher = expect(lambda y: ((y - mu) / variance + 1 - np.exp(2 * y)) ** 2)
    values = np.log(stats.halfnorm.ppf((np.arange(10**6) + 0.5) / 10**6))
    low, high = np.quantile(utility(values) - mean, [0.05, 0.95])
    fits = repeat(HALF_NORMAL, 10**6, 10)
    assert mean == pytest.approx(-KL_HALF_NORMAL, abs=1e-6)
    assert np.mean([fit.dispersion for fit in fits]) == pytest.approx(dispersion, rel=0.01)
    assert np.mean([fit.fisher for fit in fits]) == pytest.approx(fisher, rel=0.01)
    assert np.mean([fit.utility_low for fit in fits]) == pytest.approx(low, abs=0.004)
    assert np.mean([fit.utility_high for fit in fits]) == pytest.approx(high, abs=0.01)
    grid = np.linspace(-4, 1, 50)
    np.testing.assert_allclose(fits[0].log_density(grid), log_density(grid), atol=0.05)


def test_two_heaps_of_weights():
    fits = repeat(mixture, 10**5, 20)

    def density(y):
        return 0.6 * stats.norm.pdf(y, -4, 0.5) + 0.4 * stats.norm.pdf(y, -1, 0.7)

    mu = 0.6 * -4 + 0.4 * -1
    variance = 0.6 * (0.25 + (mu + 4) ** 2) + 0.4 * (0.49 + (mu + 1) ** 2)
    entropy = -integrate.quad(lambda y: density(y) * np.log(density(y)), -8, 4, points=[-4, -1])[0]
    truth = 0.5 * np.log(2 * np.pi * np.e * variance) - entropy
    assert abs(kls(fits).mean() - truth) < 4 * errors(fits).mean() / np.sqrt(20)
    assert np.std(kls(fits)) == pytest.approx(errors(fits).mean(), rel=0.5)
    grid = np.linspace(-5.5, 0.5, 601)
    for fit in fits:
        crossings = grid[:-1][np.diff(np.sign(fit.score(grid))) != 0]
        assert crossings.size == 3
        np.testing.assert_allclose(crossings[[0, 2]], [-4, -1], atol=0.1)


def test_storage_of_few_bits_does_not_show():
    rng = np.random.default_rng(2)
    x = np.abs(0.02 * rng.normal(size=10**6)).astype(np.float32)
    stored = x.astype(ml_dtypes.bfloat16)
    pattern = stored.view(np.uint16)
    values = np.arange(pattern.min() - 1, pattern.max() + 2, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(float)
    edges = np.log(0.5 * (values[1:] + values[:-1]))
    edges = np.append(edges[:-1][::8], edges[-1])  # no finer than the cells, and their edges
    y, rounded = np.log(x.astype(float)), np.log(stored.astype(float))
    rounded_counts, _ = np.histogram(rounded, edges)
    exact, from_storage = estimate([bin_values(y), (edges, rounded_counts, rounded.mean(), rounded.std())])
    assert from_storage.kl_nats == pytest.approx(exact.kl_nats, abs=3e-4)
    assert from_storage.edf == pytest.approx(exact.edf, rel=0.1)


@pytest.mark.parametrize(("n", "limit"), [(10**4, 0.12), (10**6, 0.03)])
def test_outliers_leave_the_centre_alone(n, limit):
    rng = np.random.default_rng(3)
    y = np.log(np.abs(0.02 * rng.normal(size=n)))
    spoilt = np.append(y, np.full(max(n // 10**5, 1), np.log(1e-30)))
    clean, fit = estimate([bin_values(y), bin_values(spoilt)])
    assert fit.status == "ok"
    # the outlier's whole effect on KL is that of its variance on the lognormal it is compared with
    assert fit.kl_nats == pytest.approx(clean.kl_nats + np.log(spoilt.std() / y.std()), abs=5e-3)
    centre = np.quantile(y, np.linspace(0.01, 0.99, 99))
    assert np.abs(fit.log_density(centre) - clean.log_density(centre)).max() < 10 / np.sqrt(n)
    scores = fit.score(centre), clean.score(centre)
    assert np.std(scores[0] - scores[1]) < limit * np.std(scores[1])


def masses(fit, edges):
    """Probability of each bin under the estimate, by a rule far finer than the one that it was fitted with."""
    point, weight = np.polynomial.legendre.leggauss(400)
    half = 0.5 * np.diff(edges)
    y = 0.5 * (edges[1:] + edges[:-1]) + point[:, None] * half
    return weight @ np.exp(fit.log_density(y)) * half


@pytest.mark.parametrize("heaps", [6, 8])
def test_atoms_between_empty_bins_keep_their_mass(heaps):
    """The steepest of shapes: no mass may hide between the nodes of the quadrature, nor Newton's method give up."""
    edges = np.arange(-0.5, 2 * heaps - 1)
    counts = np.where(np.arange(edges.size - 1) % 2 == 0, 1000, 0)
    mu, sigma = heaps - 1.0, 2 * np.sqrt((heaps**2 - 1) / 12)
    (fit,) = estimate([(edges, counts, mu, sigma)])
    assert fit.status == "ok"
    low, high = (fit.mu + fit.sigma * z for z in fit.curve.reach)
    outside = masses(fit, np.linspace(low, edges[0], 50)).sum() + masses(fit, np.linspace(edges[-1], high, 50)).sum()
    assert masses(fit, edges).sum() + outside == pytest.approx(1, abs=1e-4)
    assert masses(fit, edges)[::2] == pytest.approx(1 / heaps, abs=0.05 / heaps)


def test_the_estimate_is_continuous_in_the_counts():
    """λ is not picked from a list: on the way from one sample to another KL moves in small steps only."""
    rng = np.random.default_rng(6)
    y = np.log(np.abs(rng.normal(size=(2, 10**4))))
    mu, sigma = y.mean(), y.std()
    edges = even_edges(y.ravel(), mu, sigma)
    first, last = (np.histogram(part, edges)[0] for part in y)
    way = np.linspace(0, 1, 201)
    fits = estimate([(edges, (1 - t) * first + t * last, mu, sigma) for t in way])
    steps = np.abs(np.diff(kls(fits)))
    assert abs(fits[0].log_lambda - fits[-1].log_lambda) > 0.1
    assert steps.max() < 3e-4
    assert np.abs(np.diff([fit.log_lambda for fit in fits])).max() < 0.2


def test_rounding_in_fractional_counts_is_no_fault():
    rng = np.random.default_rng(7)
    edges, counts, mu, sigma = draw(HALF_NORMAL, 10**6, rng)
    edges = np.concatenate((edges[0] - [2.0, 1.0], edges, edges[-1] + [1.0, 2.0]))
    counts = np.concatenate(([0, 0], counts, [0, 0]))
    noisy = counts + 1e-10 * rng.choice([-1, 1], counts.size)
    clean, fit = estimate([(edges, counts, mu, sigma), (edges, noisy, mu, sigma)])
    assert fit.status == "ok"
    assert fit.kl_nats == pytest.approx(clean.kl_nats, abs=1e-9)


def test_a_curve_that_would_rise_beyond_its_reach_is_flat_there():
    bowl = PiecewiseCubic(np.array([-1.0, 1.0]), np.array([[1.0], [-2.0], [1.0], [0.0]]), (-3.0, 4.0))  # z² itself
    z = np.array([-1e6, -3.0, -2.0, 0.5, 3.0, 4.0, 1e6])
    np.testing.assert_allclose(bowl.value(z), [9, 9, 4, 0.25, 9, 16, 16], atol=1e-12)
    np.testing.assert_allclose(bowl.slope(z), [0, -6, -4, 1, 6, 8, 0], atol=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("n", [500, 10**5])
def test_a_spike_of_equal_values(n, share):
    rng = np.random.default_rng(4)
    y = np.log(np.abs(0.02 * rng.normal(size=n)))
    y[: int(share * n)] = np.log(0.01)
    (fit,) = estimate([bin_values(y, even=n <= 8192)])
    assert fit.status == "ok"
    assert 0.1 < fit.kl_nats < 6
    assert fit.fisher > fit.kl_nats
    if share == 0.5:
        assert fit.kl_nats > 1


def test_small_samples_are_smooth_not_interpolated():
    rng = np.random.default_rng(5)
    for n in (8, 20, 100):
        fits = estimate([bin_values(rng.normal(-4, 1, n), even=True) for _ in range(50)])
        assert {fit.status for fit in fits} == {"ok"}
        assert np.mean([fit.edf for fit in fits]) < 3.6
        assert kls(fits).mean() < 0.02


def test_too_little_to_go_on():
    edges = np.linspace(-1, 1, 11)
    counts = [np.full(10, 100), np.arange(10) // 9, np.array([0, 9, 0, 0, 9, 0, 0, 9, 0, 0]), np.full(10, 100)]
    good, few, spikes, flat = penalised_log_density([edges] * 4, counts, np.zeros(4), np.array([0.6, 0.6, 0.6, 0.0]))
    assert (good.status, good.reason) == ("ok", "")
    assert [fit.status for fit in (few, spikes, flat)] == ["failed"] * 3
    assert few.reason == "too few values for a density"
    assert spikes.reason == "too few distinct values for a density"
    assert "standard deviation" in flat.reason
    for fit in (few, spikes, flat):
        assert np.isnan([fit.kl_nats, fit.kl_se, fit.dispersion, fit.fisher, fit.edf, fit.log_mean]).all()
        assert np.isnan(fit.score(edges)).all()
        assert np.isnan(fit.log_density(edges)).all()


@pytest.mark.parametrize(
    ("edges", "counts", "message"),
    [
        (np.arange(5.0), np.ones(5), "edges for"),
        (np.array([0.0, 1, 1, 2]), np.ones(3), "increasing"),
        (np.array([0.0, 1, np.inf]), np.ones(2), "increasing"),
        (np.arange(4.0), np.array([5, -1, 5]), "below 0"),
    ],
)
def test_a_callers_fault_raises(edges, counts, message):
    with pytest.raises(ValueError, match=message):
        penalised_log_density([edges], [counts], np.zeros(1), np.ones(1))


def test_lists_of_unequal_length_raise():
    with pytest.raises(ValueError, match="one of each"):
        penalised_log_density([np.arange(5.0)], [], np.zeros(1), np.ones(1))
