"""Two networks compared: who is paired with whom, what changed and whether it is more than chance, in every form."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import wasserstein_distance

import teleojax as tj
from teleojax.cli import run
from teleojax.report import TensorChange, save_statistics

Z = 1.959963984540054
Q, UP, DOWN = (
    f"model.layers.{i}.{part}.weight" for i, part in ((0, "self_attn.q_proj"), (0, "mlp.up_proj"), (1, "mlp.down_proj"))
)


def layers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        Q: rng.normal(0, 0.02, (60, 50)).astype(np.float32),
        UP: (0.03 * rng.standard_t(3, (70, 60))).astype(np.float32),
        DOWN: rng.lognormal(-4, 1, (60, 70)).astype(np.float32),
    }


def direct(a: np.ndarray, b: np.ndarray) -> float:
    return float(wasserstein_distance(*(np.log(np.abs(v[v != 0].astype(np.float64))) for v in (a, b))))


def test_numbers_are_those_of_the_values() -> None:
    a, b = layers(0), layers(1)
    found = tj.compare(a, b)
    assert isinstance(found, tj.Comparison)
    for name, change in found.items():
        y = [np.log(np.abs(x[name].astype(np.float64))).ravel() for x in (a, b)]
        assert change.w1_log == pytest.approx(direct(a[name].ravel(), b[name].ravel()), rel=1e-9)
        assert change.mu.delta == pytest.approx(y[1].mean() - y[0].mean(), rel=1e-6)
        assert change.sigma.delta == pytest.approx(y[1].std() - y[0].std(), rel=1e-6)
        n = y[0].size
        assert change.mu.se == pytest.approx(math.hypot(y[0].std(), y[1].std()) / math.sqrt(n), rel=1e-6)
        assert change.mu.sign == 0
        assert change.matched == "name"
    kl = [tj.fit(x)[UP].lognormal.kl_nats for x in (a, b)]
    assert found[UP].kl_nats.delta == kl[1] - kl[0]
    assert {c.a.best_bic for c in found.values()} == {"lognormal", "halfnormal"}


def test_a_network_and_itself_are_the_same() -> None:
    found = tj.compare(layers(0), layers(0))
    for change in (*found.values(), *found.roles.values()):
        assert change.w1_log == change.mu.delta == change.sigma.delta == change.kl_nats.delta == 0
        assert change.mu.sign == change.kl_nats.sign == 0
    assert found.summary["mu_changed"] == 0


def test_signs_are_those_of_changes_beyond_their_errors() -> None:
    a = layers(0)
    n, sigma = a[Q].size, np.log(np.abs(a[Q])).std()
    edge = Z * math.sqrt(2 / n) * sigma  # the least change of mu that counts, sigma unchanged
    for factor, sign in ((0.98, 0), (1.02, 1), (-0.98, 0), (-1.02, -1)):
        b = a | {Q: (a[Q] * np.exp(factor * edge)).astype(np.float32)}
        found = tj.compare(a, b)
        assert (found[Q].mu.sign, found[Q].sigma.sign, found[UP].mu.sign) == (sign, 0, 0)
        assert found[Q].w1_log == pytest.approx(abs(factor) * edge, rel=1e-4)
    assert tj.compare(a, b, level=0.99)[Q].mu.sign == 0


def test_quantisation_moves_little_and_says_how_much() -> None:
    a = layers(0)
    b = {name: x.astype(ml_dtypes.bfloat16) for name, x in a.items()}
    coarse = {name: x.astype(ml_dtypes.float8_e5m2) for name, x in a.items()}
    little, more, other = tj.compare(a, b), tj.compare(a, coarse), tj.compare(a, layers(1))
    for name, x in a.items():
        assert little[name].w1_log == pytest.approx(direct(x.ravel(), b[name].ravel()), rel=1e-6)
        assert more[name].w1_log == pytest.approx(direct(x.ravel(), coarse[name].ravel()), rel=1e-6)
        assert little[name].w1_log < 2**-8  # half a step of bfloat16
        assert little[name].w1_log < other[name].w1_log
        assert little[name].w1_log < more[name].w1_log
        assert (little[name].a.dtype, little[name].b.dtype) == ("float32", "bfloat16")


def rename(x: Mapping[str, np.ndarray], names: dict[str, str]) -> dict[str, np.ndarray]:
    return {names.get(name, name): value for name, value in x.items()}


def test_pairs_by_name_prefix_and_place() -> None:
    names = {UP: f"base_model.model.{UP}", DOWN: "transformer.h.1.mlp.c_proj.weight"}
    a = layers(0) | {"lost": np.ones(5, np.float32), "ids": np.arange(3)}
    b = rename(layers(1), names) | {"new": np.ones(6, np.float32), "other_ids": np.arange(3)}
    found = tj.compare(a, b)
    assert {(n, c.b.name, c.matched) for n, c in found.items()} == {
        (Q, Q, "name"), (UP, names[UP], "prefix"), (DOWN, names[DOWN], "shape"),
    }  # fmt: skip
    assert [r.name for r in found.only_a] == ["lost"]
    assert [r.name for r in found.only_b] == ["new"]
    assert found.summary | {"by_name": 1, "by_prefix": 1, "by_shape": 1, "only_a": 1, "only_b": 1} == found.summary
    assert found[DOWN].w1_log == pytest.approx(direct(a[DOWN].ravel(), b[names[DOWN]].ravel()), rel=1e-9)


def test_names_and_their_prefixes_come_before_shapes() -> None:
    x = layers(0)[Q]
    a = {"model.layers.0.self_attn.q_proj.weight": x, "module.model.layers.0.self_attn.k_proj.weight": x}
    b = {"model.layers.0.self_attn.k_proj.weight": x, "module.layers.0.self_attn.q_proj.weight": x}
    assert {n: (c.b.name, c.matched) for n, c in tj.compare(a, b).items()} == {
        "model.layers.0.self_attn.q_proj.weight": ("module.layers.0.self_attn.q_proj.weight", "prefix"),
        "module.model.layers.0.self_attn.k_proj.weight": ("model.layers.0.self_attn.k_proj.weight", "prefix"),
    }


def test_what_is_ambiguous_or_unknown_is_not_paired() -> None:
    x = layers(0)[Q]
    twins = tj.compare(
        {"layers.0.attn.q_proj.weight": x},
        {"h.0.attn.q_proj.weight": x, "blocks.0.attn.q_proj.weight": x},
    )
    assert len(twins) == 0
    assert len(twins.only_b) == 2
    assert len(tj.compare({"a": x}, {"b": x})) == 0  # no role
    assert len(tj.compare({"layers.0.attn.q_proj.weight": x}, {"h.1.attn.q_proj.weight": x})) == 0  # another depth
    both = tj.compare({"model.w": x, "module.w": x}, {"w": x})
    assert len(both) == 0


def test_roles_merge_what_was_paired() -> None:
    a, b = layers(0), layers(1)
    more = "model.layers.1.mlp.up_proj.weight"
    a, b = a | {more: 2 * a[UP], "model.layers.9.mlp.up_proj.weight": 9 * a[UP]}, b | {more: 2 * b[UP]}
    found = tj.compare(a, b)
    assert list(found.roles) == ["down", "q", "up"]
    up = found.roles["up"]
    assert up.tensors == 2
    whole = [np.concatenate([x[UP].ravel(), x[more].ravel()]) for x in (a, b)]
    y = [np.log(np.abs(v.astype(np.float64))) for v in whole]
    assert up.mu.delta == pytest.approx(y[1].mean() - y[0].mean(), rel=1e-6)
    assert up.w1_log == pytest.approx(direct(*whole), abs=0.002)  # 8400 values: cells of 0.8%
    assert up.w1_log > 0.01


def test_every_kind_of_input_gives_the_same(tmp_path: Path) -> None:
    for side, seed in (("a", 0), ("b", 1)):
        save_file(layers(seed), tmp_path / f"{side}.safetensors")
        measured = tj.measure(tmp_path / f"{side}.safetensors")
        save_statistics(measured, tmp_path / f"{side}.stats")
        tj.fit(measured).to_jsonl(tmp_path / f"{side}.jsonl")
    want = numbers(tj.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    a, b = tmp_path / "a.stats", tmp_path / "b.stats"
    assert numbers(tj.compare(a, str(b))) == want
    assert numbers(tj.compare(tj.fit(a), tj.load_statistics(b))) == want
    read = tj.compare(tmp_path / "a.jsonl", tj.load_report(tmp_path / "b.jsonl"))
    assert {n: v[:-1] for n, v in numbers(read).items()} == {n: v[:-1] for n, v in want.items()}
    assert read.roles == {}
    assert {c.reason for c in read.values()} == {"no histograms on both sides"}
    assert all(math.isnan(c.w1_log) for c in read.values())


def numbers(found: tj.Comparison) -> dict[str, tuple[float, ...]]:
    def row(c: TensorChange) -> tuple[float, ...]:
        return (c.mu.delta, c.mu.se, c.sigma.delta, c.kl_nats.delta, c.kl_nats.se, c.w1_log)

    return {name: row(change) for name, change in found.items()}


def test_tensors_without_a_fit_have_a_reason_and_no_sign() -> None:
    a = {"x": np.full(9, 0.5, np.float32), "y": np.zeros(9, np.float32), "z": np.arange(3), "w": np.arange(3)}
    b = {"x": np.full(9, 0.7, np.float32), "y": np.ones(9, np.float32), "z": np.ones(3, np.float32), "w": np.arange(3)}
    found = tj.compare(a, b)
    assert list(found) == ["x", "y", "z"]
    assert found["x"].mu.delta == pytest.approx(math.log(1.4), rel=1e-6)
    assert found["x"].w1_log == pytest.approx(math.log(1.4), rel=1e-6)
    assert found["x"].mu.sign is None
    assert found["y"].reason == "a: no finite non-zero value; b: all |values| are equal"
    assert "integer type" in (found["z"].reason or "")
    assert math.isnan(found["z"].w1_log)
    for line in found.jsonl().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_refusals() -> None:
    report = tj.fit(layers(0))
    with pytest.raises(tj.UsageError, match="level"):
        tj.compare(report, report, level=1.0)
    with pytest.raises(tj.UsageError, match="families with results that are fitted already"):
        tj.compare(report, report, families="weibull")
    with pytest.raises(tj.UsageError, match="a report by groups"):
        tj.compare(report.group_by("role"), report)
    with pytest.raises(tj.UsageError, match="whole tensors"):
        tj.compare(layers(0), layers(1), axis=0)


def test_without_histograms_there_are_moments() -> None:
    found = tj.compare(layers(0), layers(1), histogram=False)
    want = tj.compare(layers(0), layers(1))
    for name, change in (*found.items(), *found.roles.items()):
        other = want.roles[name] if name in want.roles else want[name]
        assert change.mu.delta == pytest.approx(other.mu.delta, abs=1e-9)
        assert math.isnan(change.w1_log)
        assert math.isnan(change.kl_nats.delta)
        assert change.kl_nats.sign is None
        assert change.reason is not None


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    b = rename(layers(1), {UP: f"module.{UP}"}) | {"[b]\x1b<i>|$": np.ones(5, np.float32)}
    save_file(layers(0), tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    return str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")


def test_command(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *files]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    text = " ".join(out.split())
    for part in ("w1 ln|w|", f"{UP} → module.{UP} prefix", "by role", "only in b.safetensors", r"[b]\x1b<i>|$"):
        assert part in text
    assert run(["compare", *files, "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r.get("kind") for r in rows] == ["tensor"] * 3 + ["role"] * 3 + ["only_b", None]
    want = tj.compare(*files)
    assert rows[-1]["summary"] == want.summary
    by_name = {r["name_a"]: r for r in rows[:3]}
    assert by_name[UP]["matched"] == "prefix"
    assert by_name[UP]["w1_log"] == want[UP].w1_log
    assert by_name[UP]["d_mu"] == want[UP].mu.delta
    assert run(["compare", *files, "-o", str(tmp_path / "c.csv")]) == 0
    table = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text(encoding="utf-8"))))
    assert [float(r["w1_log"]) for r in table[:3]] == [r["w1_log"] for r in rows[:3]]
    assert table[0]["shape_a"] == "x".join(map(str, layers(0)[table[0]["name_a"]].shape))


def test_exit_codes(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, _ = files
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(a).read_bytes()[:-1000])
    (tmp_path / "r.jsonl").write_text("{", encoding="utf-8")
    assert run(["compare", a, str(tmp_path / "none")]) == 3
    assert run(["compare", a, str(cut)]) == 3
    assert run(["compare", a, str(tmp_path / "r.jsonl")]) == 3
    assert run(["compare", a]) == 2
    assert run(["compare", "-", "-"]) == 2
    assert run(["compare", a, a, "--families", "nothing"]) == 2
    assert run(["compare", a, a, "--include", "("]) == 2
    assert run(["compare", a, str(tmp_path / "r.jsonl"), "--include", "q"]) == 2
    assert run(["compare", a, a, "-o", str(tmp_path / "no" / "c.csv")]) == 2
    assert capsys.readouterr().out == ""


def test_selected_tensors_alone(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *files, "--include", "q_proj", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r.get("kind"), r.get("name_a")) for r in rows[:-1]] == [("tensor", Q), ("role", "q")]


def test_a_stream_that_ends_early_leaves_a_comparison_and_status_4(files: tuple[str, str]) -> None:
    whole = Path(files[0]).read_bytes()
    command = [sys.executable, "-m", "teleojax", "compare", files[0], "-", "--format", "jsonl"]
    done = subprocess.run(command, input=whole[:-1000], capture_output=True, check=False)
    assert done.returncode == 4
    assert b"not measured" in done.stderr
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    tensors = [r for r in rows if r.get("kind") == "tensor"]
    assert len(tensors) == 3
    lost = [r for r in tensors if r["w1_log"] is None]
    assert len(lost) == 1
    assert lost[0]["reason"].startswith("b: ")
    assert all(r["w1_log"] == 0 for r in tensors if r not in lost)
