"""The Weibull probability plot against npm-weibull, against numbers recorded from it, and against exact integrals."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import mpmath
import numpy as np
import pytest
from scipy import stats

import teleojax as tj
from teleojax.fits._probability_plot import probability_plot_fit
from teleojax.stats import BitHistogram, LogMoments, TensorStats

LAWS = {  # SciPy's quantile and distribution functions, mpmath's quantile function, k of the middle 80% to six digits
    "halfnormal": (
        stats.halfnorm.ppf,
        stats.halfnorm.cdf,
        lambda p: mpmath.sqrt(2) * mpmath.erfinv(p),
        1.205434,
    ),
    "t3": (
        lambda p: stats.t(3).ppf((1 + p) / 2),
        lambda x: 1 - 2 * stats.t(3).sf(x),
        lambda p: mpmath.findroot(
            lambda x: 2 / mpmath.pi * (mpmath.atan(x / 3**0.5) + 3**0.5 * x / (3 + x * x)) - p, p
        ),
        1.105731,
    ),
    "uniform": (stats.uniform.ppf, stats.uniform.cdf, lambda p: p, 1.375119),
}
# recorded from npm_weibull 0.4.0: k, lambda, R2, n_used of the values below; none of them within 4 float32 steps of an
# edge of its grid, so that another log10 changes nothing
SAMPLES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal float32": lambda r: (0.02 * r.standard_normal(5000)).astype(np.float32),
    "normal bfloat16": lambda r: (0.02 * r.standard_normal(100_000)).astype(ml_dtypes.bfloat16),
    "t3 float16": lambda r: r.standard_t(3, 20_000).astype(np.float16),
    "wide float32": lambda r: (200 * r.standard_normal(4000)).astype(np.float32),
    "normal float8": lambda r: r.standard_normal(20_000).astype(ml_dtypes.float8_e4m3fn),
}
RECORDED = {
    "normal float32": (1.2439416722965195, 0.01785863377779635, 0.9980799189507399, 79),
    "normal bfloat16": (1.2128746524542129, 0.01773767670882571, 0.997728260281032, 81),
    "t3 float16": (1.1153478665473597, 1.0689574669827566, 0.9997065021215805, 90),
    "wide float32": (1.4704656128848013, 59.68907288513513, 0.9845791561801709, 68),
    "normal float8": (1.2341051714191915, 0.882980750997428, 0.9973602483892231, 29),
}


def values_of(name: str) -> np.ndarray:
    return SAMPLES[name](np.random.default_rng(0))


def measured(values: np.ndarray) -> TensorStats:
    return tj.measure({"w": values})["w"]


def quantiles(law: str, n: int) -> TensorStats:
    """The n mid-rank quantiles of a law, every bit kept."""
    x = LAWS[law][0]((np.arange(n) + 0.5) / n)
    return TensorStats(LogMoments.zero(), BitHistogram.from_keys("float64", 0, x.view(np.uint64).astype(np.int64)))


def cells(law: str, n: float) -> TensorStats:
    """Expected counts of n values of a law in the cells that large float32 tensors are kept in."""
    keys = np.arange(1, 0x7F00)
    lower, upper = BitHistogram("float32", 16, keys, np.ones_like(keys)).edges()
    below = np.round(n * LAWS[law][1](np.append(lower, upper[-1]))).astype(np.int64)
    return TensorStats(LogMoments.zero(), BitHistogram.from_dense("float32", 16, np.append(0, np.diff(below))))


def integral(law: str, low: float = 0.1, high: float = 0.9) -> dict[str, float]:
    """Both regressions in the limit of many values, from moments of (ln x, ln(−ln(1 − F))), F even on the window."""
    quantile = LAWS[law][2]

    def mean(g: Callable) -> mpmath.mpf:
        points = mpmath.linspace(low, high, 5)
        total = mpmath.quad(lambda p: g(mpmath.log(quantile(p)), mpmath.log(-mpmath.log(1 - p))), points)
        return total / (high - low)

    mx, my = mean(lambda x, _: x), mean(lambda _, y: y)
    sxx, syy = mean(lambda x, _: (x - mx) ** 2), mean(lambda _, y: (y - my) ** 2)
    sxy = mean(lambda x, y: (x - mx) * (y - my))
    k = sxy / sxx
    found = {"shape": k, "scale": mpmath.exp(mx - my / k), "r2": sxy**2 / (sxx * syy), "other direction": syy / sxy}
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("law", LAWS)
def test_limit_of_many_values(law: str) -> None:
    exact = integral(law)
    assert exact["shape"] == pytest.approx(LAWS[law][3], abs=6e-7)
    if law == "halfnormal":
        assert exact["scale"] == pytest.approx(0.887487, abs=6e-7)
    got = probability_plot_fit(quantiles(law, 100_000))
    assert (got.status, got.n_used, got.n_outside) == ("ok", 80_000, 0)
    np.testing.assert_allclose(
        [got.shape, got.scale, got.r2], [exact[name] for name in ("shape", "scale", "r2")], rtol=1e-8
    )
    coarse = probability_plot_fit(cells(law, 1e12))
    assert 400 < coarse.n_used < 600
    np.testing.assert_allclose([coarse.shape, coarse.scale], [exact["shape"], exact["scale"]], rtol=1e-5)


def test_another_window_has_its_own_limit() -> None:
    exact = integral("halfnormal", 0.25, 0.6)
    got = probability_plot_fit(quantiles("halfnormal", 100_000), low=0.25, high=0.6)
    np.testing.assert_allclose([got.shape, got.scale, got.r2], [exact[n] for n in ("shape", "scale", "r2")], rtol=1e-7)
    assert abs(got.shape - LAWS["halfnormal"][3]) > 0.01


@pytest.mark.parametrize("law", LAWS)
def test_the_other_direction_is_shape_over_r2(law: str) -> None:
    got = probability_plot_fit(quantiles(law, 100_000))
    assert got.shape / got.r2 == pytest.approx(integral(law)["other direction"], rel=1e-8)
    assert got.shape / got.r2 > got.shape


@pytest.mark.parametrize(("k", "scale"), [(0.7, 0.02), (1.2, 3.0), (5.0, 1e-6)])
def test_weibull_quantiles_give_k_and_lambda_back(k: float, scale: float) -> None:
    x = stats.weibull_min.ppf((np.arange(50_000) + 0.5) / 50_000, k, scale=scale)
    histogram = BitHistogram.from_keys("float64", 0, x.view(np.uint64).astype(np.int64))
    got = probability_plot_fit(TensorStats(LogMoments.zero(), histogram))
    np.testing.assert_allclose([got.shape, got.scale, got.r2], [k, scale, 1.0], rtol=1e-9)


def test_distinct_values_are_a_plot_at_mid_ranks() -> None:
    """1,000 values, so that the window begins and ends between two of them."""
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    x = np.sort(np.abs(values.astype(np.float64)))
    mid = (np.arange(1000) + 0.5) / 1000
    body = (mid > 0.1) & (mid < 0.9)
    k, intercept = np.polyfit(np.log(x[body]), np.log(-np.log(1 - mid[body])), 1)
    got = probability_plot_fit(measured(values))
    assert got.n_used == 800
    np.testing.assert_allclose([got.shape, got.scale], [k, math.exp(-intercept / k)], rtol=1e-6)


def test_ties_weigh_as_many_values() -> None:
    """Every value thrice is the same law; the small values thrice is another."""
    x = np.abs(np.random.default_rng(0).standard_normal(2000)).astype(np.float32)
    once, thrice = probability_plot_fit(measured(x)), probability_plot_fit(measured(np.repeat(x, 3)))
    np.testing.assert_allclose([thrice.shape, thrice.scale], [once.shape, once.scale], rtol=1e-9)
    uneven = np.sort(np.concatenate([np.repeat(x[x < 0.5], 3), x]))
    got = probability_plot_fit(measured(uneven))
    rank = (stats.rankdata(uneven) - 0.5) / len(uneven)
    body = (rank >= 0.1) & (rank <= 0.9)
    k, _ = np.polyfit(np.log(uneven[body]), np.log(-np.log(1 - rank[body])), 1)
    assert got.shape == pytest.approx(k, rel=1e-3)
    assert abs(got.shape - once.shape) > 0.05


@pytest.mark.parametrize("name", SAMPLES)
def test_grid_gives_the_recorded_answers(name: str) -> None:
    got = probability_plot_fit(measured(values_of(name)), grid="npm-weibull")
    k, scale, r2, n_used = RECORDED[name]
    np.testing.assert_allclose([got.shape, got.scale, got.r2], [k, scale, r2], rtol=1e-9)
    assert (got.n_used, got.status) == (n_used, "ok")


EDGE_CASES = {
    "zeros and signs": lambda r: np.append(r.standard_normal(4000), np.zeros(2000)).astype(np.float32),
    "float64": lambda r: r.standard_normal(3000),
    "past float32": lambda r: np.append(r.standard_normal(3000), [1e300, -1e-300]),
    # of float32, 99.99998 has logarithm 2, the end itself, and 100 may have more
    "ends of the range": lambda r: np.append(
        10 ** r.uniform(1, 2, 400), np.repeat([99.99998, 100.0, 1e-12], 300)
    ).astype(np.float32),
    "ties at the ends of the window": lambda _: np.repeat(10.0 ** (0.05 * np.arange(10)), 100).astype(np.float32),
    "ninety-nine values": lambda r: r.standard_normal(99).astype(np.float32),
    "a hundred values": lambda r: r.standard_normal(100).astype(np.float32),
    "four bins": lambda _: np.repeat([0.1, 0.2, 0.3, 0.4], 100).astype(np.float32),
    "five bins": lambda _: np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], 100).astype(np.float32),
}


@pytest.mark.parametrize(("trim", "low", "high"), [("mid_80", 0.1, 0.9), ("mid_90", 0.05, 0.95), ("full_range", 0, 1)])
@pytest.mark.parametrize("name", [*SAMPLES, *EDGE_CASES])
def test_grid_is_npm_weibull(name: str, trim: str, low: float, high: float) -> None:
    npm_weibull = pytest.importorskip("npm_weibull")
    values = (SAMPLES | EDGE_CASES)[name](np.random.default_rng(0))
    with np.errstate(over="ignore"):
        theirs = npm_weibull.extract_to_histogram(values)
    want = npm_weibull.weibull_fit(theirs, trim=trim)
    got = probability_plot_fit(measured(values), low=low, high=high, grid="npm-weibull")
    assert (got.status == "ok") == want["ok"]
    if want["ok"]:
        np.testing.assert_allclose([got.shape, got.scale, got.r2], [want["k"], want["lambda"], want["R2"]], rtol=1e-9)
        assert got.n_used == want["n_used"]
    lost = theirs["n_total"] - theirs["hist"].sum() - np.count_nonzero(values == 0)
    assert got.n_outside == lost


@pytest.mark.parametrize("law", LAWS)
def test_grid_on_coarse_cells_is_near_npm_weibull(law: str) -> None:
    npm_weibull = pytest.importorskip("npm_weibull")
    values = LAWS[law][0](np.random.default_rng(0).random(50_000)).astype(np.float32)
    stats_ = measured(values)
    assert not stats_.histogram.lossless
    want = npm_weibull.weibull_fit(npm_weibull.extract_to_histogram(values))
    got = probability_plot_fit(stats_, grid="npm-weibull")
    np.testing.assert_allclose([got.shape, got.scale], [want["k"], want["lambda"]], rtol=5e-4)
    assert abs(got.n_used - want["n_used"]) <= 1


@pytest.mark.parametrize("n", [4000, 40_000], ids=["lossless", "coarse"])
def test_values_that_the_grid_loses_are_counted(n: int) -> None:
    values = (200 * np.random.default_rng(0).standard_normal(n)).astype(np.float32)
    got = probability_plot_fit(measured(values), grid="npm-weibull")
    lost = np.count_nonzero(np.abs(values) > 100)
    assert lost > 0.6 * n
    assert got.n_outside == pytest.approx(lost, abs=0 if n == 4000 else 1e-3 * n)
    assert got.shape > 1.3  # what is left of a half-normal is no half-normal
    without = probability_plot_fit(measured(values))
    assert without.n_outside == 0
    assert without.shape == pytest.approx(1.2054, abs=5 / math.sqrt(n))  # some four standard deviations


def test_zeros_take_no_part() -> None:
    values = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    pruned = np.append(values, np.zeros(1000, np.float32))
    for grid in (None, "npm-weibull"):
        assert probability_plot_fit(measured(values), grid=grid) == probability_plot_fit(measured(pruned), grid=grid)


@pytest.mark.parametrize("grid", [None, "npm-weibull"])
@pytest.mark.parametrize(
    "values", [[], [0.0] * 200, [0.5] * 200, [0.1, 0.2, 0.3, 0.4] * 50], ids=["none", "zeros", "equal", "four"]
)
def test_too_few_points_are_degenerate(values: list[float], grid: str | None) -> None:
    stats_ = measured(np.asarray(values, np.float32)) if values else TensorStats.zero()
    got = probability_plot_fit(stats_, grid=grid)
    assert got.status == "degenerate"
    assert got.n_used < 5
    assert np.isnan([got.shape, got.scale, got.r2]).all()


def test_five_points_are_enough() -> None:
    five = measured(np.repeat(np.arange(1, 6), 100).astype(np.float32))
    for grid in (None, "npm-weibull"):
        got = probability_plot_fit(five, grid=grid)
        assert (got.status, got.n_used) == ("ok", 5)


def test_what_cannot_be_asked_is_said() -> None:
    some = measured(np.arange(1, 10, dtype=np.float32))
    with pytest.raises(tj.UsageError, match=r"grid: found 'log2'; needed None or 'npm-weibull'"):
        probability_plot_fit(some, grid="log2")
    for low, high in ((0.9, 0.1), (-0.1, 0.9), (0.1, 1.1), (0.5, 0.5)):
        with pytest.raises(tj.UsageError, match="0 ≤ low < high ≤ 1"):
            probability_plot_fit(some, low=low, high=high)
    with pytest.raises(tj.UsageError, match="histogram=True"):
        probability_plot_fit(tj.measure({"w": np.ones(5, np.float32)}, histogram=False)["w"])
