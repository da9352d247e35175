"""The logging example trains, and what its loggers wrote is what its checkpoints say."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tensorboardX.proto.event_pb2 import Event

import teleojax as tj

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 60, 20
LAYERS = ("head", "layers.0", "layers.1")
KEYS = ["name", "step", "n", "mu", "sigma", "alpha", "beta", "kl_nats", "dispersion", "loss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training")
    script = [sys.executable, str(ROOT / "examples" / "log_training.py"), "--out", str(out)]
    done = subprocess.run(
        [*script, "--steps", str(STEPS), "--every", str(EVERY)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{STEPS}" in done.stdout
    return out


def events(folder: Path) -> Iterator[Event]:
    """The records of the one events file: length, its checksum, bytes, their checksum (the framing of TFRecord)."""
    (path,) = folder.glob("events.out.tfevents.*")
    raw, at = path.read_bytes(), 0
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        yield Event.FromString(raw[at + 12 : at + 12 + length])
        at += 16 + length
    assert at == len(raw)


def lines(folder: Path) -> list[dict]:
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_lines_are_those_of_the_checkpoints(folder: Path) -> None:
    rows = lines(folder)
    assert [(r["step"], r["name"]) for r in rows] == [(s, n) for s in range(0, STEPS + 1, EVERY) for n in LAYERS]
    for row in rows:
        assert list(row) == KEYS
        path = folder / "checkpoints" / f"step_{row['step']}.safetensors"
        assert load_file(path)[row["name"]].size == row["n"]
        fit = tj.fit(path)[row["name"]].lognormal
        assert fit is not None
        for key in ("mu", "sigma", "alpha", "beta"):
            assert row[key] == pytest.approx(getattr(fit, key), rel=2e-5, abs=2e-5)
        assert row["kl_nats"] == pytest.approx(fit.kl_nats, abs=0.05)  # a cheap estimate, of a thousand values
    losses = [r["loss"] for r in rows]
    assert losses[-1] < 0.8 * losses[0]


def test_tensorboard_has_the_numbers_of_the_lines(folder: Path) -> None:
    found = {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value}
    rows = lines(folder)
    want = {(f"{r['name']}/{k}", r["step"]): r[k] for r in rows for k in KEYS[2:-1]}
    want |= {("loss", r["step"]): r["loss"] for r in rows}
    assert found.keys() == want.keys()
    for key, value in want.items():
        assert found[key] == pytest.approx(value, rel=1e-6)


def test_its_checkpoints_are_a_run(folder: Path) -> None:
    run = tj.track(folder / "checkpoints")
    assert run.steps == tuple(range(0, STEPS + 1, EVERY))
    assert sorted(run) == list(LAYERS)
    assert run["layers.1"].values("kl_nats")[0] == pytest.approx(0, abs=1e-3)  # it begins lognormal
    assert run["layers.1"].values("kl_nats")[-1] > 0.01
