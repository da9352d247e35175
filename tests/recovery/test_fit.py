"""Simulate, fit through the public verb, and land where the theory says. Seeds are fixed."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

import teleojax as tj

HALFNORMAL_SIGMA, HALFNORMAL_KL = 1.1107207, 0.1629749
EXPONENTIAL_KL = 0.090573


def fit_one(values: np.ndarray) -> tj.TensorFit:
    return tj.fit({"w": values})["w"]


def lognormal_of(values: np.ndarray) -> tj.LognormalFit:
    fit = fit_one(values).lognormal
    assert fit is not None
    return fit


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_million_halfnormal_values(dtype: type) -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(dtype)
    result = fit_one(values)
    fit = result.lognormal
    assert fit is not None
    assert fit.sigma == pytest.approx(HALFNORMAL_SIGMA, abs=0.003)
    assert fit.mu == pytest.approx(-(np.euler_gamma + math.log(2)) / 2, abs=0.005)
    assert fit.kl_nats == pytest.approx(0.1630, abs=0.002)
    assert result.best_family == "halfnormal"
    assert result.delta_nats == pytest.approx(HALFNORMAL_KL, abs=0.003)  # the likelihood gain is the same divergence
    assert result.moments is not None
    assert result.moments.skew == pytest.approx(-1.5351416, abs=0.02)


def test_a_million_exponential_values() -> None:
    values = np.random.default_rng(0).exponential(0.02, 1_000_000).astype(np.float32)
    assert lognormal_of(values).kl_nats == pytest.approx(EXPONENTIAL_KL, abs=0.002)


@pytest.mark.parametrize(("n", "limit"), [(10**4, 0.002), (10**6, 0.0005)])
def test_lognormal_layers_are_at_equilibrium(n: int, limit: float) -> None:
    gaps = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        values = np.exp(-4 + rng.standard_normal(n, dtype=np.float32))
        gaps.append(lognormal_of(values).kl_nats)
    assert abs(np.mean(gaps)) <= limit


def test_interval_of_the_gap_covers_its_true_value() -> None:
    tensors = {str(seed): np.random.default_rng(seed).standard_normal(10_000, dtype=np.float32) for seed in range(200)}
    fits = [r.lognormal for r in tj.fit(tensors).values()]
    covered = [abs(f.kl_nats - HALFNORMAL_KL) <= 1.96 * f.kl_se for f in fits if f is not None]
    assert len(covered) == 200
    assert 0.90 <= np.mean(covered) <= 0.99


def test_standard_errors_of_mu_and_sigma_cover() -> None:
    tensors = {
        str(seed): np.exp(0.5 + 0.7 * np.random.default_rng(seed).standard_normal(2000)).astype(np.float32)
        for seed in range(300)
    }
    fits = [r.lognormal for r in tj.fit(tensors).values()]
    mu = np.mean([abs(f.mu - 0.5) <= 1.96 * f.mu_se for f in fits if f is not None])
    sigma = np.mean([abs(f.sigma - 0.7) <= 1.96 * f.sigma_se for f in fits if f is not None])
    assert 0.91 <= mu <= 0.98  # binomial SD is 0.0126: three of them each side of 0.95
    assert 0.91 <= sigma <= 0.98


@pytest.mark.parametrize("n", [10_000, 300_000])
def test_scaling_moves_mu_by_its_log_and_nothing_else(n: int) -> None:
    values = np.random.default_rng(1).standard_normal(n, dtype=np.float32)
    base = lognormal_of(values)
    for power in (-20, -1, 7):
        moved = lognormal_of(values * np.float32(2.0**power))
        assert moved.mu - base.mu == pytest.approx(power * math.log(2), abs=1e-9)
        assert moved.sigma == pytest.approx(base.sigma, rel=1e-12)
        assert moved.kl_nats == pytest.approx(base.kl_nats, abs=1e-6)
    for c in (0.0137, 1.7, 300.3):
        moved = lognormal_of(values * np.float32(c))
        assert moved.mu - base.mu == pytest.approx(math.log(c), abs=1e-6)
        assert moved.kl_nats == pytest.approx(base.kl_nats, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1])
def test_the_storage_grid_is_not_taken_for_the_law(sigma: float) -> None:
    """A layer narrower than a few steps of bfloat16 is a handful of atoms, and still lognormal as far as they tell."""
    values = np.exp(sigma * np.random.default_rng(0).standard_normal(300_000)).astype(ml_dtypes.bfloat16)
    assert lognormal_of(values).kl_nats < 0.001


def test_float8_halfnormal() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(ml_dtypes.float8_e5m2)
    assert lognormal_of(values).kl_nats == pytest.approx(HALFNORMAL_KL, abs=0.003)


def test_log_sobolev_bounds_the_gap() -> None:
    rng = np.random.default_rng(0)
    samples = {
        "normal": rng.standard_normal(50_000),
        "t3": rng.standard_t(3, 50_000),
        "uniform": rng.uniform(0.01, 1, 50_000),
        "mixture": np.where(rng.random(50_000) < 0.5, rng.normal(0, 0.01, 50_000), rng.normal(0, 1, 50_000)),
    }
    for result in tj.fit({k: v.astype(np.float32) for k, v in samples.items()}).values():
        fit = result.lognormal
        assert fit is not None
        assert 0 <= fit.kl_nats <= fit.sigma**2 / 2 * fit.fisher * (1 + 1e-6)


def test_moment_expansion_agrees_for_small_departures() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal(1_000_000)
    result = fit_one(np.exp(0.3 * (z + 0.03 * (z**2 - 1))).astype(np.float32))
    moments, fit = result.moments, result.lognormal
    assert moments is not None
    assert fit is not None
    assert fit.kl_nats == pytest.approx(moments.skew**2 / 12 + moments.excess_kurtosis**2 / 48, rel=0.15)


def test_groups_are_merges() -> None:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.mlp.up_proj.weight": rng.normal(0, 0.02, 30_000).astype(np.float32) for i in range(3)}
    tensors["layers.0.self_attn.q_proj.weight"] = rng.normal(0, 0.5, 9000).astype(np.float32)
    report = tj.fit(tensors)
    groups = report.group_by("role")
    assert set(groups) == {"q", "up"}
    whole = np.concatenate([v for k, v in tensors.items() if "up_proj" in k])
    alone = fit_one(whole)
    assert groups["up"].tensors == 3
    assert groups["up"].lognormal is not None
    assert alone.lognormal is not None
    for name in ("mu", "sigma", "kl_nats", "ks", "h_star"):
        assert getattr(groups["up"].lognormal, name) == pytest.approx(getattr(alone.lognormal, name), rel=1e-6)
    assert set(report.group_by("depth")) == {"0", "1", "2"}
    assert report.group_by("model")["pytree"].size == sum(v.size for v in tensors.values())
