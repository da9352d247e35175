"""Standard errors by jackknife over contiguous blocks, and goodness of fit by parametric bootstrap. Seeds are fixed."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from scipy import stats as scipy_stats

import teleojax as tj
from teleojax import FAMILIES, BitHistogram, FamilyFit, TensorStats
from teleojax.diagnose import LARGE, BootstrapTest, bootstrap_test
from teleojax.diagnose._bootstrap import simulate
from teleojax.fits import maximum_likelihood, with_jackknife
from tests.populations import drawn_stats

GROUPS, BLOCK, TENSORS = 20, 1000, 100
FITTED = [FAMILIES[name] for name in ("lognormal", "halfnormal", "weibull")]
UNEVEN = 0.3  # standard deviation of the logarithm of a block's scale
MEAN_LOG = math.log(0.02) - (np.euler_gamma + math.log(2)) / 2


def blocks(seed: int, uneven: float) -> np.ndarray:
    """Normal values; every block of them has a scale of its own."""
    rng = np.random.default_rng(seed)
    scales = 0.02 * np.exp(uneven * rng.standard_normal(GROUPS))
    return (np.repeat(scales, BLOCK) * rng.standard_normal(GROUPS * BLOCK)).astype(np.float32)


def jackknifed(uneven: float) -> list[dict[str, FamilyFit]]:
    tensors = {str(seed): blocks(seed, uneven) for seed in range(TENSORS)}
    measured = tj.measure(tensors, groups=GROUPS, histogram=False)  # both families need moments alone
    stats, families = list(measured.stats.values()), FITTED[:2]
    return with_jackknife(maximum_likelihood(families, stats), families, stats)


def coverage(fits: list[dict[str, FamilyFit]], family: str, key: str, truth: float, kind: str) -> float:
    bounds = [each[family].interval(key, kind=kind) for each in fits]
    return float(np.mean([low <= truth <= high for low, high in bounds]))


def ratio(fits: list[dict[str, FamilyFit]], family: str, key: str) -> float:
    """Jackknife error over that from the information."""
    return float(np.mean([each[family].jackknife_se[key] / each[family].se[key] for each in fits]))


def test_jackknife_is_the_textbooks() -> None:
    """√((G − 1)/G Σ (estimate without g − mean)²), every estimate refitted to the values themselves."""
    values = blocks(0, UNEVEN)
    stats = tj.measure({"w": values}, groups=GROUPS)["w"]
    assert [g.moments.n for g in stats.groups] == [BLOCK] * GROUPS
    fits = with_jackknife(maximum_likelihood(FITTED, [stats]), FITTED, [stats])[0]
    rest = [np.delete(values, np.s_[g * BLOCK : (g + 1) * BLOCK]) for g in range(GROUPS)]
    x = np.abs(np.asarray(rest, np.float64))
    y = np.log(x)
    again = tj.measure({str(g): r for g, r in enumerate(rest)})
    weibull = [each["weibull"] for each in maximum_likelihood([FAMILIES["weibull"]], list(again.stats.values()))]
    estimates = {
        ("lognormal", "mu"): y.mean(axis=1),
        ("lognormal", "sigma"): y.std(axis=1),
        ("halfnormal", "scale"): np.sqrt(np.mean(x**2, axis=1)),
        ("weibull", "shape"): np.asarray([fit.shape for fit in weibull]),
        ("weibull", "scale"): np.asarray([fit.scale for fit in weibull]),
    }
    for (family, key), estimate in estimates.items():
        want = math.sqrt((GROUPS - 1) / GROUPS * np.sum((estimate - estimate.mean()) ** 2))
        assert fits[family].jackknife_se[key] == pytest.approx(want, rel=1e-5), (family, key)


def test_independent_values_need_no_jackknife() -> None:
    """Both errors agree where the family is true; where it is not, only the jackknife covers."""
    fits = jackknifed(0.0)
    assert ratio(fits, "halfnormal", "scale") == pytest.approx(1, abs=0.05)
    assert ratio(fits, "lognormal", "mu") == pytest.approx(1, abs=0.05)
    for kind in ("information", "jackknife"):
        assert 0.90 <= coverage(fits, "halfnormal", "scale", 0.02, kind) <= 0.99  # binomial SD 0.02
    assert coverage(fits, "lognormal", "sigma", math.pi / math.sqrt(8), "information") < 0.8  # kurtosis of y is 4
    for key, truth in (("mu", MEAN_LOG), ("sigma", math.pi / math.sqrt(8))):
        assert 0.88 <= coverage(fits, "lognormal", key, truth, "jackknife") <= 0.99, key


def test_blocks_with_scales_of_their_own() -> None:
    """Twenty scales, not 20,000 values: errors from the information are several times too small."""
    fits = jackknifed(UNEVEN)
    truths = [
        ("lognormal", "mu", MEAN_LOG, 7),
        ("halfnormal", "scale", 0.02 * math.exp(UNEVEN**2), 10),
        ("lognormal", "sigma", math.sqrt(math.pi**2 / 8 + UNEVEN**2), 2),
    ]
    for family, key, truth, least in truths:
        assert ratio(fits, family, key) > least
        assert coverage(fits, family, key, truth, "information") < 0.6
        # twenty groups: a normal interval has 0.935 of Student's, and the estimate is skew
        assert 0.85 <= coverage(fits, family, key, truth, "jackknife") <= 0.99, (family, key)
    deviation = np.std([each["lognormal"].mu for each in fits])
    assert np.mean([each["lognormal"].jackknife_se["mu"] for each in fits]) == pytest.approx(deviation, rel=0.15)


def test_jackknife_where_there_is_none() -> None:
    """No groups, or a family that has no maximum without one of them."""
    plain, grouped = tj.measure({"w": blocks(0, 0.0)})["w"], tj.measure({"w": blocks(0, 0.0)}, groups=4)["w"]
    fits = with_jackknife(maximum_likelihood(FITTED, [plain, grouped]), FITTED, [plain, grouped])
    assert fits[0]["lognormal"].jackknife_se == {}
    assert math.isnan(fits[0]["lognormal"].interval("mu", kind="jackknife")[0])
    assert fits[1]["lognormal"].jackknife_se["mu"] > 0
    one, many = TensorStats.zero(), tj.measure({"w": np.float32([1, 2, 3])})["w"]
    lone = TensorStats.from_groups([many, one, one])
    fit = with_jackknife(maximum_likelihood(FITTED, [lone]), FITTED, [lone])[0]["lognormal"]
    assert fit.status == "ok"
    assert math.isnan(fit.jackknife_se["mu"])


NULLS = [  # family, parameters, how values are stored
    ("weibull", {"shape": 0.8, "scale": 0.02}, np.float32),
    ("halfnormal", {"scale": 1.0}, ml_dtypes.float8_e5m2),  # four values an octave: ties by the hundred
]


@pytest.mark.parametrize(("name", "params", "dtype"), NULLS, ids=["weibull", "halfnormal in e5m2"])
def test_bootstrap_is_calibrated(name: str, params: dict[str, float], dtype: type) -> None:
    """100 tensors of 1000 values of the family: of 19 replicates, all lie nearer in 5%."""
    family = FAMILIES[name]
    raw = [family.sample(np.random.default_rng(1000 + seed), params, 1000).astype(dtype) for seed in range(100)]
    stats = list(tj.measure({str(i): x for i, x in enumerate(raw)}).stats.values())
    fits = [each[name] for each in maximum_likelihood([family], stats)]
    tests = [
        bootstrap_test(s, family, fit, replicates=19, seed=i)
        for i, (s, fit) in enumerate(zip(stats, fits, strict=True))
    ]
    p = np.asarray([test.p_value for test in tests])
    np.testing.assert_allclose(p * 20, np.round(p * 20))
    assert 1 <= np.sum(p <= 0.05) <= 12  # 5 are expected; outside lie 0.6% and 0.15%
    assert 25 <= np.sum(p <= 0.5) <= 65  # 50 are expected with SD 5
    assert p.mean() == pytest.approx(0.525, abs=0.12)  # SD 0.029
    if dtype is np.float32:  # what tables say of a law that was not fitted rejects a fitted one never
        naive = [
            scipy_stats.kstest(x, lambda v, f=fit: family.cdf(v, f.params)) for x, fit in zip(raw, fits, strict=True)
        ]
        assert sum(test.pvalue <= 0.05 for test in naive) == 0
        np.testing.assert_allclose([test.ks for test in tests], [test.statistic for test in naive], atol=1e-7)


def test_bootstrap_sees_a_wrong_family() -> None:
    (stats,) = tj.measure({"w": np.random.default_rng(0).normal(0, 0.02, 2000).astype(np.float32)}).stats.values()
    fits = maximum_likelihood(FITTED, [stats])[0]
    p = {f.name: bootstrap_test(stats, f, fits[f.name], replicates=99) for f in FITTED}
    assert p["lognormal"].p_value == p["weibull"].p_value == 0.01
    assert p["halfnormal"].p_value > 0.05
    assert not any(test.large for test in p.values())
    assert bootstrap_test(stats, FITTED[1], fits["halfnormal"], replicates=99) == p["halfnormal"]  # the seed is fixed


def test_bootstrap_warns_of_many_values() -> None:
    """With 10⁷ values a difference of no consequence is significant: `large` says so, and ks how small it is."""
    family, near = FAMILIES["halfnormal"], {"df": 300.0, "scale": 0.02}
    for n in (LARGE, 10**7):
        stats = drawn_stats("half_t", near, n, 0)
        fit = maximum_likelihood([family], [stats])[0]["halfnormal"]
        test = bootstrap_test(stats, family, fit, replicates=19)
        assert test.large == (n > LARGE)
        assert (test.p_value == 0.05) == (n > LARGE)
    assert test.ks < 0.001


def test_bootstrap_of_a_tail_holds_its_xmin() -> None:
    family = FAMILIES["pareto"]
    x = family.sample(np.random.default_rng(0), {"alpha": 1.7, "xmin": 0.02}, 3000).astype(np.float32)
    (stats,) = tj.measure({"w": np.append(np.full(500, 0.001, np.float32), x)}).stats.values()
    fit = maximum_likelihood([family], [stats], xmin=0.02)[0]["pareto"]
    test = bootstrap_test(stats, family, fit, replicates=19)
    assert test.p_value > 0.05
    above = x[x >= fit.xmin]
    naive = scipy_stats.kstest(above, lambda v: family.cdf(v, fit.params))
    assert test.ks == pytest.approx(naive.statistic, abs=1e-6)


def test_bootstrap_without_a_fit() -> None:
    (stats,) = tj.measure({"w": np.full(10, 0.5, np.float32)}).stats.values()
    fit = maximum_likelihood([FAMILIES["weibull"]], [stats])[0]["weibull"]
    test = bootstrap_test(stats, FAMILIES["weibull"], fit, replicates=9)
    assert isinstance(test, BootstrapTest)
    assert math.isnan(test.p_value)
    assert math.isnan(test.ks)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_replicates_that_round_to_nothing_are_far(scale: float) -> None:
    """Integers of a step beside which the law is nothing: no value is left, and no warning."""
    like = BitHistogram.from_keys("int8", 0, np.asarray([1, 2, 3]), scale=1.0)
    fit = FamilyFit("halfnormal", {"scale": scale}, 0.0, 0.0, 0.0, "ok")
    drawn = simulate(FAMILIES["halfnormal"], fit, like, 100, np.random.default_rng(0))
    assert drawn.moments.size == 100
    assert (drawn.moments.n > 0) == (scale == 1.0)
