"""Distances of every family from the values, against SciPy's textbook statistics and direct quadrature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import ml_dtypes
import mpmath
import numpy as np
import pytest
from scipy import integrate, special, stats

import teleojax as tj
from teleojax.diagnose._distances import lognormal_distances
from teleojax.diagnose._goodness import Goodness, goodness_of_fit, sup_distance
from teleojax.families import FAMILIES
from teleojax.stats import BitHistogram

Logs = Callable[[np.ndarray], np.ndarray]


def of_scipy(frozen) -> tuple[Logs, Logs]:
    return frozen.logcdf, frozen.logsf


def mixture(x: np.ndarray, sign: int) -> np.ndarray:
    z = sign * (np.log(x)[..., None] - np.asarray([-3.5, -5.5])) / np.asarray([0.6, 0.9])
    return special.logsumexp(special.log_ndtr(z), b=np.asarray([0.7, 0.3]), axis=-1)


def conditional(frozen, xmin: float) -> tuple[Logs, Logs]:
    return lambda x: np.log((frozen.cdf(x) - frozen.cdf(xmin)) / frozen.sf(xmin)), lambda x: np.log(
        frozen.sf(x) / frozen.sf(xmin)
    )


XMIN = 2.0**-7
TWINS = {  # name: parameters, SciPy's (or plain) logcdf and logsf
    "lognormal": ({"mu": -4.0, "sigma": 1.1}, of_scipy(stats.lognorm(1.1, scale=math.exp(-4.0)))),
    "halfnormal": ({"scale": 0.02}, of_scipy(stats.halfnorm(scale=0.02))),
    "exponential": ({"scale": 0.02}, of_scipy(stats.expon(scale=0.02))),
    "weibull": ({"shape": 0.8, "scale": 0.02}, of_scipy(stats.weibull_min(0.8, scale=0.02))),
    "gamma": ({"shape": 1.7, "scale": 0.01}, of_scipy(stats.gamma(1.7, scale=0.01))),
    "gengamma": ({"a": 0.8, "c": 1.5, "scale": 0.02}, of_scipy(stats.gengamma(0.8, 1.5, scale=0.02))),
    "half_t": (
        {"df": 3.0, "scale": 0.02},
        (lambda x: np.log(1 - 2 * stats.t.sf(x / 0.02, 3)), lambda x: math.log(2) + stats.t.logsf(x / 0.02, 3)),
    ),
    "halfgennorm": ({"beta": 1.4, "scale": 0.02}, of_scipy(stats.halfgennorm(1.4, scale=0.02))),
    "loglogistic": ({"shape": 1.6, "scale": 0.01}, of_scipy(stats.fisk(1.6, scale=0.01))),
    "invgauss": ({"mu": 1.5, "scale": 0.02}, of_scipy(stats.invgauss(1.5, scale=0.02))),
    "truncated_lognormal": (
        {"mu": -4.0, "sigma": 0.9, "xmin": XMIN},
        conditional(stats.lognorm(0.9, scale=math.exp(-4.0)), XMIN),
    ),
    "pareto": ({"alpha": 1.5, "xmin": XMIN}, of_scipy(stats.pareto(1.5, scale=XMIN))),
    "lognormal_mixture": (
        {"weights": (0.7, 0.3), "mus": (-3.5, -5.5), "sigmas": (0.6, 0.9)},
        (lambda x: mixture(x, 1), lambda x: mixture(x, -1)),
    ),
}
NAMES = list(TWINS)


def test_every_family_is_compared() -> None:
    assert set(TWINS) == set(FAMILIES)


def textbook(x: np.ndarray, logcdf: Logs, logsf: Logs) -> tuple[float, float, float]:
    """Stephens (1974), from sorted values one by one; ties need nothing special."""
    x = np.sort(x)
    n, i = len(x), np.arange(1, len(x) + 1)
    ks = stats.kstest(x, lambda v: np.exp(logcdf(v))).statistic
    ad = -n - np.mean((2 * i - 1) * (logcdf(x) + logsf(x)[::-1]))
    cvm = stats.cramervonmises(x, lambda v: np.exp(logcdf(v))).statistic
    return float(ks), float(ad), float(cvm)


def compare(x: np.ndarray, name: str) -> Goodness:
    return goodness_of_fit(histogram_of(x), FAMILIES[name], TWINS[name][0])


def histogram_of(x: np.ndarray) -> BitHistogram:
    histogram = tj.measure({"w": x})["w"].histogram
    assert histogram is not None
    return histogram


def drawn(name: str, n: int, dtype: type, stretch: float = 1.0) -> np.ndarray:
    """Values of a family, all stretched; a tail family's stay above xmin once rounded."""
    x = FAMILIES[name].sample(np.random.default_rng(0), TWINS[name][0], n) * stretch
    x = x.astype(dtype)
    return x[x.astype(np.float64) > (XMIN if FAMILIES[name].tail else 0)]


@pytest.mark.parametrize("stretch", [1.0, 1.5])
@pytest.mark.parametrize(
    ("dtype", "n"),
    [(np.float32, 3000), (ml_dtypes.bfloat16, 20_000), (ml_dtypes.float8_e4m3fn, 5000)],
    ids=["no ties", "hundreds of ties", "few values"],
)
@pytest.mark.parametrize("name", NAMES)
def test_lossless_statistics_are_the_textbooks(name: str, dtype: type, n: int, stretch: float) -> None:
    x = drawn(name, n, dtype, stretch)
    got = compare(x, name)
    ks, ad, cvm = textbook(x.astype(np.float64), *TWINS[name][1])
    assert got.n == len(x)
    assert got.ks == pytest.approx(ks, abs=1e-12)
    assert got.ad == pytest.approx(ad, rel=1e-9, abs=1e-9)
    assert got.cvm == pytest.approx(cvm, rel=1e-10, abs=1e-11)
    assert sup_distance(histogram_of(x), FAMILIES[name], TWINS[name][0]) == pytest.approx(ks, abs=1e-12)


def test_anderson_darling_is_scipys() -> None:
    x = np.random.default_rng(3).exponential(0.02, 500)
    known = {"loc": 0, "scale": 0.025}
    want = stats.goodness_of_fit(stats.expon, x, known_params=known, statistic="ad", n_mc_samples=1).statistic
    got = goodness_of_fit(histogram_of(x), FAMILIES["exponential"], {"scale": 0.025})
    assert got.ad == pytest.approx(want, rel=1e-10)


# Wasserstein distance


def by_quadrature(x: np.ndarray, name: str) -> float:
    """∫|F_n − F| dy one stretch at a time, cut where F crosses F_n; e^−60 is left out on either side."""
    family, (params, (logcdf, _)) = FAMILIES[name], TWINS[name]
    y = np.unique(np.log(x))
    least = math.log(XMIN) if family.tail else y[0] - 40
    places = np.asarray([least, max(least, y[0] - 4), *y, y[-1] + 4, y[-1] + 40])
    total = 0.0
    for a, b in pairwise(places):
        level = float(np.mean(np.log(x) <= a))
        cross = np.log(family.ppf(np.asarray([level]), params))[0] if 0 < level < 1 else b
        for left, right in pairwise(sorted({a, float(np.clip(cross, a, b)), b})):
            gap = integrate.quad(lambda v, c=level: np.exp(logcdf(np.exp(v))) - c, left, right, epsabs=1e-9)[0]
            total += abs(gap)
    return total


@pytest.mark.parametrize("stretch", [1.0, 0.2, 6.0])
@pytest.mark.parametrize("name", NAMES)
def test_wasserstein_is_the_integral(name: str, stretch: float) -> None:
    x = drawn(name, 14, ml_dtypes.float8_e4m3fn, stretch)
    x = x if len(x) else np.asarray([0.5], ml_dtypes.float8_e4m3fn)
    with np.errstate(all="ignore"):
        want = by_quadrature(x.astype(np.float64), name)
    assert compare(x, name).w1_log == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("mu", [-4.2, -4.0, -1.0, 3.0])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.1, 4.0])
@pytest.mark.parametrize(
    ("dtype", "n"),
    [(np.float32, 5000), (np.float32, 60), (ml_dtypes.bfloat16, 20_000), (np.float16, 20_000), (np.int8, 3000)],
)
def test_quadrature_agrees_with_the_exact_lognormal(dtype: type, n: int, sigma: float, mu: float) -> None:
    x = np.exp(-4 + np.random.default_rng(1).standard_normal(n)).astype(dtype if dtype is not np.int8 else np.float64)
    if dtype is np.int8:
        keys = np.round(x / x.max() * 127).astype(np.int64)
        histogram = BitHistogram.from_keys("int8", 0, keys[keys > 0], scale=float(x.max() / 127))
    else:
        histogram = histogram_of(x)
    params = {"mu": mu, "sigma": sigma}
    exact = lognormal_distances(histogram, mu, sigma)
    by_name = goodness_of_fit(histogram, FAMILIES["lognormal"], params)
    assert (by_name.ks, by_name.w1_log, by_name.r2) == (exact.ks, exact.w1_log, exact.r2)
    got = goodness_of_fit(histogram, dataclasses.replace(FAMILIES["lognormal"], name="another"), params)
    assert got.ks == pytest.approx(exact.ks, abs=1e-13)
    assert got.w1_log == pytest.approx(exact.w1_log, abs=1e-6)
    assert got.r2 == pytest.approx(exact.r2, abs=1e-6)
    assert (got.ad, got.cvm) == (by_name.ad, by_name.cvm)


@pytest.mark.parametrize("shape", [0.1, 1.0, 50.0])
def test_tails_of_a_power_law_are_integrated_to_their_end(shape: float) -> None:
    """One value at the median of a log-logistic law: each side of it adds ln(2)/shape."""
    got = goodness_of_fit(
        histogram_of(np.asarray([0.25, 0.25])), FAMILIES["loglogistic"], {"shape": shape, "scale": 0.25}
    )
    assert got.w1_log == pytest.approx(2 * math.log(2) / shape, abs=1e-6)
    assert got.ks == pytest.approx(0.5)
    assert math.isnan(got.r2)


def test_a_step_hidden_in_a_wide_gap_is_found() -> None:
    """Two values far apart, the family a near-step somewhere between: its halves move apart, each from its mean."""
    x = np.asarray([math.exp(-8.0), math.exp(-1.0)])
    for place in (-7.3, -4.5, -4.4123, -1.7):
        params = {"mu": place, "sigma": 1e-3}
        got = goodness_of_fit(histogram_of(x), dataclasses.replace(FAMILIES["lognormal"], name="another"), params)
        assert got.w1_log == pytest.approx(3.5 - 1e-3 * math.sqrt(2 / math.pi), abs=1e-6)


# Probability plot


@pytest.mark.parametrize(
    ("dtype", "n"), [(np.float32, 3000), (ml_dtypes.bfloat16, 20_000), (ml_dtypes.float8_e4m3fn, 50)]
)
@pytest.mark.parametrize("name", NAMES)
def test_r2_is_the_correlation_with_quantiles(name: str, dtype: type, n: int) -> None:
    x = drawn(name, n, dtype).astype(np.float64)
    rank = (stats.rankdata(x) - 0.5) / len(x)  # of ties the mean, which is the mid-rank
    quantiles = np.log(FAMILIES[name].ppf(rank, TWINS[name][0]))
    want = np.corrcoef(quantiles, np.log(x))[0, 1] ** 2
    assert compare(drawn(name, n, dtype), name).r2 == pytest.approx(want, abs=1e-6)


def test_quantiles_are_not_read_across_a_plateau() -> None:
    """Two components 60 sigma apart: at mid-ranks near ½ the quantiles lie anywhere but on a straight line."""
    params = {"weights": (0.5, 0.5), "mus": (-8.0, -2.0), "sigmas": (0.1, 0.1)}
    family, rank = FAMILIES["lognormal_mixture"], (np.arange(101) + 0.5) / 101
    quantiles = np.log(family.ppf(rank, params))
    y = quantiles + np.where(np.arange(101) == 50, 2.5, 0.0)
    got = goodness_of_fit(histogram_of(np.exp(y)), family, params)
    assert got.r2 == pytest.approx(np.corrcoef(quantiles, np.sort(y))[0, 1] ** 2, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_a_weibull_plot_of_exact_lognormal_data_looks_good_whatever_sigma(sigma: float) -> None:
    """R² near 1 is no proof of a family: 0.94 here, whatever sigma, where ks says 5%."""
    x = np.exp(sigma * special.ndtri((np.arange(8000) + 0.5) / 8000))
    params = {"shape": 1.1 / sigma, "scale": math.exp(0.45 * sigma)}
    got = goodness_of_fit(histogram_of(x), FAMILIES["weibull"], params)
    p = np.linspace(0, 1, 2_000_001)[1:-1]
    limit = np.corrcoef(np.log(-np.log1p(-p)), special.ndtri(p))[0, 1] ** 2
    assert limit == pytest.approx(0.93987, abs=1e-5)
    assert got.r2 == pytest.approx(limit, abs=5e-4)
    assert got.ks > 0.04


# Cells


def test_steps_and_cells_count_from_both_sides() -> None:
    """What comes of centres and one side: 0.004 and more where 0.0004 is true."""
    n = 4_000_000
    x = np.abs(np.random.default_rng(5).standard_normal(n, dtype=np.float32) * np.float32(0.02))
    fine = histogram_of(x)
    x.sort()
    u = special.erf(x[x > 0].astype(np.float64) / (0.02 * math.sqrt(2)))
    true = float(max(np.max(np.arange(1, len(u) + 1) / n - u), np.max(u - np.arange(len(u)) / n)))
    assert true < 1.63 / math.sqrt(n)  # 99% of the Kolmogorov distribution; the seed is fixed
    law = FAMILIES["halfnormal"], {"scale": 0.02}
    for wider in (0, 1, 3):  # cells of 1/128, 1/64 and 1/16 octave: their edges are among the values
        histogram = fine.coarsen(fine.drop + wider)
        got = goodness_of_fit(histogram, *law).ks
        assert got <= true + 1e-12
        assert got >= true / 2
        after = np.cumsum(histogram.counts) / histogram.n
        at_centres = np.max(np.abs(after - law[0].cdf(histogram.values(), law[1])))
        assert at_centres > 0.001 * 2**wider


def test_tied_values_count_from_both_sides() -> None:
    """Half the values below the median in one tie: F_n − F is −½ just below it, 0 above."""
    x = np.asarray([0.25, 0.25, 0.25, 0.25])
    params = {"scale": 0.25 / float(special.erfinv(0.5)) / math.sqrt(2)}
    assert goodness_of_fit(histogram_of(x), FAMILIES["halfnormal"], params).ks == pytest.approx(0.5, abs=1e-12)
    assert goodness_of_fit(histogram_of(x), FAMILIES["halfnormal"], {"scale": 1e-3}).ks == 1.0


@pytest.mark.parametrize("stretch", [1.0, 1.3])
@pytest.mark.parametrize("name", [n for n in NAMES if not FAMILIES[n].tail])
def test_cells_give_what_their_values_give(name: str, stretch: float) -> None:
    x = drawn(name, 50_000, np.float32, stretch)
    got = compare(x, name)
    ks, ad, cvm = textbook(x.astype(np.float64), *TWINS[name][1])
    assert got.ks == pytest.approx(ks, abs=5e-4)
    assert got.ad == pytest.approx(ad, rel=1e-3, abs=0.02)
    assert got.cvm == pytest.approx(cvm, rel=1e-3, abs=0.003)


@pytest.mark.parametrize("name", ["halfnormal", "loglogistic", "pareto", "truncated_lognormal"])
def test_statistics_of_cells_are_the_integrals_of_a_broken_line(name: str) -> None:
    """F_n straight in u between the edges of cells 1/4 octave wide, by quadrature in u."""
    x = drawn(name, 40, np.float32)
    histogram = BitHistogram.from_keys("float32", 0, x.view(np.uint32).astype(np.int64)).coarsen(21)
    assert histogram.n == len(x)
    low, high = histogram.edges()
    params, (logcdf, _) = TWINS[name]
    with np.errstate(divide="ignore"):
        u = np.exp(logcdf(np.stack([low, high], axis=1).reshape(-1)))
    after = np.cumsum(histogram.counts) / len(x)
    level = np.stack([np.concatenate([[0.0], after[:-1]]), after], axis=1).reshape(-1)
    u, level = np.concatenate([[0.0], u, [1.0]]), np.concatenate([[0.0], level, [1.0]])
    ad = cvm = 0.0
    for a, b, c, d in zip(u[:-1], u[1:], level[:-1], level[1:], strict=True):
        if b > a:
            square = lambda v, a=a, b=b, c=c, d=d: (c + (d - c) * (v - a) / (b - a) - v) ** 2  # noqa: E731
            cvm += integrate.quad(square, a, b, epsabs=1e-12)[0]
            ad += integrate.quad(lambda v, s=square: s(v) / (v * (1 - v)), a, b, epsabs=1e-11, limit=200)[0]
    got = goodness_of_fit(histogram, FAMILIES[name], params)
    assert got.cvm == pytest.approx(len(x) * cvm, rel=1e-8)
    assert got.ad == pytest.approx(len(x) * ad, rel=1e-7)
    assert got.ks == pytest.approx(np.max(np.abs(u - level)), abs=1e-12)


def test_the_cell_that_begins_at_zero() -> None:
    histogram = BitHistogram.from_keys("float32", 20, np.asarray([0, 1000, 1001]), np.asarray([1, 50, 50]))
    got = goodness_of_fit(histogram, FAMILIES["loglogistic"], {"shape": 2.0, "scale": 0.02})
    assert all(math.isfinite(v) for v in dataclasses.astuple(got))


# Where floats run out


def test_far_values_do_not_underflow() -> None:
    """Values 60 scales and 60 sigmas out: P is 10^−784 there, and A² still its closed form."""
    with mpmath.workdps(40):
        root = mpmath.sqrt(2)
        out = [mpmath.erf(1 / root), mpmath.erf(60 / root)], [mpmath.erfc(1 / root), mpmath.erfc(60 / root)]
        far = (
            [mpmath.erfc(60 / root) / 2, mpmath.erfc(-1 / root) / 2],
            [mpmath.erfc(-60 / root) / 2, mpmath.erfc(1 / root) / 2],
        )
        want = []
        for u, v in (out, far):
            total = mpmath.log(u[0]) + 3 * mpmath.log(u[1]) + mpmath.log(v[1]) + 3 * mpmath.log(v[0])
            want.append(float(-2 - total / 2))
    got = goodness_of_fit(histogram_of(np.asarray([0.5, 30.0])), FAMILIES["halfnormal"], {"scale": 0.5})
    assert got.ad == pytest.approx(want[0], rel=1e-10)
    x = np.exp(np.asarray([-60.0, 1.0]))
    got = goodness_of_fit(histogram_of(x), FAMILIES["lognormal"], {"mu": 0.0, "sigma": 1.0})
    assert got.ad == pytest.approx(want[1], rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_scaling_values_and_family_together_changes_nothing(name: str) -> None:
    family, params = FAMILIES[name], dict(TWINS[name][0])
    for key in ("scale", "xmin"):
        if key in params:
            params[key] *= 2.0**-40
    for key in ("mu", "mus"):
        if key in params and name != "invgauss":
            params[key] = (
                tuple(np.asarray(params[key]) - 40 * math.log(2)) if key == "mus" else params[key] - 40 * math.log(2)
            )
    x = drawn(name, 2000, np.float64)
    here, there = compare(x, name), goodness_of_fit(histogram_of(x * 2.0**-40), family, params)
    np.testing.assert_allclose(dataclasses.astuple(there), dataclasses.astuple(here), rtol=1e-6, atol=1e-9)


# Tails and nothing


@pytest.mark.parametrize("name", ["pareto", "truncated_lognormal"])
@pytest.mark.parametrize("n", [2000, 20_000])
def test_a_tail_is_judged_by_what_lies_above_xmin(name: str, n: int) -> None:
    x = drawn(name, n, np.float32)
    body = np.random.default_rng(9).uniform(0.1 * XMIN, 0.99 * XMIN, len(x) * 3).astype(np.float32)
    both = BitHistogram.merge(histogram_of(x), histogram_of(body))
    alone = histogram_of(x).coarsen(both.drop)
    family, params = FAMILIES[name], TWINS[name][0]
    assert goodness_of_fit(both, family, params) == goodness_of_fit(alone, family, params)
    assert goodness_of_fit(both, family, params).n == len(x)


def test_a_tail_family_is_not_asked_below_xmin() -> None:
    def logcdf(x: np.ndarray, params: dict) -> np.ndarray:
        assert np.min(x) >= params["xmin"] * (1 - 1e-12)
        return FAMILIES["pareto"].logcdf(x, params)

    strict = dataclasses.replace(FAMILIES["pareto"], logcdf=logcdf)
    for n in (300, 20_000):
        histogram = histogram_of(drawn("pareto", n, np.float32))
        assert goodness_of_fit(histogram, strict, TWINS["pareto"][0]).w1_log < 0.2


def test_what_is_kept_of_a_histogram_serves_no_other() -> None:
    """Families and histograms in turn, each as if it came alone; coarse and lossless, all values and a tail."""
    histograms = [histogram_of(drawn("pareto", n, np.float32)) for n in (40_000, 300, 30_000)]

    def alone(histogram: BitHistogram, name: str) -> Goodness:
        copy = BitHistogram(histogram.dtype, histogram.drop, histogram.keys, histogram.counts)
        return goodness_of_fit(copy, FAMILIES[name], TWINS[name][0])

    names = ("pareto", "weibull", "truncated_lognormal", "halfnormal")
    want = {(i, name): alone(h, name) for i, h in enumerate(histograms) for name in names}
    for i, name in [*want, *sorted(want, key=lambda pair: pair[1])]:
        params = TWINS[name][0]
        assert goodness_of_fit(histograms[i], FAMILIES[name], params) == want[i, name]
        assert sup_distance(histograms[i], FAMILIES[name], params) == pytest.approx(want[i, name].ks, abs=1e-13)


def test_nothing_to_compare_is_nan() -> None:
    law, histogram = FAMILIES["weibull"], histogram_of(np.asarray([0.1, 0.2]))
    for got in (
        goodness_of_fit(BitHistogram.zero("float32"), law, {"shape": 1.0, "scale": 1.0}),
        goodness_of_fit(BitHistogram.zero("float32", 16), law, {"shape": 1.0, "scale": 1.0}),
        goodness_of_fit(histogram, law, {}),
        goodness_of_fit(histogram, law, {"shape": math.nan, "scale": 1.0}),
        goodness_of_fit(histogram, FAMILIES["pareto"], {"alpha": 1.0, "xmin": 5.0}),
        goodness_of_fit(histogram, FAMILIES["pareto"], {}),
    ):
        assert all(math.isnan(v) for v in dataclasses.astuple(got)[:-1])
    assert math.isnan(sup_distance(histogram, law, {}))


def test_a_value_without_probability_makes_anderson_darling_infinite_and_nothing_else() -> None:
    got = goodness_of_fit(histogram_of(np.asarray([0.5, 1.0, 2.0])), FAMILIES["pareto"], {"alpha": 1.0, "xmin": 0.5})
    assert got.ad == math.inf
    assert got.ks == pytest.approx(1 / 3)
    assert got.w1_log == pytest.approx(by_hand_w1(), abs=1e-6)


def by_hand_w1() -> float:
    """F = 1 − e^−t, t = ln(x/0.5); F_n = 1/3, 2/3, 1 from t = 0, ln 2, 2 ln 2."""
    t = np.linspace(0, 40, 4_000_001)
    middle = (t[1:] + t[:-1]) / 2
    level = np.where(middle < math.log(2), 1 / 3, np.where(middle < 2 * math.log(2), 2 / 3, 1.0))
    return float(np.sum(np.abs(level + np.expm1(-middle))) * (t[1] - t[0]))
