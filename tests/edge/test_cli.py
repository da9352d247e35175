"""The command line as a user meets it: streams, formats, exit codes, no traceback ever."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from teleojax.cli import run

KEYS = [
    "name", "role", "depth", "shape", "dtype", "size", "n", "n_zero", "n_nonfinite", "n_negative", "min",
    "max", "rms", "mu", "sigma", "mu_se", "sigma_se", "skew", "excess_kurtosis", "alpha", "beta", "h_star",
    "kl_nats", "kl_se", "dispersion", "fisher", "ks", "w1_log", "r2", "families", "best_family", "delta_nats",
    "best_bic", "status", "reason",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "teleojax"]


def piped(data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, "fit", "-", "--format", "jsonl"], input=data, capture_output=True, check=False)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "model.layers.0.self_attn.q_proj.weight": rng.normal(0, 0.02, (120, 90)).astype(np.float32),
        "model.layers.10.mlp.up_proj.weight": rng.normal(0, 0.02, (64, 50)).astype(np.float16),
        "model.layers.2.mlp.up_proj.weight": rng.normal(0, 0.02, (64, 50)).astype(np.float16),
        "constant": np.full(50, 0.5, np.float32),
        "zeros": np.zeros(50, np.float32),
        "one": np.asarray([0.5], np.float32),
        "ids": np.arange(5),
    }


@pytest.fixture
def model(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


def lines(text: str) -> tuple[dict[str, dict], dict]:
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    return {r["name"]: r for r in rows[:-1]}, rows[-1]["summary"]


def test_json_lines(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(model), "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    rows, summary = lines(out)
    for row in rows.values():
        assert list(row) == KEYS
    q = rows["model.layers.0.self_attn.q_proj.weight"]
    assert (q["role"], q["depth"], q["shape"], q["dtype"], q["status"]) == ("q", 0, [120, 90], "float32", "ok")
    assert q["n"] + q["n_zero"] + q["n_nonfinite"] == q["size"] == 10_800
    assert set(q["families"]) == {"lognormal", "halfnormal"}
    assert q["best_family"] == "halfnormal"
    assert rows["zeros"]["status"] == rows["constant"]["status"] == rows["one"]["status"] == "degenerate"
    assert rows["zeros"]["mu"] is None
    assert (rows["constant"]["mu"], rows["constant"]["sigma"]) == (pytest.approx(np.log(0.5)), 0.0)
    assert rows["constant"]["kl_nats"] is None
    assert (rows["ids"]["status"], rows["ids"]["reason"], rows["ids"]["n"]) == ("skipped", "integer type int64", None)
    assert (summary["tensors"], summary["ok"], summary["degenerate"], summary["skipped"]) == (7, 3, 3, 1)
    assert summary["bytes"] == 4 * (10_800 + 101) + 2 * 6400
    assert "skipped" in err


def test_order_is_natural(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(model), "--format", "jsonl", "--include", "layers"]) == 0
    rows, _ = lines(capsys.readouterr().out)
    shown = [name for name, row in rows.items() if row["status"] == "ok"]
    assert [n.split(".")[2] for n in shown] == ["0", "2", "10"]


def test_csv(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(model), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 7
    q = next(r for r in rows if r["role"] == "q")
    assert q["shape"] == "120x90"
    assert float(q["halfnormal.scale"]) == pytest.approx(0.02, rel=0.05)
    assert next(r for r in rows if r["name"] == "zeros")["mu"] == ""


@pytest.mark.parametrize(("by", "names"), [("role", ["q", "up", "unknown"]), ("depth", ["0", "2", "10", "unknown"])])
def test_groups(by: str, names: list[str], model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(model), "--format", "jsonl", "--group-by", by]) == 0
    rows, _ = lines(capsys.readouterr().out)
    assert list(rows) == names
    assert sum(r["tensors"] for r in rows.values()) == 6


def test_table_names_every_measured_tensor(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", str(model)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("up_proj", "kl nats", "halfnormal", "nats per connection", "no finite non-zero value"):
        assert text in out


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_output_file_follows_its_ending(
    ending: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"result.{ending}"
    assert run(["fit", str(model), "-o", str(out)]) == 0
    assert capsys.readouterr().out == ""
    text = out.read_text(encoding="utf-8")
    assert {"jsonl": '"summary"', "csv": "name,role", "txt": "kl nats"}[ending] in text
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["model.safetensors", out.name])


def test_standard_input_equals_the_file(model: Path) -> None:
    stream = piped(model.read_bytes())
    direct = subprocess.run([*COMMAND, "fit", str(model), "--format", "jsonl"], capture_output=True, check=False)
    assert stream.returncode == direct.returncode == 0, stream.stderr
    assert stream.stdout.splitlines()[:-1] == direct.stdout.splitlines()[:-1]


def test_pipe_cut_short_keeps_what_was_whole(tensors: dict[str, np.ndarray]) -> None:
    big = dict(tensors, zz_last=np.random.default_rng(0).normal(size=3_000_000).astype(np.float16))
    cut = piped(save(big)[:-1000])
    assert cut.returncode == 4
    rows, summary = lines(cut.stdout.decode())
    failed = [name for name, row in rows.items() if row["status"] == "failed"]
    assert failed
    assert rows["model.layers.0.self_attn.q_proj.weight"]["status"] in ("ok", "failed")
    assert summary["failed"] == len(failed)
    assert b"Traceback" not in cut.stderr


def test_pipe_cut_in_the_header_is_an_error(model: Path) -> None:
    done = piped(model.read_bytes()[:40])
    assert done.returncode == 3
    assert len(done.stderr.decode().strip().splitlines()) == 1
    assert done.stdout == b""


def test_closed_standard_output_is_one_line(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "fit", str(model), "--format", "jsonl"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    messages = done.stderr.decode().splitlines()
    assert done.returncode == 3
    assert messages[-1].startswith("teleojax: error: standard output: found a closed pipe")
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit"], 2, "Missing argument"),
        (["fit", "no-such-file.safetensors"], 3, "no-such-file.safetensors"),
        (["fit", "{model}", "--families", "lognormal,gauss"], 2, "'gauss'"),
        (["fit", "{model}", "--include", "("], 2, "regular expression"),
        (["fit", "{model}", "--budget", "lots"], 2, "256MiB"),
        (["fit", "{model}", "--budget", "1KiB"], 2, "at least"),
        (["fit", "{model}", "-o", "/no/such/directory/x.jsonl"], 2, "/no/such/directory"),
        (["fit", "{model}", "--group-by", "colour"], 2, "colour"),
        (["fit", "{empty}"], 3, "empty"),
        (["fit", "{truncated}"], 3, "truncated"),
        (["fit", "{huge}"], 3, "header"),
        (["fit", "{directory}"], 3, "directory"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda v: " ".join(v[1:])[:40] if isinstance(v, list) else None,
)
def test_bad_input(
    arguments: list[str], code: int, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / f"{name}.safetensors" for name in ("empty", "truncated", "huge")}
    places["empty"].write_bytes(b"")
    places["truncated"].write_bytes(model.read_bytes()[:-10])
    places["huge"].write_bytes((2**63).to_bytes(8, "little") + b"{}")
    places["directory"] = tmp_path / "directory"
    places["directory"].mkdir()
    assert run([a.format(model=model, **places) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    if code == 3:
        assert len(err.strip().splitlines()) == 1


def test_nan_and_infinity_never_reach_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
    values[::7], values[1::7], values[2::7] = np.nan, np.inf, -np.inf
    save_file({"w": values, "all": np.full(9000, np.nan, np.float32)}, tmp_path / "m.safetensors")
    assert run(["fit", str(tmp_path / "m.safetensors"), "--format", "jsonl"]) == 0
    rows, _ = lines(capsys.readouterr().out)
    assert rows["w"]["n_nonfinite"] == 3 * 4286
    assert rows["w"]["status"] == "ok"
    assert (rows["all"]["status"], rows["all"]["n_nonfinite"]) == ("degenerate", 9000)


def test_names_with_markup_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"[bold]w[/bold] \x1b[31m": np.ones(9, np.float32)}, tmp_path / "m.safetensors")
    assert run(["fit", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "[bold]w[/bold]" in out
    assert "\x1b" not in out


def test_progress_shows_on_a_terminal_only(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")  # a Unix module
    path = tmp_path / "m.safetensors"
    save_file({"w": np.random.default_rng(0).standard_normal(40_000_000).astype(np.float32)}, path)
    command = [*COMMAND, "fit", str(path), "--format", "jsonl"]
    quiet = subprocess.run(command, capture_output=True, check=True)
    assert quiet.stderr == b""
    master, terminal = pty.openpty()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm"}
    ) as run_:
        os.close(terminal)
        out = run_.communicate()[0]
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed: that is how a terminal ends on Linux
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert run_.returncode == 0
    assert out.splitlines()[0] == quiet.stdout.splitlines()[0]
    assert b"measuring" in shown
    assert b"MiB" in shown
    assert b"B/s" in shown
