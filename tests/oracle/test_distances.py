"""KS, Wasserstein-1 and probability-plot R² against SciPy on the raw values."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

import teleojax as tj
from teleojax.diagnose import lognormal_distances

HALFNORMAL_GAP = 0.0963524  # sup|F − F_lognormal| of a half-normal and its MLE lognormal


def numbers(x: np.ndarray, mu: float, sigma: float) -> tuple[float, float, float]:
    y = np.sort(np.log(x.astype(np.float64)))
    n = len(y)
    ks = stats.kstest(y, stats.norm(mu, sigma).cdf).statistic
    grid = mu + sigma * stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    w1 = stats.wasserstein_distance(y, grid)
    mid = (stats.rankdata(y) - 0.5) / n
    return ks, w1, np.corrcoef(y, stats.norm.ppf(mid))[0, 1] ** 2


@pytest.mark.parametrize(
    ("dtype", "n", "ks_tolerance", "w1_tolerance"),
    [
        (np.float32, 5000, 1e-12, 1e-5),  # every value kept
        (ml_dtypes.bfloat16, 50_000, 1e-12, 1e-5),  # ties by the hundred
        (np.float16, 50_000, 1e-12, 1e-5),
        (np.float32, 50_000, 1e-3, 1e-4),  # cells: the gap is known at their edges
    ],
)
def test_distances_match_scipy(dtype: type, n: int, ks_tolerance: float, w1_tolerance: float) -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(n) * 0.02).astype(dtype)
    values = values[values != 0]
    stats_ = tj.measure({"w": values})["w"]
    mu, sigma = stats_.moments.mean, stats_.moments.sigma
    got = lognormal_distances(stats_.histogram, mu, sigma)
    ks, w1, r2 = numbers(values, mu, sigma)
    assert got.ks == pytest.approx(ks, abs=ks_tolerance)
    assert got.w1_log == pytest.approx(w1, abs=w1_tolerance)
    assert got.r2 == pytest.approx(r2, abs=1e-4)


def test_sup_gap_of_a_large_halfnormal_is_the_limit() -> None:
    values = (np.random.default_rng(0).standard_normal(4_000_000) * 0.02).astype(np.float32)
    fit = tj.fit({"w": values})["w"]
    assert fit.lognormal is not None
    assert fit.lognormal.ks == pytest.approx(HALFNORMAL_GAP, abs=1e-3)


def test_ks_of_exact_lognormal_data_is_small() -> None:
    values = np.exp(np.random.default_rng(0).standard_normal(1_000_000)).astype(np.float32)
    fit = tj.fit({"w": values})["w"]
    assert fit.lognormal is not None
    assert fit.lognormal.ks < 1.5 / math.sqrt(len(values))
    assert fit.lognormal.r2 > 0.99999
