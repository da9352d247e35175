"""A run over its checkpoints: which steps there are, every number that of the checkpoint alone, what is read twice."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from matplotlib import pyplot as plt
from safetensors.numpy import save_file

import teleojax as tj
from teleojax.cli import run
from teleojax.diagnose import change_points
from teleojax.report import save_statistics
from teleojax.report.plots import plot_trajectory, save_figure
from teleojax.report.trajectory._result import CHANGING, STATS
from teleojax.report.trajectory._steps import checkpoints_of, step_of

COMMAND = [sys.executable, "-m", "teleojax", "track"]
STEPS = tuple(range(0, 241, 20))
FROZEN = 120  # from here on nothing is learnt
NAMES = ["layers.0.mlp.down_proj.weight", "layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight", "scale"]
Tensors = dict[str, np.ndarray]


def trained() -> dict[int, Tensors]:
    """The parameters of a small network at STEPS of its training, which ends at FROZEN; `scale` begins as zeros."""
    keys = jax.random.split(jax.random.key(3), 5)
    shapes = ((24, 40), (16, 24), (40, 4))
    params = {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for name, key, shape in zip(NAMES, keys, shapes, strict=False)
    } | {"scale": jnp.zeros(40)}
    x = jax.random.normal(keys[3], (256, 16))
    y = jnp.sin(x @ jax.random.normal(keys[4], (16, 4)))

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        h = jnp.tanh(x @ p[NAMES[1]])
        h = jnp.tanh(h @ p[NAMES[0]] + p["scale"])
        return jnp.mean(jnp.square(h @ p[NAMES[2]] - y))

    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(p: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimiser.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    state, found = optimiser.init(params), {}
    for i in range(STEPS[-1] + 1):
        if i in STEPS:
            found[i] = {name: np.asarray(w) for name, w in params.items()}
        if i < FROZEN:
            params, state = step(params, state)
    return found


@pytest.fixture(scope="module")
def weights() -> dict[int, Tensors]:
    return trained()


@pytest.fixture(scope="module")
def saved(weights: dict[int, Tensors], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for step, tensors in weights.items():
        save_file(tensors, folder / f"step_{step}.safetensors")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the run, times of change and all."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture(scope="module")
def followed(saved: Path) -> tj.Trajectory:
    return tj.track(saved, families=("lognormal", "halfnormal", "exponential"))


def rows(path: Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()]


def comparable(result: tj.TensorFit) -> dict[str, Any]:
    return result.to_dict()


# --- names and folders


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step_1000.safetensors", 1000),
        ("ckpt-00012", 12),
        ("1000", 1000),
        ("000100", 100),
        ("global_step1000", 1000),
        ("epoch=3-step=900.ckpt", 900),
        ("epoch=3-step=900-v1.ckpt", 900),
        ("iter_0000500", 500),
        ("step1000-unsharded", 1000),
        ("step2000-tokens8B", 2000),
        ("model_step_7.safetensors.zst", 7),
        ("params_shape_iteration-40.npz", 40),
        ("Step-5.PT", 5),
        ("epoch_3.pt", 3),
        ("loss=0.12-step=30.ckpt", 30),
        ("weights.20.h5", 20),
        ("model-7.gguf", 7),
        ("model-00001-of-00002.safetensors", None),
        ("gpt2-500.safetensors", None),
        ("model.safetensors", None),
        ("h5.h5", 5),
        ("step_" + "9" * 40, None),
        ("stepping", None),
        ("", None),
    ],
)
def test_step_of_a_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_in_a_folder_only_names_that_say_so_count() -> None:
    assert step_of("model-7.gguf", plain=False) is None
    assert step_of("layer_3.npy", plain=False) is None
    assert step_of("checkpoint-500", plain=False) == 500
    assert step_of("20", plain=False) == 20


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.ones(3, np.float32)}, path)


def test_a_run_of_a_trainer_with_all_that_lies_about(tmp_path: Path) -> None:
    for step in (1000, 500, 20):
        for shard in (1, 2):
            touch(tmp_path / f"checkpoint-{step}" / f"model-0000{shard}-of-00002.safetensors")
        touch(tmp_path / f"checkpoint-{step}" / f"global_step{step}" / "model.safetensors")
    touch(tmp_path / "tmp-checkpoint-700" / "model.safetensors")
    touch(tmp_path / "model.safetensors")
    touch(tmp_path / ".step_3.safetensors")
    (tmp_path / "checkpoint-900").mkdir()
    (tmp_path / "step_4.json").write_text("{}", encoding="utf-8")
    (tmp_path / "events.out.tfevents.123").write_bytes(b"\x18" + bytes(30))
    found = checkpoints_of(tmp_path)
    assert [(c.step, c.name) for c in found] == [(s, f"checkpoint-{s}") for s in (20, 500, 1000)]
    again = checkpoints_of([tmp_path / "checkpoint-500", str(tmp_path / "checkpoint-20")])
    assert [(c.step, c.target) for c in again] == [(s, str(tmp_path / f"checkpoint-{s}")) for s in (20, 500)]
    shards = [tmp_path / f"checkpoint-{s}" / "model-00001-of-00002.safetensors" for s in (20, 500)]
    assert [c.step for c in checkpoints_of(shards)] == [20, 500]  # the folder above says it


def test_patterns_and_mappings(tmp_path: Path) -> None:
    for n in (1, 2):
        touch(tmp_path / f"gpt2-{n}00-of-9.safetensors")
    pattern = r"gpt2-(\d+)-of"
    assert [c.step for c in checkpoints_of(tmp_path, pattern)] == [100, 200]
    assert [c.step for c in checkpoints_of(sorted(tmp_path.iterdir()), r"(?<=gpt2-)\d+")] == [100, 200]
    found = checkpoints_of({np.int64(7): {"w": np.ones(3)}, 2: tmp_path / "gpt2-100-of-9.safetensors"})
    assert [(c.step, c.name, c.is_path) for c in found] == [
        (2, "gpt2-100-of-9.safetensors", True), (7, "step 7", False),
    ]  # fmt: skip


def test_an_address_keeps_its_slashes() -> None:
    (found,) = checkpoints_of(["https://example.org/run/step_100/model.safetensors"])
    assert (found.step, found.target) == (100, "https://example.org/run/step_100/model.safetensors")


@pytest.mark.parametrize(
    ("targets", "how", "message"),
    [
        (["a/gpt2-500.safetensors"], {}, r"a name without a step, or with several.*--step-pattern"),
        (
            ["x/step_1.npy", "y/step_1.npy"],
            {},
            r"y/step_1.npy: found step 1, which x/step_1.npy has too.*--step-pattern",
        ),
        (["step_1.npy"], {"step_pattern": "("}, "regular expression"),
        (["step_1.npy"], {"step_pattern": "run"}, "without a step"),
        (["-"], {}, "standard input"),
        ([{"w": np.ones(3)}], {}, "a dict among paths.*Give {step: parameters}"),
        ({"w": np.ones(3)}, {}, "the key 'w'"),
        ({-1: {"w": np.ones(3)}}, {}, "the key -1"),
        ({True: {"w": np.ones(3)}}, {}, "the key True"),
        ({1: {"w": np.ones(3)}}, {"axis": 0}, "axis"),
        ({1: {"w": np.ones(3)}}, {"resume": "x"}, "resume"),
        ({1: {"w": np.ones(3)}}, {"multiprocess": True}, "multiprocess"),
        ({1: {"w": np.ones(3)}}, {"families": "nothing"}, "nothing"),
        ({1: {"w": np.ones(3)}}, {"include": "("}, "regular expression"),
    ],
)
def test_refusals(
    targets: Any, how: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (t for t in targets if isinstance(targets, list) and isinstance(t, str) and t != "-"):
        touch(tmp_path / name)
    with pytest.raises(tj.UsageError, match=message):
        tj.track(targets, **how)


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    touch(tmp_path / "inner" / "model.safetensors")
    with pytest.raises(tj.InputError, match="without checkpoints that have a step"):
        tj.track(tmp_path)
    for name in ("step_5.npz", "none"):
        with pytest.raises(tj.InputError, match="no such file"):
            tj.track([tmp_path / name])


# --- numbers


def test_every_number_is_that_of_the_checkpoint_alone(followed: tj.Trajectory, saved: Path) -> None:
    assert followed.steps == STEPS
    assert list(followed) == NAMES
    for i, step in enumerate(STEPS):
        alone = tj.fit(saved / f"step_{step}.safetensors", families=("lognormal", "halfnormal", "exponential"))
        for name in NAMES:
            tracked = followed[name].results[i]
            assert tracked is not None
            assert comparable(tracked) == comparable(alone[name])
            assert followed[name].values("mu")[i] == pytest.approx(
                getattr(alone[name].lognormal, "mu", np.nan), nan_ok=True
            )
            assert followed[name].values("n_zero")[i] == alone[name].moments.n_zero
            assert followed[name].values("delta_nats")[i] == pytest.approx(alone[name].delta_nats, nan_ok=True)
            for stat, error in (("mu", "mu_se"), ("sigma", "sigma_se"), ("kl_nats", "kl_se")):
                want = getattr(alone[name].lognormal, error, math.nan) if alone[name].status == "ok" else math.nan
                assert followed[name].errors(stat)[i] == pytest.approx(want, nan_ok=True)
    assert np.isnan(followed["scale"].values("mu")[0])
    assert np.isfinite(followed["scale"].values("mu")[1:]).all()
    assert followed.summary | {"measured": len(STEPS), "kept": 0, "tensors": 4, "failed": 0} == followed.summary
    assert followed[NAMES[0]].role == "down"


def test_errors_of_alpha_and_beta_are_those_of_replicates() -> None:
    rng = np.random.default_rng(0)
    mu, sigma, n = -2.0, 0.8, 4000
    drawn = {i: {"w": np.exp(rng.normal(mu, sigma, n)).astype(np.float32)} for i in range(120)}
    found = tj.track(drawn, histogram=False, families="lognormal")["w"]
    for stat in ("mu", "sigma", "alpha", "beta"):
        spread = found.values(stat).std(ddof=1)
        assert np.median(found.errors(stat)) == pytest.approx(spread, rel=5 / math.sqrt(2 * 119))


def test_changes_are_those_of_the_series(followed: tj.Trajectory) -> None:
    x = np.asarray(STEPS)
    n = 0
    for name, tensor in followed.items():
        for stat in CHANGING:
            want = change_points(x, tensor.values(stat), tensor.errors(stat))
            got = tensor.changes_of(stat)
            assert [c.line for c in got] == list(want)
            assert [(c.name, c.step, c.previous_step) for c in got] == [(name, p.x, p.previous) for p in want]
            n += len(want)
    assert n == followed.summary["changes"] == len(followed.changes) > 0
    assert {c.step for name in NAMES[:2] for c in followed[name].changes_of("mu")} <= {FROZEN, FROZEN + 20}


def test_a_layer_that_doubles_is_found_at_its_step() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=5000).astype(np.float32)
    targets = {
        100 * i: {"w": w * np.float32(2 if i >= 6 else 1) * np.float32(1 + 0.01 * rng.normal()), "still": w}
        for i in range(14)
    }
    found = tj.track(targets)
    (change,) = found["w"].changes_of("mu")
    assert (change.step, change.previous_step) == (600, 500)
    assert change.line is not None
    assert change.line.after - change.line.before == pytest.approx(math.log(2), abs=0.05)
    assert found["w"].changes_of("sigma") == []
    assert found["still"].changes == ()


def test_pruning_is_a_change_of_zeros() -> None:
    rng = np.random.default_rng(2)
    targets = {}
    for i in range(12):
        w = rng.normal(size=1000).astype(np.float32)
        w[: 500 * (i >= 5)] = 0
        targets[i] = {"w": w}
    (change,) = tj.track(targets)["w"].changes_of("n_zero")
    assert (change.step, change.line.before, change.line.after) == (
        5,
        pytest.approx(0, abs=1),
        pytest.approx(500, abs=1),
    )


def test_tensors_that_appear_and_vanish() -> None:
    rng = np.random.default_rng(0)
    w = {name: rng.normal(size=50).astype(np.float32) for name in ("always", "late", "early", "ids")}
    w["ids"] = np.arange(50)
    targets = {
        10: {n: w[n] for n in ("always", "early", "ids")},
        20: {n: w[n] for n in ("always", "early")},
        30: {n: w[n] for n in ("always", "late")},
    }
    found = tj.track(targets)
    assert set(found) == {"always", "late", "early"}
    assert found["late"].results[:2] == (None, None)
    assert np.isnan(found["late"].values("mu")).tolist() == [True, True, False]
    (late,), (early,) = found["late"].changes, found["early"].changes
    assert (late.stat, late.step, late.previous_step, late.present) == ("present", 30, 20, True)
    assert (early.stat, early.step, early.present) == ("present", 30, False)
    assert late.to_dict() | {"before": 0, "after": 1, "gain": None} == late.to_dict()
    assert found["always"].changes == ()
    html = found._repr_html_()
    assert "since 30" in html
    assert "gone 30" in html
    with pytest.raises(tj.UsageError, match="stat"):
        found["late"].values("nothing")


def test_selection_and_families(saved: Path) -> None:
    found = tj.track(saved, include="down", families="weibull", min_size=10)
    assert list(found) == [NAMES[0]]
    assert set(found[NAMES[0]].results[0].families) == {"lognormal", "weibull"}
    assert len(found.points[0].report) == 1  # what is left out is in the totals alone
    assert found.points[0].report.summary["skipped"] == 3


def test_orbax_statistics_and_results_are_checkpoints_too(
    weights: dict[int, Tensors], followed: tj.Trajectory, tmp_path: Path
) -> None:
    chosen = STEPS[:3]
    with ocp.CheckpointManager(tmp_path / "orbax", options=ocp.CheckpointManagerOptions(max_to_keep=None)) as manager:
        for step in chosen:
            manager.save(step, args=ocp.args.StandardSave({k: jnp.asarray(v) for k, v in weights[step].items()}))
        manager.wait_until_finished()
    (tmp_path / "stats").mkdir()
    for step in chosen:
        save_statistics(tj.measure(weights[step]), tmp_path / "stats" / f"step_{step}.stats")
    families = ("lognormal", "halfnormal", "exponential")
    for targets in (tmp_path / "orbax", tmp_path / "stats", {s: tj.fit(weights[s], families=families) for s in chosen}):
        found = tj.track(targets, families=families)
        assert found.steps == chosen
        for name in NAMES:
            for stat in STATS:
                np.testing.assert_allclose(found[name].values(stat), followed[name].values(stat)[:3], rtol=1e-12)


# --- the file


def test_lines_of_the_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    found = tj.track(folder, out=out)
    lines = rows(out)
    assert lines[0] == {"kind": "run", "options": {"families": ["lognormal", "halfnormal"]}}
    assert [r["step"] for r in lines if r.get("kind") == "step"] == list(STEPS)
    tensors = [r for r in lines if r.get("kind") == "tensor"]
    assert [(r["step"], r["name"]) for r in tensors] == [(s, n) for s in STEPS for n in NAMES]
    alone = {s: tj.fit(folder / f"step_{s}.safetensors") for s in STEPS}
    for row in tensors:
        assert row == {"kind": "tensor", "step": row["step"], **alone[row["step"]][row["name"]].to_dict()}
    changes = [r for r in lines if r.get("kind") == "change"]
    assert changes == [c.to_dict() for c in found.changes]
    assert len(changes) > 0
    assert lines[-1] == {"summary": found.summary}
    assert found.jsonl() == out.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_steps_in_the_file_are_not_read_again(folder: Path, tmp_path: Path) -> None:
    out, later = tmp_path / "run.jsonl", tmp_path / "later"
    later.mkdir()
    for step in STEPS[5:]:
        shutil.move(folder / f"step_{step}.safetensors", later)
    assert tj.track(folder, out=out).summary["measured"] == 5
    gone, spoilt = (folder / f"step_{step}.safetensors" for step in STEPS[:2])
    gone.unlink()
    status, size = spoilt.stat(), spoilt.stat().st_size
    with spoilt.open("r+b") as f:  # the values become NaN; header, size and time stay: only a reader could tell
        f.seek(size - 4000)
        f.write(b"\xff" * 4000)
    os.utime(spoilt, ns=(status.st_atime_ns, status.st_mtime_ns))
    for path in later.iterdir():
        shutil.move(path, folder)
    seen: list[int] = []
    found = tj.track(folder, out=out, progress=lambda done, _: seen.append(done))
    assert (found.summary["measured"], found.summary["kept"]) == (len(STEPS) - 5, 5)
    assert found.steps == STEPS
    assert [p.kept for p in found.points] == [True] * 5 + [False] * (len(STEPS) - 5)
    n_bytes = 4 * sum(r.size for r in found.points[0].report.values())
    assert seen.count(n_bytes) == len(STEPS) - 5  # as often as a checkpoint was read to its end
    fresh = tj.track(trained())
    for name in NAMES:
        for stat in ("mu", "sigma", "kl_nats", "n", "n_nonfinite"):
            np.testing.assert_array_equal(found[name].values(stat), fresh[name].values(stat))
        assert found[name].changes == fresh[name].changes
    assert tj.track(folder, out=out).summary["measured"] == 0


def test_a_checkpoint_that_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    tj.track(folder, out=out)
    before = out.read_bytes()
    path = folder / f"step_{STEPS[2]}.safetensors"
    os.utime(path, ns=(1, 1))
    touch(folder / "step_900.safetensors")
    with pytest.raises(
        tj.UsageError, match=rf"step_{STEPS[2]}.safetensors: found another checkpoint.*remove .*run.jsonl"
    ):
        tj.track(folder, out=out)
    assert out.read_bytes() == before  # and nothing new was measured before it was told


def test_a_file_of_other_options_or_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    tj.track(folder, out=out, include="up_proj")
    before = out.read_bytes()
    assert json.loads(before.splitlines()[0])["options"]["include"] == "up_proj"
    for how in ({}, {"include": "down"}, {"include": "up_proj", "families": "weibull"}):
        with pytest.raises(tj.UsageError, match=r"found a run with .*up_proj.*needed one with"):
            tj.track(folder, out=out, **how)
    tj.track(folder, out=out, include="up_proj", split=True, budget_bytes=1 << 27)  # defaults, and what changes nothing
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    wrong = {
        "not of a run": "".join(lines[1:]),
        "cut in a line": "".join(lines)[:-20],
        "without the end of a step": "".join(lines[:2]),
        "a step twice": "".join([*lines[:4], lines[3]]),
        "another number": "".join(lines).replace('"delta_nats": 0', '"delta_nats": 1', 1),
        "not JSON": "hello\n",
        "nothing": "",
    }
    for what, text in wrong.items():
        out.write_text(text, encoding="utf-8")
        with pytest.raises(tj.CorruptInputError, match=r"run\.jsonl"):
            tj.track(folder, out=out, include="up_proj")
        assert out.read_text(encoding="utf-8") == text, what
    out.write_bytes(b"\xff\xfe")
    with pytest.raises(tj.CorruptInputError, match="UTF-8"):
        tj.track(folder, out=out)


def test_arrays_go_into_a_file_step_by_step(weights: dict[int, Tensors], tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    for step in STEPS:
        found = tj.track({step: weights[step]}, out=out)  # as from a training loop
    assert found.steps == STEPS
    assert found.summary["measured"] == 1
    whole = tj.track(weights)
    for name in NAMES:
        np.testing.assert_array_equal(found[name].values("kl_nats"), whole[name].values("kl_nats"))
        assert found[name].changes == whole[name].changes
    again = tj.track({STEPS[0]: weights[STEPS[1]]}, out=out)  # has no identity: measured, and in its place
    assert again["scale"].values("n_zero")[0] == found["scale"].values("n_zero")[1]
    assert tj.track([], out=out).steps == STEPS


KILLED = """
import sys, time, teleojax as tj
steps = []
def progress(done, total):
    if done == total:
        steps.append(done)
    if len(steps) == 4:
        print("waiting", flush=True)
        time.sleep(600)
tj.track(sys.argv[1], out=sys.argv[2], progress=progress)
"""


def test_a_killed_run_keeps_its_finished_steps(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(out)], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    kinds = [r["kind"] for r in rows(out)]
    assert kinds == ["run", *(["tensor"] * 4 + ["step"]) * 3]
    found = tj.track(folder, out=out)
    assert (found.summary["measured"], found.summary["kept"]) == (len(STEPS) - 3, 3)
    assert found.jsonl() == out.read_text(encoding="utf-8")


def test_a_run_that_is_stopped_returns_what_is_finished(folder: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def stop() -> str | None:
        return "enough" if len(calls) >= 3 else None

    def progress(done: int, total: int) -> None:
        if done == total:
            calls.append(done)

    found = tj.track(folder, out=tmp_path / "run.jsonl", progress=progress, stop=stop)
    assert found.steps == STEPS[:3]
    assert tj.track(folder, stop=lambda: "at once").steps == ()


def broken(path: Path, tensors: Tensors) -> None:
    """An archive of which one member does not decompress."""
    np.savez_compressed(path, **tensors)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"w.npy") + 200
    raw[at : at + 50] = bytes(50)
    path.write_bytes(raw)


def test_a_step_with_a_tensor_that_failed_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=2000).astype(np.float32) for name in ("a", "w")}
    np.savez(tmp_path / "step_1.npz", **tensors)
    broken(tmp_path / "step_2.npz", tensors)
    out = tmp_path / "run.jsonl"
    assert run(["track", str(tmp_path), "-o", str(out)]) == 4
    err = capsys.readouterr().err
    assert "step_2.npz: w: not measured" in err
    assert "2 steps: 2 read, 0 kept" in err
    assert {(r["step"], r["name"]): r["status"] for r in rows(out) if r.get("kind") == "tensor"}[2, "w"] == "failed"
    np.savez(tmp_path / "step_2.npz", **tensors)
    assert run(["track", str(tmp_path), "-o", str(out)]) == 0
    assert "2 steps: 1 read, 1 kept" in capsys.readouterr().err


# --- the command


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False)


def test_command_in_processes(folder: Path, tmp_path: Path) -> None:
    out, figure = tmp_path / "run.jsonl", tmp_path / "run.png"
    first = command(folder, "-o", out, "--figure", figure)
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert first.stderr == f"teleojax: {len(STEPS)} steps: {len(STEPS)} read, 0 kept\n"
    assert plt.imread(figure).shape[0] > 800
    numbers = [r for r in rows(out) if r.get("kind") == "tensor"]
    (folder / f"step_{STEPS[0]}.safetensors").unlink()
    touch(folder / "step_500.safetensors")
    again = command(folder, "-o", out)
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert again.stderr == f"teleojax: {len(STEPS) + 1} steps: 1 read, {len(STEPS)} kept\n"
    assert [r for r in rows(out) if r.get("kind") == "tensor"][:-1] == numbers


def test_table(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["track", str(saved)]) == 0
    out, _ = capsys.readouterr()
    text = " ".join(out.split())
    assert f"step_0.safetensors → step_{STEPS[-1]}.safetensors: {len(STEPS)} steps, 4 tensors" in text
    followed = tj.track(saved)
    for name in NAMES[:3]:
        mu = followed[name].values("mu")
        (line,) = (line for line in out.splitlines() if line.lstrip().startswith(name))
        assert f"{mu[0]:.4f} → {mu[-1]:.4f}" in line
        for change in followed[name].changes_of("mu"):
            assert str(change.step) in line


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_other_forms(form: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["track", str(saved), "--format", form]) == 0
    out = capsys.readouterr().out
    if form == "csv":
        found = list(csv.DictReader(io.StringIO(out)))
        assert [(int(r["step"]), r["name"]) for r in found] == [(s, n) for s in STEPS for n in NAMES]
        assert run(["track", str(saved), "-o", str(tmp_path / "r.csv")]) == 0
        assert len((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()) == len(out.splitlines())
    else:
        assert "summary" in json.loads(out.splitlines()[-1])


def test_exit_codes(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "step_1.safetensors"
    cut.write_bytes((saved / "step_0.safetensors").read_bytes()[:-100])
    one = str(saved / "step_0.safetensors")
    for arguments, code in (
        ([], 2),
        ([str(tmp_path / "step_2.npz")], 3),
        ([str(cut)], 3),
        ([one, one], 2),
        (["-"], 2),
        ([one, "--families", "nothing"], 2),
        ([one, "--step-pattern", "("], 2),
        ([one, "--include", "("], 2),
        ([one, "-o", str(tmp_path / "no" / "r.jsonl")], 2),
        ([one, "--figure", str(tmp_path / "no" / "r.png")], 2),
        ([one, "--figure", str(tmp_path / "r.nothing")], 2),
    ):
        assert run(["track", *arguments]) == code, arguments
        assert "Traceback" not in capsys.readouterr().err


def test_a_signal_keeps_what_is_finished(tmp_path: Path) -> None:
    big = np.random.default_rng(0).normal(size=24 << 20).astype(np.float16)
    save_file({"w": big}, tmp_path / "step_0.safetensors")
    for step in range(1, 40):
        os.link(tmp_path / "step_0.safetensors", tmp_path / f"step_{step}.safetensors")
    out = tmp_path / "run.jsonl"
    with subprocess.Popen([*COMMAND, str(tmp_path), "-o", str(out)], stderr=subprocess.PIPE) as child:
        until(out.exists)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert child.returncode == 130, err
    assert b"Traceback" not in err
    lines = rows(out)
    done = [r["step"] for r in lines if r.get("kind") == "step"]
    assert done == list(range(len(done)))
    assert 1 <= len(done) < 40
    assert "summary" in lines[-1]


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- other libraries, figures


def test_frames_have_the_numbers(followed: tj.Trajectory) -> None:
    frame = followed.to_polars()
    assert frame.height == len(STEPS) * len(NAMES)
    assert frame["step"].to_list() == [s for s in STEPS for _ in NAMES]
    for name in NAMES:
        got = frame.filter(frame["name"] == name)["mu"].to_numpy()
        np.testing.assert_array_equal(got.astype(np.float64), followed[name].values("mu"))
    table = followed.to_arrow()
    assert table.column("checkpoint").to_pylist() == frame["checkpoint"].to_list()
    assert table.schema.field("step").metadata[b"meaning"] == b"training step"
    assert json.loads(table.schema.metadata[b"teleojax"]) == followed.summary


@pytest.fixture
def agg() -> Any:
    with mpl.rc_context():
        mpl.rcdefaults()
        plt.switch_backend("Agg")
        yield
    plt.close("all")


@pytest.mark.usefixtures("agg")
def test_figures_hold_the_numbers(followed: tj.Trajectory, tmp_path: Path) -> None:
    ax = followed.plot("mu", by="tensor")
    lines = {line.get_label(): line.get_data() for line in ax.lines}
    assert list(lines) == NAMES
    for name, (x, y) in lines.items():
        assert list(x) == list(STEPS)
        np.testing.assert_allclose(y, followed[name].values("mu"))
    assert [line.get_label() for line in followed.plot("mu").lines] == ["up", "down", "unknown"]
    assert [line.get_label() for line in followed.plot("mu", by="tensor", roles=["down"]).lines] == NAMES[:1]
    with pytest.raises(tj.UsageError, match="by"):
        plot_trajectory(followed.reports, followed.steps, by="depth")
    save_figure(followed, tmp_path / "run.svg", style="dark")
    assert b"</svg>" in (tmp_path / "run.svg").read_bytes()
    with pytest.raises(tj.UsageError, match="needed one such as"):
        save_figure(followed, tmp_path / "run.nothing")


@pytest.mark.usefixtures("agg")
def test_pieces_are_lines_through_their_points() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=5000).astype(np.float32)
    factors = np.exp(np.repeat([0, 0.9, -0.4], 8) + 0.01 * rng.normal(size=24))
    tensor = tj.track({i: {"w$_1$": w * np.float32(f)} for i, f in enumerate(factors)})["w$_1$"]
    assert [c.step for c in tensor.changes_of("mu")] == [8, 16]
    ax = tensor.plot("mu")
    pieces = [line.get_data() for line in ax.lines if line.get_color() == "#d55e00"]
    assert len(pieces) == 3
    for i, (x, y) in enumerate(pieces):
        points = np.arange(8 * i, 8 * i + 8)
        fit = np.polyfit(points, tensor.values("mu")[points], 1)
        assert list(x) == [points[0], points[-1]]
        np.testing.assert_allclose(y, np.polyval(fit, x), rtol=1e-6)
    assert not mpl.cbook.is_math_text(ax.get_title())
    with pytest.raises(tj.UsageError, match="no step with kl_nats"):
        tj.track({1: {"w": np.zeros(9, np.float32)}})["w"].plot()
