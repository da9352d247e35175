"""The choices of `fit`: families, methods, errors, comparisons between layers; as Python calls and as commands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

import teleojax as tj
from teleojax.cli import run
from teleojax.diagnose import universality
from teleojax.sources import fan_in
from teleojax.stats import TensorStats

RNG = np.random.default_rng(0)
FAMILIES = ("halfnormal", "weibull", "exponential", "pareto")
N = 20_000


@pytest.fixture(scope="module")
def layers() -> dict[str, np.ndarray]:
    found = {}
    for layer in range(3):
        for role, values in {
            "self_attn.q_proj": RNG.standard_normal((N // 100, 100)),
            "mlp.up_proj": np.exp(RNG.standard_normal((N // 50, 50))),
        }.items():
            found[f"model.layers.{layer}.{role}.weight"] = (0.02 * values).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def report(layers: dict[str, np.ndarray]) -> tj.Report:
    return tj.fit(layers, families=FAMILIES)


@pytest.fixture(scope="module")
def path(layers: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(layers, path)
    return path


def test_wins_are_counted_by_role(report: tj.Report) -> None:
    wins = report.wins("role")
    assert wins["q"].wins == {"halfnormal": 3}
    assert wins["up"].wins == {"lognormal": 3}
    assert wins["up"].gain_nats == 0
    q = [r for r in report.values() if r.role == "q"]
    assert wins["q"].gain_nats == pytest.approx(np.mean([r.delta_nats for r in q]))
    assert wins["q"].least_gain_nats == min(r.delta_nats for r in q)
    assert wins["q"].tensors == 3
    assert wins["q"].n == sum(r.moments.n for r in q if r.moments)
    assert set(report.wins("depth")) == {"0", "1", "2"}
    assert report.wins("model")["model"].tensors == 6
    with pytest.raises(tj.UsageError, match="'shape'; needed one of role, depth, model"):
        report.wins("shape")


def test_a_tail_does_not_win_over_families_that_describe_everything(report: tj.Report) -> None:
    for result in report.values():
        assert result.families is not None
        tail = result.families["pareto"]
        assert 50 <= tail.n < result.size / 2
        assert result.best_family != "pareto"
        assert math.isnan(result.gain("pareto"))


def test_rank(report: tj.Report) -> None:
    gaps = [r.lognormal.kl_nats for r in report.rank() if r.lognormal]
    assert len(gaps) == 6
    assert gaps == sorted(gaps, reverse=True)
    assert [r.delta_nats for r in report.rank("delta_nats")] == sorted(r.delta_nats for r in report.values())[::-1]
    with pytest.raises(tj.UsageError, match="rank: found 'size'"):
        report.rank("size")


def test_divergence_of_a_family_is_that_of_the_lognormal_less_its_gain(report: tj.Report) -> None:
    for result in report.values():
        assert result.checks is not None
        assert result.lognormal is not None
        for name in ("lognormal", *FAMILIES[:-1]):
            want = result.lognormal.kl_nats - result.gain(name)
            assert result.checks[name].kl_nats == pytest.approx(want, abs=1e-12)


def test_checks_are_those_of_scipy(report: tj.Report, layers: dict[str, np.ndarray]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    result, x = report[name], np.abs(layers[name].astype(np.float64).reshape(-1))
    assert result.checks is not None
    assert result.families is not None
    weibull = result.families["weibull"].params
    good = result.checks["weibull"].goodness
    assert good is not None
    cdf = stats.weibull_min(weibull["shape"], scale=weibull["scale"]).cdf
    assert good.ks == pytest.approx(stats.kstest(x, cdf).statistic, abs=2e-4)  # at the edges of cells of 0.4-0.8%
    assert good.cvm == pytest.approx(stats.cramervonmises(x, cdf).statistic, rel=1e-2)


def test_universality_by_role(report: tj.Report) -> None:
    found = report.universality("role")
    q = [r.lognormal for r in report.values() if r.role == "q" and r.lognormal]
    columns = (np.asarray([getattr(f, k) for f in q]) for k in ("mu", "mu_se", "sigma", "sigma_se"))
    assert found["q"] == universality(*columns, fan_in=np.full(3, 100.0))
    assert found["up"].scaled_mu is not None
    assert found["up"].scaled_mu.plain_mean == pytest.approx(found["up"].mu.plain_mean + 0.5 * math.log(50))
    assert found["q"].mu.tau < 0.02  # the layers were drawn alike


@pytest.mark.parametrize(
    ("shape", "role", "name", "want"),
    [
        ((30, 20), "q", "layers.0.q_proj.weight", 20),
        ((20, 30), "q", "layers_0/q_proj/kernel", 20),
        ((20, 30), "q", "['layers_0']['q_proj']['kernel']", 20),
        ((8, 3, 5, 5), "conv", "conv.weight", 75),
        ((5, 5, 3, 8), "conv", "conv/kernel", 75),
        ((1, 3, 3, 8), "depthwise_conv", "model/depthwise", 9),
        ((8, 1, 3, 3), "depthwise_conv", "features.0.weight", 9),
        ((30,), "norm", "norm.weight", None),
        ((1000, 20), "embed", "embed.weight", None),
        ((0, 20), "q", "q.weight", None),
    ],
)
def test_fan_in(shape: tuple[int, ...], role: str, name: str, want: int | None) -> None:
    assert fan_in(shape, role, name) == want


def test_groups_of_a_report_are_fitted_as_it_was(layers: dict[str, np.ndarray]) -> None:
    report = tj.fit(layers, families=("weibull",), level=0.5, groups=4)
    group = report.group_by("role")["q"]
    assert group.families is not None
    assert set(group.families) == {"lognormal", "weibull"}
    first = next(iter(report.values()))
    assert first.families is not None
    assert first.families["weibull"].jackknife_se["shape"] > 0
    line = json.loads(report.jsonl().splitlines()[0])["families"]["weibull"]
    assert line["shape_jackknife_se"] == first.families["weibull"].jackknife_se["shape"]
    assert line["shape_se"] == first.families["weibull"].se["shape"]


def test_bootstrap_and_vuong_are_said_where_asked_for(layers: dict[str, np.ndarray]) -> None:
    some = dict(list(layers.items())[:1])
    line = json.loads(tj.fit(some, families=("weibull",), bootstrap=19, vuong=True).jsonl().splitlines()[0])
    weibull, lognormal = line["families"]["weibull"], line["families"]["lognormal"]
    assert weibull["p_value"] == 1 / 20
    assert weibull["replicates"] == 19
    assert weibull["vuong_z"] > 10
    assert "vuong_z" not in lognormal
    assert "p_value" not in json.loads(tj.fit(some).jsonl().splitlines()[0])["families"]["lognormal"]


def test_published_methods(layers: dict[str, np.ndarray]) -> None:
    name, values = next(iter(layers.items()))
    curve = tj.fit({name: values}, method="histogram", bins=50)[name]
    assert curve.families is not None
    assert curve.families["lognormal"].extra["bins"] == 50
    assert curve.lognormal is not None
    assert curve.lognormal.mu == tj.fit({name: values})[name].lognormal.mu  # the record stays maximum likelihood
    assert curve.families["lognormal"].mu != curve.lognormal.mu
    line = tj.fit({name: values}, method="probability-plot")[name]
    assert line.families is not None
    assert line.families["weibull"].shape == pytest.approx(1.2054, abs=0.03)
    assert line.delta_nats == pytest.approx(0.149, abs=0.01)  # 0.163 − 0.0106, and a little for the line


def test_interval_likelihood_is_the_record_too() -> None:
    values = RNG.standard_normal((200, 128))
    scale = np.abs(values).max(axis=1, keepdims=True) / 7
    statistics = {"w": TensorStats.from_codes(np.round(values / scale).astype(np.int8), scale)}
    point, interval = tj.fit(statistics)["w"], tj.fit(statistics, method="interval")["w"]
    assert interval.families is not None
    assert interval.lognormal is not None
    assert point.lognormal is not None
    assert interval.lognormal.mu == interval.families["lognormal"].mu
    assert interval.families["halfnormal"].scale == pytest.approx(1, rel=0.02)
    assert point.families is not None
    assert abs(point.families["halfnormal"].scale - 1) > 0.05
    assert interval.families["halfnormal"].n == values.size  # zeros are a cell like any other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "moments"}, "method: found 'moments'"),
        ({"level": 95}, "level: found 95"),
        ({"bootstrap": -1}, "bootstrap: found -1"),
        ({"xmin": 0.0}, "xmin: found 0.0"),
        ({"families": ["weibull"], "histogram": False}, "needed histograms for weibull"),
        ({"method": "interval", "histogram": False}, "needed histograms for method interval"),
        ({"bins": 3, "method": "histogram"}, "bins"),
        ({"groups": 1}, "groups: found 1"),
    ],
)
def test_options_that_no_fit_can_follow(options: dict, message: str) -> None:
    with pytest.raises(tj.UsageError, match=message):
        tj.fit({"w": np.ones(10, np.float32) * np.arange(1, 11, dtype=np.float32)}, **options)


def test_statistics_need_no_reading_again(layers: dict[str, np.ndarray]) -> None:
    measured = tj.measure(layers)
    again = tj.fit(dict(measured))
    for name, result in tj.fit(measured).items():
        assert again[name].lognormal == result.lognormal
    with pytest.raises(TypeError, match="include: the statistics are measured already"):
        tj.fit(dict(measured), include="q")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--families", "weibull,exponential"], ["families by role", "won by", "weibull 3", "lognormal 3"]),
        (["--universality"], ["layers by role", "tau"]),
        (["--level", "0.9"], ["kl nats ± 1.64 se"]),
    ],
)
def test_tables(path: Path, arguments: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(path), *arguments]) == 0
    out, _ = capsys.readouterr()
    for text in shown:
        assert text in out


def test_gain_leads_the_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(path), "--group-by", "model"]) == 0
    heading = next(line for line in capsys.readouterr().out.splitlines() if "gain" in line)
    assert heading.split()[:4] == ["group", "tensors", "gain", "best"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", "interval"],
        ["--method", "histogram", "--bins", "200"],
        ["--method", "probability-plot", "--grid", "npm-weibull"],
        ["--families", "pareto", "--xmin", "0.03"],
        ["--groups", "5"],
    ],
    ids=lambda a: " ".join(a),
)
def test_commands(path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(path), "--format", "jsonl", *arguments]) == 0
    rows = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    families = rows[0]["families"]
    match arguments[1]:
        case "histogram":
            assert families["lognormal"]["bins"] == 200
        case "probability-plot":
            assert families["weibull"]["shape"] > 0
        case "pareto":
            assert families["pareto"]["xmin"] == pytest.approx(0.03, rel=0.01)
        case "5":
            assert families["lognormal"]["mu_jackknife_se"] > 0
        case _:
            assert families["lognormal"]["n"] == N


def test_a_p_value_of_many_values_comes_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": RNG.standard_normal(150_000).astype(np.float16)}, tmp_path / "m.safetensors")
    assert run(["fit", str(tmp_path), "--families", "halfnormal", "--bootstrap", "3"]) == 0
    assert "above 100,000 values any p-value is small" in capsys.readouterr().err


def test_one_family_needs_no_list(layers: dict[str, np.ndarray]) -> None:
    some = dict(list(layers.items())[:1])
    assert tj.fit(some, families="weibull").options == tj.fit(some, families=["weibull"]).options
    with pytest.raises(tj.UsageError, match="'gaussian'"):
        tj.fit(some, families="gaussian")


LARGEST, LEAST = np.finfo(np.float64).max, 5e-324
EXTREME = {
    "subnormal": np.asarray([LEAST, 1.0, 2.0] * 20),
    "subnormals": np.asarray([LEAST, 2 * LEAST, 1.0, 2.0] * 5000),
    "largest": np.asarray([LARGEST, 1.0, 2.0] * 5000),
}


@pytest.mark.parametrize("method", ["mle", "interval", "histogram", "probability-plot"])
def test_the_ends_of_float64_are_fitted_without_a_warning(method: str) -> None:
    """Together with float32 values the few of float64 meet in coarse cells, the first of which begins at zero."""
    values = {**EXTREME, "usual": RNG.standard_normal(5000).astype(np.float32)}
    for result in tj.fit(values, method=method).group_by("model").values():
        assert result.status == "ok"
    for name, alone in EXTREME.items():
        line = json.loads(tj.fit({name: alone}, method=method).jsonl().splitlines()[0], parse_constant=pytest.fail)
        mean = np.mean(np.log(alone))
        if method == "interval" and name != "largest":  # what is stored as the least number may have been any smaller
            assert -400 < line["mu"] < mean
        else:
            assert line["mu"] == pytest.approx(mean, rel=1e-2)


def test_checks_are_made_of_maxima_alone() -> None:
    result = tj.fit({"w": EXTREME["largest"]}, families="all", vuong=True)["w"]
    assert result.checks is not None
    assert result.families is not None
    assert set(result.checks) == {name for name, fit in result.families.items() if fit.maximised}


def test_tensors_have_bootstrap_replicates_of_their_own(layers: dict[str, np.ndarray]) -> None:
    values = next(iter(layers.values()))[:10]
    report = tj.fit({str(i): values for i in range(4)}, bootstrap=39)
    again = tj.fit({str(i): values for i in range(4)}, bootstrap=39)
    found = [r.checks["halfnormal"].bootstrap for r in report.values() if r.checks]
    assert len({test.p_value for test in found if test}) > 1
    assert found == [r.checks["halfnormal"].bootstrap for r in again.values() if r.checks]


def test_the_gain_of_a_group_weighs_tensors_by_their_values() -> None:
    sizes = {0: 4000, 1: 40_000}
    report = tj.fit(
        {f"layers.{i}.q_proj.weight": RNG.standard_t(3 + 9 * i, n).astype(np.float32) for i, n in sizes.items()}
    )
    gains = np.asarray([r.gain(r.best_bic) for r in report.values()])
    assert abs(gains[0] - gains[1]) > 0.005
    assert report.wins("role")["q"].gain_nats == pytest.approx(gains @ [1, 10] / 11)


def test_universality_takes_the_errors_of_the_jackknife_where_they_are() -> None:
    blocks = np.repeat(np.exp(RNG.standard_normal((2, 10))), 1000, axis=1)  # a scale of its own for every block
    layers = {f"layers.{i}.q_proj.weight": (scale * RNG.standard_normal(10_000)) for i, scale in enumerate(blocks)}
    values = {name: value.astype(np.float32) for name, value in layers.items()}
    report = tj.fit(values, groups=10)
    errors = [r.families["lognormal"].jackknife_se["mu"] for r in report.values() if r.families]
    assert report.universality()["model"].mu.sampling_se == pytest.approx(np.mean(errors))
    assert np.mean(errors) > 5 * tj.fit(values).universality()["model"].mu.sampling_se
