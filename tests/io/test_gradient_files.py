"""Gradients as files: a sharded safetensors directory that appears whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import tflite
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import teleojax as tj
from teleojax import OutputError
from teleojax.cli import run
from teleojax.report._shards import INDEX, OutputTensor, plan_shards, refuse_output
from teleojax.sources._safetensors import DTYPES
from tests.arrays import PackedSource
from tests.io.test_memory import MIB, ROOT, run_and_watch
from tests.io.test_tflite import Tensor, build

COMMAND = [sys.executable, "-m", "teleojax", "gradient"]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) * 0.02

    return {
        "embed.weight": draw(300, 401).astype(np.float32),
        "h.0.q": draw(77, 33).astype(ml_dtypes.bfloat16),
        "h.0.k": draw(501, 33).astype(np.float16),
        "h.1.double": draw(9, 11, 13),
        "h.1.ids": np.arange(10),
        "h.1.eight": draw(64, 64).astype(ml_dtypes.float8_e4m3fn),
        "h.1.norm": np.ones(64, np.float32),
        "h.1.empty": np.empty((0, 3), np.float32),
        "h.1.scalar": np.asarray(0.5, np.float32),
        "strange \n ü": draw(1001).astype(np.float32),
    }


def written(folder: Path) -> dict[str, np.ndarray]:
    """Everything in the files, read by the safetensors package as the index says."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    found: dict[str, np.ndarray] = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, "np") as f:
            assert f.metadata()["format"] == "pt"
            assert set(f.keys()) == {name for name, home in index["weight_map"].items() if home == file}
        for name, held in safetensors.deserialize((folder / file).read_bytes()):  # the package's NumPy lacks float8
            kind = getattr(ml_dtypes, DTYPES[held["dtype"]][0], DTYPES[held["dtype"]][0])
            found[name] = np.frombuffer(held["data"], kind).reshape(held["shape"])
    assert sorted(found) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert {p.name for p in folder.iterdir()} == {INDEX, *index["weight_map"].values()}
    return found


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("wrt", ["log", "value"])
@pytest.mark.parametrize("shard_bytes", [1, 100_000, 10**9])
def test_round_trip(tmp_path: Path, shard_bytes: int, wrt: str) -> None:
    params = tensors()
    save_file(params, tmp_path / "m.safetensors")
    out = tmp_path / "out"
    result = tj.write_gradient(tmp_path / "m.safetensors", out, wrt=wrt, shard_bytes=shard_bytes)
    # the statistics of the file: where rows begin in it moves the last bits of the moments
    found, wanted = written(out), tj.utility_gradient(params, wrt=wrt, stats=result.report.measured, exclude="empty")
    assert set(found) == set(params) - {"h.1.ids", "h.1.empty"} == set(result.report)
    for name, gradient in found.items():
        assert (gradient.dtype, gradient.shape) == (params[name].dtype, params[name].shape)
        assert np.array_equal(bits(gradient), bits(wanted[name])), name
    assert result.report.summaries == tj.gradient_summary(tmp_path / "m.safetensors", wrt=wrt).summaries
    assert set(result.report.measured.skipped) == {"h.1.ids", "h.1.empty"}
    assert set(tj.measure(out)) == set(found)
    assert result.nbytes == sum(t.nbytes for t in found.values())
    assert len(result.files) == {1: 8, 100_000: 3, 10**9: 1}[shard_bytes]
    assert all((out / file).stat().st_mode & 0o777 == 0o666 & ~umask() for file in result.files)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask()
    again = tj.write_gradient(tmp_path / "m.safetensors", tmp_path / "again", wrt=wrt, shard_bytes=shard_bytes)
    for file in (*again.files, INDEX):
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "m.safetensors", "out"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 64])
@pytest.mark.parametrize("stream", [False, True])
def test_any_offset_and_kind_of_storage(tmp_path: Path, shift: int, stream: bool) -> None:
    rng = np.random.default_rng(shift)
    params = {
        "a": rng.standard_normal(1_300_001).astype(np.float32),
        "b": rng.standard_normal(70_001).astype(ml_dtypes.bfloat16),
        "c": rng.standard_normal(3),
        "d": rng.standard_normal(600_001).astype(np.float16),
    }
    stats = tj.measure(params)
    source = PackedSource(params, shift=shift, gap=shift, stream=stream)
    tj.write_gradient(source, tmp_path / "out", stats=stats, budget_bytes=64 * MIB)
    wanted = tj.utility_gradient(params, stats=stats)
    for name, gradient in written(tmp_path / "out").items():
        assert np.array_equal(bits(gradient), bits(wanted[name])), name


def test_numpy_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = np.asfortranarray(rng.standard_normal((300, 57, 4)).astype(np.float32))
    np.savez_compressed(tmp_path / "m.npz", w=matrix, v=rng.standard_normal(500))
    np.save(tmp_path / "w.npy", matrix)
    for path, names in ((tmp_path / "w.npy", {"w"}), (tmp_path / "m.npz", {"w", "v"})):
        out = tmp_path / f"{path.name}.gradient"
        stats = tj.measure(path)
        tj.write_gradient(path, out)
        found = written(out)
        assert set(found) == names
        wanted = tj.utility_gradient({"w": matrix}, stats=stats)
        assert np.array_equal(found["w"], wanted["w"])


def test_quantised_integers_become_float32(tmp_path: Path) -> None:
    codes = np.clip(np.random.default_rng(0).standard_normal(4000) * 30, -127, 127).astype(np.int8)
    layer = Tensor("q", (40, 100), tflite.TensorType.INT8, 1, scales=(0.01,))
    (tmp_path / "m.tflite").write_bytes(build([[layer]], [b"", codes.tobytes()]))
    tj.write_gradient(tmp_path / "m.tflite", tmp_path / "out", density="lognormal", target=(-1.0, 0.2))
    found = written(tmp_path / "out")["q"]
    moments = tj.measure(tmp_path / "m.tflite")["q"].moments
    own = tj.teleo.utility_parameters(moments.mean, moments.sigma)
    values = codes.reshape(40, 100) * np.float32(0.01)
    assert found.dtype == np.float32
    expected = tj.lognormal_gradient(values, own.alpha, own.beta, (-1.0, 0.2))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_plan_of_shards() -> None:
    plan = plan_shards(
        [OutputTensor("a", "bfloat16", (3,)), OutputTensor("b", "float64", ()), OutputTensor("c", "float32", (5, 1))],
        shard_bytes=20,
    )
    assert [[t.name for t in shard.tensors] for shard in plan] == [["b", "a"], ["c"]]
    assert [shard.file for shard in plan] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in plan:
        (length,) = struct.unpack("<Q", shard.header[:8])
        assert len(shard.header) == 8 + length
        assert len(shard.header) % 64 == 0
        assert shard.size == len(shard.header) + sum(t.nbytes for t in shard.tensors)
    assert plan[0].offsets == {"b": len(plan[0].header), "a": len(plan[0].header) + 8}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "model").mkdir()
    for i in range(3):
        w = rng.standard_normal((400, 500), np.float32)
        save_file({f"h.{i}.w": w}, tmp_path / "model" / f"{i}.safetensors")
    return tmp_path / "model"


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_may_not_be_overwritten(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tj.write_gradient(model, out)  # empty: as good as nothing
    first = written(out)
    with pytest.raises(tj.UsageError, match="not empty"):
        tj.write_gradient(model, out)
    (out / "notes").write_text("mine")
    tj.write_gradient(model, out, wrt="value", force=True)
    assert not np.array_equal(written(out)["h.0.w"], first["h.0.w"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(tj.UsageError, match="a file"):
        tj.write_gradient(model, tmp_path / "file", force=True)
    with pytest.raises(tj.UsageError, match="no directory"):
        tj.write_gradient(model, tmp_path / "missing" / "out")
    for place in (model, tmp_path):
        with pytest.raises(tj.UsageError, match="the parameters themselves"):
            tj.write_gradient(model, place, force=True)
    with pytest.raises(tj.UsageError, match="no tensor to write"):
        tj.write_gradient(model, tmp_path / "none", include="nothing")
    refuse_output(tmp_path / "new", force=False, sources=[str(model / "0.safetensors")])
    assert left_in(tmp_path) == ["file", "model", "out"]
    assert left_in(model) == ["0.safetensors", "1.safetensors", "2.safetensors"]


def test_a_stream_needs_statistics(tmp_path: Path, model: Path) -> None:
    file = model / "0.safetensors"
    out = tmp_path / "out"
    with file.open("rb") as stream:
        done = subprocess.run(
            [*COMMAND, "-", "-o", str(out)], stdin=stream, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert "passes only once" in done.stderr
    assert not out.exists()
    with file.open("rb") as stream:
        done = subprocess.run([*COMMAND, "-"], stdin=stream, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["name"] == "h.0.w"
    stats = tj.measure(file)
    with file.open("rb") as stream:
        tj.write_gradient(stream, out, stats=stats)
    assert np.array_equal(written(out)["h.0.w"], tj.utility_gradient(load_file(file), stats=stats)["h.0.w"])


def test_command_line(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gradient", str(model), "-o", str(tmp_path / "out"), "--shard-size", "1MB", "--exclude", "1"]) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["name"] for line in lines] == ["h.0.w", "h.2.w"]
    assert lines[0]["mean_square"] == pytest.approx(1.189, rel=0.05)
    assert lines[0]["q01"] < lines[0]["q50"] < lines[0]["q99"]
    assert "1,600,000 bytes in 2 files" in captured.err
    assert "tensors skipped: 1 (1 filtered)" in captured.err
    assert set(written(tmp_path / "out")) == {"h.0.w", "h.2.w"}
    assert run(["gradient", str(model), "-o", str(tmp_path / "out")]) == 2
    options = ["--density", "lognormal", "--target", "-1.2,0.4", "--wrt", "value", "--budget", "64MiB", "--force"]
    assert run(["gradient", str(model), "-o", str(tmp_path / "out"), *options]) == 0
    assert run(["gradient", str(model), "--target", "1"]) == 2
    assert run(["gradient", str(model), "--target", "a,b"]) == 2
    assert run(["gradient", str(model), "--target", "1,-1"]) == 2
    assert run(["gradient", str(tmp_path / "absent"), "-o", str(tmp_path / "new")]) == 3


@pytest.mark.parametrize("when", ["write", "flush", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    calls = 0

    def full(original: Any, after: int) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        return call

    if when == "rename":
        monkeypatch.setattr(Path, "rename", full(Path.rename, 0))
    else:
        name = "pwrite" if when == "write" else "fsync"
        monkeypatch.setattr(os, name, full(getattr(os, name), 2 if when == "write" else 0))
    with pytest.raises(OutputError, match="No space left on device") as caught:
        tj.write_gradient(model, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert calls > 0
    assert left_in(tmp_path) == ["model"]


def test_too_little_room_is_said_at_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="found 1000 bytes free"):
        tj.write_gradient(model, tmp_path / "out")
    assert left_in(tmp_path) == ["model"]


def test_replacing_on_a_disk_that_breaks_keeps_the_earlier_directory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tj.write_gradient(model, tmp_path / "out")
    before = written(tmp_path / "out")
    rename, calls = Path.rename, 0

    def breaks_once(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", breaks_once)
    with pytest.raises(OutputError):
        tj.write_gradient(model, tmp_path / "out", wrt="value", force=True)
    after = written(tmp_path / "out")
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert left_in(tmp_path) == ["model", "out"]


def test_files_that_may_not_grow(tmp_path: Path, model: Path) -> None:
    """A real failure of a real process: files are limited to 1 MB, the result needs 2.4."""

    command = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", *COMMAND, str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_in(tmp_path) == ["model"]


KILL = """
import os, signal
from teleojax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits that it is ignored

calls, pwrite = 0, os.pwrite

def killed(*arguments):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.{signal})
    return pwrite(*arguments)

os.pwrite = killed
cli.main()
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_an_interrupted_run_leaves_no_directory(tmp_path: Path, model: Path, name: str) -> None:
    command = [sys.executable, "-c", KILL.format(signal=name), "gradient", str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (130 if name == "SIGINT" else -signal.SIGKILL), done.stderr
    assert not (tmp_path / "out").exists()
    hidden = [p for p in left_in(tmp_path) if p != "model"]
    assert len(hidden) == (name == "SIGKILL")  # nobody is left to clean up
    assert all(p.startswith(".out.") for p in hidden)
    tj.write_gradient(model, tmp_path / "out")
    assert len(written(tmp_path / "out")) == 3


def test_a_checkpoint_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "m.npz", a=rng.standard_normal(30_000), b=rng.standard_normal(30_000))
    raw = bytearray((tmp_path / "m.npz").read_bytes())
    raw[len(raw) - len(raw) // 4] ^= 0xFF  # inside the second member
    (tmp_path / "m.npz").write_bytes(raw)
    stats = tj.measure({"a": rng.standard_normal(100), "b": rng.standard_normal(100)})
    with pytest.raises(tj.InputError):
        tj.write_gradient(tmp_path / "m.npz", tmp_path / "out", stats=stats)
    assert left_in(tmp_path) == ["m.npz"]
    assert run(["gradient", str(tmp_path / "m.npz"), "-o", str(tmp_path / "out")]) == 4
    assert set(written(tmp_path / "out")) == {"a"}  # measured whole; the other is listed as failed


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
def test_bounded_memory(tmp_path: Path) -> None:
    make = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), str(tmp_path / "model"), "--fast"]
    options = ["--bytes", "768MiB", "--dtype", "float32", "--shards", "2", "--tensors", "60", "--shapes", "30"]
    subprocess.run([*make, *options], check=True, capture_output=True)
    out, peak = run_and_watch([*COMMAND, str(tmp_path / "model"), "-o", str(tmp_path / "out")])
    assert len(out.splitlines()) == 60
    index = json.loads((tmp_path / "out" / INDEX).read_text(encoding="utf-8"))
    assert abs(index["metadata"]["total_size"] / (768 * MIB) - 1) < 0.01
    assert 40 * MIB < peak <= 512 * MIB
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "model")
