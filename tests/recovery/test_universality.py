"""Are layers alike? Closed forms, size under the null, and the spread that was put in. Seeds are fixed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

import teleojax as tj
from teleojax.diagnose._universality import Heterogeneity, universality


def of_mu(mu, se) -> Heterogeneity:
    mu, se = np.asarray(mu, float), np.asarray(se, float)
    return universality(mu, se, np.ones(len(mu)), np.full(len(mu), 0.1)).mu


def test_three_layers_by_hand() -> None:
    """t = 1, 2, 4 with s = 1, ½, 1: w = 1, 4, 1."""
    got = of_mu([1, 2, 4], [1, 0.5, 1])
    assert (got.n, got.n_left_out, got.dof) == (3, 0, 2)
    assert got.mean == pytest.approx(13 / 6)
    assert got.mean_se == pytest.approx(1 / math.sqrt(6))
    assert got.plain_mean == pytest.approx(7 / 3)
    assert got.spread == pytest.approx(math.sqrt(7 / 3))
    assert got.sampling_se == pytest.approx(5 / 6)
    q = (7 / 6) ** 2 + 4 * (1 / 6) ** 2 + (11 / 6) ** 2
    assert got.q == pytest.approx(q)
    assert got.p_value == pytest.approx(math.exp(-q / 2))  # two degrees of freedom
    assert got.i2 == pytest.approx(1 - 2 / q)
    assert got.tau == pytest.approx(math.sqrt((q - 2) / (6 - 18 / 6)))


def test_equal_layers_have_no_heterogeneity() -> None:
    got = of_mu([-4.0, -4.0, -4.0], [0.01, 0.02, 0.03])
    assert (got.q, got.i2, got.tau, got.p_value, got.spread) == (0, 0, 0, 1, 0)


def test_mu_and_sigma_are_told_apart() -> None:
    got = universality(np.asarray([1.0, 9.0]), np.full(2, 0.1), np.asarray([2.0, 2.0]), np.full(2, 0.1))
    assert got.mu.p_value < 1e-9
    assert got.sigma.p_value == 1
    assert got.sigma.mean == 2
    assert got.scaled_mu is None


def test_shift_and_scale() -> None:
    rng = np.random.default_rng(0)
    t, s = rng.standard_normal(20), rng.uniform(0.1, 1, 20)
    here, there = of_mu(t, s), of_mu(1e3 * t + 5e6, 1e3 * s)
    for name in ("spread", "sampling_se", "mean_se", "tau"):
        assert getattr(there, name) == pytest.approx(1e3 * getattr(here, name), rel=1e-6)
    for name in ("q", "i2", "p_value"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=1e-6)
    assert there.mean == pytest.approx(1e3 * here.mean + 5e6, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_extreme_units_do_not_overflow(unit: float) -> None:
    got = of_mu(np.asarray([1, 2, 4]) * unit, np.asarray([1, 0.5, 1]) * unit)
    assert got.mean == pytest.approx(13 / 6 * unit)
    assert got.tau == pytest.approx(of_mu([1, 2, 4], [1, 0.5, 1]).tau * unit)


def test_layers_without_an_estimate_are_left_out_and_counted() -> None:
    nan, inf = math.nan, math.inf
    got = of_mu([1, nan, 2, 3, 5, 4], [1, 1, 0.5, 0, inf, 1])
    want = of_mu([1, 2, 4], [1, 0.5, 1])
    assert got == dataclasses.replace(want, n_left_out=3)


def test_one_layer_and_none() -> None:
    one = of_mu([-3.0], [0.1])
    assert (one.n, one.mean, one.plain_mean, one.sampling_se, one.mean_se, one.dof) == (1, -3.0, -3.0, 0.1, 0.1, 0)
    assert all(math.isnan(getattr(one, name)) for name in ("spread", "q", "p_value", "i2", "tau"))
    none = of_mu([], [])
    assert (none.n, none.n_left_out, none.dof) == (0, 0, 0)
    assert all(math.isnan(v) for k, v in dataclasses.asdict(none).items() if k not in ("n", "n_left_out", "dof"))


def test_lengths_must_agree() -> None:
    with pytest.raises(tj.UsageError, match="3 sigma"):
        universality(np.ones(2), np.ones(2), np.ones(3), np.ones(2))
    with pytest.raises(tj.UsageError, match="1 fan_in"):
        universality(np.ones(2), np.ones(2), np.ones(2), np.ones(2), fan_in=np.ones(1))


def test_p_is_uniform_where_layers_are_the_same() -> None:
    """400 networks of 30 layers. Each bound fails less than one set of seeds in a thousand."""
    rng = np.random.default_rng(0)
    p, q = [], []
    for _ in range(400):
        se = rng.uniform(0.01, 0.2, 30)
        got = of_mu(-4 + se * rng.standard_normal(30), se)
        p.append(got.p_value)
        q.append(got.q)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert abs(np.mean(q) - 29) < 3.3 * math.sqrt(2 * 29 / 400)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_the_spread_between_layers_is_recovered(tau: float) -> None:
    """tau² is unbiased up to its truncation at 0; I² is its share of the spread where errors are equal."""
    rng = np.random.default_rng(1)
    squares, shares = [], []
    for _ in range(400):
        se = np.full(50, 0.1)
        got = of_mu(tau * rng.standard_normal(50) + se * rng.standard_normal(50), se)
        squares.append(got.tau**2)
        shares.append(got.i2)
    sd = (tau**2 + 0.01) * math.sqrt(2 / 49)
    assert abs(np.mean(squares) - tau**2) < 4 * sd / 20 + (0.1 * sd if tau < 0.1 else 0)
    assert np.median(shares) == pytest.approx(tau**2 / (tau**2 + 0.01), abs=0.05)


def test_layers_initialised_by_fan_in_agree_once_scaled() -> None:
    """N(0, 2/fan_in): mu falls with ½ ln fan_in, scaled_mu is the same; so is sigma, π/√8."""
    fan_in = np.asarray([64, 128, 256, 512, 1024, 2048])
    rng = np.random.default_rng(4)
    tensors = {str(f): rng.standard_normal((f, 81_920 // f)) * math.sqrt(2 / f) for f in fan_in}
    moments = [tj.measure(tensors)[str(f)].moments for f in fan_in]
    n, mu, sigma = (np.asarray([getattr(m, name) for m in moments]) for name in ("n", "mean", "sigma"))
    kurtosis = 4.0  # of ln|w|, in excess: the error of sigma is √(1 + kurtosis/2) of a lognormal's
    got = universality(mu, sigma / np.sqrt(n), sigma, sigma * np.sqrt((1 + kurtosis / 2) / (2 * n)), fan_in=fan_in)
    assert got.mu.p_value < 1e-12
    assert got.mu.i2 > 0.99
    assert got.mu.tau == pytest.approx(np.std(0.5 * np.log(fan_in), ddof=1), rel=0.05)
    assert got.scaled_mu is not None
    assert got.scaled_mu.p_value > 1e-3
    assert got.scaled_mu.mean == pytest.approx(0.5 * math.log(2) - (np.euler_gamma + math.log(2)) / 2, abs=0.01)
    assert got.sigma.p_value > 1e-3
    assert got.sigma.mean == pytest.approx(math.pi / math.sqrt(8), abs=0.01)


def test_a_layer_without_fan_in_is_left_out_of_scaled_mu_alone() -> None:
    t, s = np.asarray([-1.0, -2.0, -3.0]), np.full(3, 0.1)
    got = universality(t, s, t, s, fan_in=np.asarray([math.e**2, 0, math.nan]))
    assert got.mu.n == 3
    assert got.scaled_mu is not None
    assert (got.scaled_mu.n, got.scaled_mu.n_left_out) == (1, 2)
    assert got.scaled_mu.mean == pytest.approx(0.0)
