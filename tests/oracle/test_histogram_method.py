"""Least squares on a linear histogram against NumPy's histogram and SciPy's three-parameter curve fit."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from scipy import optimize, stats

import teleojax as tj
from teleojax.fits._histogram import HistogramFit, counts_below, histogram_fit, histogram_sensitivity, linear_counts
from teleojax.stats import BitHistogram, TensorStats, careful_moments

CONV_36, CONV_38 = (f"model_1/model/conv2d_{i}/Conv2D" for i in (36, 38))
COARSE = 5e-4  # what cells of 1/128 octave do to mu and sigma of 10⁵ values


def measured(values: np.ndarray) -> TensorStats:
    return tj.measure({"w": values})["w"]


def counted(heights: np.ndarray) -> TensorStats:
    """Statistics whose histogram of len(heights) bins, from 0 to 1, has these heights."""
    x = (np.arange(len(heights)) + 0.5) / len(heights)
    x[-1] = 1.0  # the last bin's are at the maximum, which is in it
    occupied = heights > 0
    keys = x[occupied].view(np.uint64).astype(np.int64)
    return TensorStats(careful_moments(x[occupied]), BitHistogram("float64", 0, keys, heights[occupied]))


def midpoints(bins: int) -> np.ndarray:
    return (np.arange(bins) + 0.5) / bins


def curve(x: np.ndarray, amplitude: float, mu: float, sigma: float) -> np.ndarray:
    return amplitude * stats.lognorm.pdf(x, abs(sigma), scale=np.exp(np.clip(mu, -600, 600)))  # SciPy's steps go far


def by_scipy(values: np.ndarray, bins: int) -> tuple[float, float, float, float]:
    """(amplitude, mu, sigma, R²): the best of SciPy's fits to NumPy's histogram, from 30 starts."""
    x = np.abs(values.astype(np.float64))
    heights, edges = np.histogram(x, bins=bins, range=(0, x.max()))
    middle = (edges[1:] + edges[:-1]) / 2
    best = (math.inf, np.zeros(3))
    for mu in np.log(np.mean(x)) - np.asarray([0, 0.5, 1, 2, 4, 7]):
        for sigma in (0.3, 0.7, 1.2, 2.0, 4.0):
            start = (len(x) * edges[1], mu, sigma)
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    p, _ = optimize.curve_fit(curve, middle, heights, start, xtol=1e-14, ftol=1e-14, maxfev=2000)
            except RuntimeError:
                continue
            loss = float(np.sum((heights - curve(middle, *p)) ** 2))
            best = min(best, (loss, p), key=lambda found: found[0])
    loss, (amplitude, mu, sigma) = best
    return amplitude, mu, abs(sigma), 1 - loss / float(np.sum((heights - heights.mean()) ** 2))


SAMPLES = {
    "lognormal": lambda rng: np.exp(0.5 * rng.standard_normal(6000) - 3).astype(np.float32),
    "halfnormal": lambda rng: (0.02 * rng.standard_normal(8000)).astype(np.float32),
    "bfloat16": lambda rng: (0.02 * rng.standard_normal(50_000)).astype(ml_dtypes.bfloat16),
    "t3 float16": lambda rng: rng.standard_t(3, 50_000).astype(np.float16),
    "gamma float64": lambda rng: rng.gamma(2.0, 1.0, 8000),
}


@pytest.mark.parametrize("bins", [40, 150])
@pytest.mark.parametrize("name", SAMPLES)
def test_is_scipys_least_squares_where_the_statistics_are_lossless(name: str, bins: int) -> None:
    values = SAMPLES[name](np.random.default_rng(0))
    values = values[values != 0]
    got = histogram_fit(measured(values), bins=bins)
    amplitude, mu, sigma, r2 = by_scipy(values, bins)
    assert got.status == "ok"
    assert got.r2 == pytest.approx(r2, abs=1e-9)
    assert got.mu == pytest.approx(mu, abs=2e-5)
    assert got.sigma == pytest.approx(sigma, rel=2e-5)
    assert got.amplitude == pytest.approx(amplitude, rel=2e-5)


@pytest.mark.parametrize("law", ["halfnormal", "t3"])
def test_coarse_cells_are_spread_over_the_bins(law: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(100_000) if law == "halfnormal" else rng.standard_t(3, 100_000)).astype(np.float32)
    coarse = measured(values)
    assert not coarse.histogram.lossless
    lossless = TensorStats(
        coarse.moments, BitHistogram.from_keys("float32", 0, np.abs(values).view(np.uint32).astype(np.int64))
    )
    for got, exact in zip(histogram_sensitivity(coarse), histogram_sensitivity(lossless), strict=True):
        assert exact.mu == pytest.approx(by_scipy(values, exact.bins)[1], abs=2e-5)
        assert got.mu == pytest.approx(exact.mu, abs=COARSE)
        assert got.sigma == pytest.approx(exact.sigma, abs=COARSE)
        assert got.amplitude == pytest.approx(exact.amplitude, rel=COARSE)
        assert got.r2 == pytest.approx(exact.r2, abs=2e-3)  # spreading evens out some of the sampling noise


def test_counts_are_spread_evenly_over_cells() -> None:
    lower, upper, counts = np.asarray([0.0, 2.0, 4.0]), np.asarray([1.0, 4.0, 4.0]), np.asarray([4, 2, 5])
    below = counts_below(np.asarray([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, np.inf]), lower, upper, counts)
    np.testing.assert_array_equal(below, [0, 2, 4, 4, 4, 5, 6, 11, 11])


@pytest.mark.parametrize(
    ("mu", "sigma", "bins"), [(-1.5, 0.5, 100), (-4.0, 1.8, 500), (-12.5, 4.0, 50), (1.0, 2.0, 80)]
)
def test_heights_of_a_lognormal_curve_give_it_back(mu: float, sigma: float, bins: int) -> None:
    shape = curve(midpoints(bins), 1.0, mu, sigma)
    amplitude = 1e14 / shape.max()
    got = histogram_fit(counted(np.round(amplitude * shape).astype(np.int64)), bins=bins)
    assert got.status == "ok"
    assert got.r2 == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose([got.mu, got.sigma], [mu, sigma], rtol=1e-7)
    assert got.amplitude == pytest.approx(amplitude, rel=1e-6)


def test_no_value_falls_out_of_the_bins() -> None:
    """Eighths are edges of storage cells too, so coarse counts are exact; the last bin holds the largest value."""
    values = np.append(np.random.default_rng(0).random(20_000), np.ones(300)).astype(np.float32)
    for part in (values, values[-8000:]):
        stats_ = measured(part)
        heights = linear_counts(stats_.histogram, np.linspace(0, 1, 9), stats_.moments)
        np.testing.assert_array_equal(heights, np.histogram(part, 8, (0, 1))[0])


def test_a_local_optimum_nearer_to_the_likelihood_is_passed_by() -> None:
    """A tall narrow peak and a broad body: which of them least squares follows is not where the likelihood is."""
    x = midpoints(200)
    heights = np.round(curve(x, 1e6, -3.0, 0.05) + curve(x, 3e6, -0.4, 0.3)).astype(np.int64)
    got = histogram_fit(counted(heights), bins=200)

    def loss(p: np.ndarray) -> float:
        f = curve(x, 1.0, p[0], math.exp(p[1]))
        norm = f @ f
        return float(np.sum((heights - (f * (f @ heights / norm) if norm else 0.0)) ** 2))

    best = optimize.differential_evolution(loss, [(-4, 0), (-4, 1)], seed=0, tol=1e-10)
    assert got.mu == pytest.approx(best.x[0], abs=1e-4)
    assert got.sigma == pytest.approx(math.exp(best.x[1]), rel=1e-4)
    assert abs(got.mu - measured(np.repeat(x, heights // 1000)).moments.mean) > 0.5


def test_scaling_the_weights_shifts_mu_and_stretches_the_amplitude() -> None:
    values = SAMPLES["halfnormal"](np.random.default_rng(1))
    one, eight = (histogram_fit(measured(v), bins=64) for v in (values, 8 * values))
    assert eight.mu == pytest.approx(one.mu + math.log(8), abs=1e-7)
    assert eight.sigma == pytest.approx(one.sigma, rel=1e-7)
    assert eight.amplitude == pytest.approx(8 * one.amplitude, rel=1e-7)
    assert eight.r2 == pytest.approx(one.r2, abs=1e-12)


def test_amplitude_of_a_lognormal_layer_is_the_count_times_the_bin_width() -> None:
    values = np.exp(0.4 * np.random.default_rng(0).standard_normal(200_000)).astype(np.float32)
    got = histogram_fit(measured(values), bins=200)
    assert got.amplitude == pytest.approx(len(values) * values.max() / 200, rel=0.01)
    assert got.mu == pytest.approx(0, abs=0.01)
    assert got.sigma == pytest.approx(0.4, abs=0.01)


def assert_no_parameters(got: HistogramFit, status: str) -> None:
    assert got.status == status
    assert np.isnan([got.amplitude, got.mu, got.sigma]).all()


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.5], [0.5, -0.5, 0.0], [0.1, 1.0]], ids=str)
def test_fewer_than_three_bins_are_degenerate(values: list[float]) -> None:
    got = histogram_fit(measured(np.asarray(values, np.float32)) if values else TensorStats.zero())
    assert_no_parameters(got, "degenerate")
    assert math.isnan(got.r2)
    assert got.bins == 100


def test_no_lognormal_is_best_where_a_power_law_or_more_is() -> None:
    """ln height is convex in ln x: the sum of squares falls for ever as sigma grows."""
    log_x = np.log(midpoints(100))
    heights = np.round(np.exp(14 - 1.5 * log_x + 0.2 * log_x**2 - 1.5 * math.log(200) - 6)).astype(np.int64)
    got = histogram_fit(counted(heights))
    assert_no_parameters(got, "not converged")
    slope, _ = optimize.curve_fit(lambda x, a, k: a * x**k, midpoints(100), heights, (1.0, -2.0))
    residual = heights - slope[0] * midpoints(100) ** slope[1]
    assert got.r2 == pytest.approx(1 - np.sum(residual**2) / np.sum((heights - heights.mean()) ** 2), abs=1e-7)


def test_no_lognormal_is_best_where_one_bin_alone_is() -> None:
    heights = np.zeros(50, np.int64)
    heights[[10, 30, 40, 49]] = [1000, 3, 3, 3]
    got = histogram_fit(counted(heights), bins=50)
    assert_no_parameters(got, "not converged")
    assert got.r2 == pytest.approx(1 - 27 / np.sum((heights - heights.mean()) ** 2), abs=1e-9)


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(tj.UsageError, match="bins: found 3; needed at least 4"):
        histogram_fit(measured(np.ones(5, np.float32)), bins=3)
    moments_alone = tj.measure({"w": np.ones(5, np.float32)}, histogram=False)["w"]
    with pytest.raises(tj.UsageError, match="Measure with histogram=True"):
        histogram_sensitivity(moments_alone)


def test_a_layer_of_blazepose_moves_with_its_bins(networks: dict[str, Path]) -> None:
    """The known case: R² of 0.999 and more at every number of bins, and an answer that is the binning's."""
    layer = tj.measure(networks["blazepose"], include=CONV_36)[CONV_36]
    moments = layer.moments
    assert (moments.n, moments.n_zero) == (82_944, 0)
    assert moments.mean == pytest.approx(-4.983, abs=1e-3)
    assert moments.sigma / math.sqrt(moments.n) == pytest.approx(0.006, abs=5e-4)
    fits = histogram_sensitivity(layer)
    assert [f.bins for f in fits] == [50, 100, 200, 500, 1000]
    assert {f.status for f in fits} == {"ok"}
    np.testing.assert_allclose([f.mu for f in fits], [-12.49254, -5.67564, -4.96086, -4.85997, -4.81252], atol=2e-5)
    np.testing.assert_allclose([f.sigma for f in fits], [4.02433, 2.28213, 1.83781, 1.75289, 1.80809], atol=2e-5)
    np.testing.assert_allclose([f.r2 for f in fits], [0.999773, 0.999881, 0.999835, 0.999745, 0.999356], atol=2e-6)
    values = np.repeat(layer.histogram.values(), layer.histogram.counts)
    for fit in fits[1:]:
        assert fit.mu == pytest.approx(by_scipy(values, fit.bins)[1], abs=2e-4)


def test_eight_values_of_blazepose(networks: dict[str, Path]) -> None:
    """A bias of eight numbers in 200 bins: the best curve stands on two of them, far from any smooth start."""
    name = "model_1/model/batch_normalization_83/FusedBatchNormV3"
    layer = tj.measure(networks["blazepose"])[name]
    assert layer.moments.n == 8
    got = histogram_fit(layer, bins=200)
    heights = np.histogram(layer.histogram.values(), 200, (0, layer.moments.max), weights=layer.histogram.counts * 1.0)[
        0
    ]
    x = midpoints(200) * layer.moments.max

    def loss(p: np.ndarray) -> float:
        exponent = -0.5 * ((np.log(x) - p[0]) / math.exp(p[1])) ** 2 - np.log(x)
        f = np.exp(exponent - exponent.max())
        return float(np.sum((heights - f * (f @ heights / (f @ f))) ** 2))

    best = optimize.differential_evolution(loss, [(-3, 1), (-5, 2)], seed=1, tol=1e-12, popsize=30)
    assert got.status == "ok"
    assert got.r2 == pytest.approx(1 - best.fun / np.sum((heights - heights.mean()) ** 2), abs=1e-6)


def test_another_layer_of_blazepose_has_no_least_squares_lognormal(networks: dict[str, Path]) -> None:
    """With 50 bins; with 100 there is one, and the likelihood has a maximum whatever the bins."""
    layer = tj.measure(networks["blazepose"], include=CONV_38)[CONV_38]
    assert layer.moments.mean == pytest.approx(-5.0458, abs=1e-3)
    got = histogram_fit(layer, bins=50)
    assert_no_parameters(got, "not converged")
    assert got.r2 > 0.9996
    x, heights = (
        midpoints(50),
        np.histogram(
            layer.histogram.values(), 50, (0, layer.moments.max), weights=layer.histogram.counts.astype(float)
        )[0],
    )
    quadratic, _ = optimize.curve_fit(
        lambda x, a, s, b: a * np.exp(s * np.log(x) - b * np.log(x) ** 2), x, heights, (heights[-1] + 1, -2, 0.1),
        maxfev=5000,
    )  # fmt: skip
    assert quadratic[2] < 0  # the best curve of this form has no finite sigma
    assert histogram_fit(layer, bins=100).status == "ok"
