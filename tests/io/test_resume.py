"""Runs that are killed, interrupted, or find the disk full, and go on: they end with the same bytes."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import teleojax as tj
from teleojax.cli import run
from teleojax.stats._codec import each_record, pack, record, unpack
from tests.sharding.processes import FIT, environment, finish, lines

KILLS = 20

# The journal is written by os.write alone: the process dies with SIGNAL in the middle of write number AT, of which only
# the first PART bytes are written.
DIES = """
import os, signal, sys
from teleojax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits that it is ignored
at, part, name = int(sys.argv.pop(1)), float(sys.argv.pop(1)), sys.argv.pop(1)
calls, write = 0, os.write

def dies(fd, raw):
    global calls
    calls += 1
    if calls == at:
        if name == "SIGKILL":
            write(fd, bytes(raw)[: int(part * len(raw))])
        os.kill(os.getpid(), getattr(signal, name))
    return write(fd, raw)

os.write = dies
cli.main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty tensors of several types, 40 MB."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("model")
    for shard in range(2):
        tensors = {
            f"layer.{i}.{dtype}": (rng.standard_normal(250_000) * 0.02 * (i + 1)).astype(dtype)
            for i in range(shard, 30, 2)
            for dtype in ("float32", "float16")
        }
        save_file(tensors, folder / f"shard{shard}.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What an uninterrupted run says."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    assert run(["fit", str(model), "-o", str(out)]) == 0
    return lines(out)


def left_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_kill_at_twenty_moments(model: Path, whole: list[str], tmp_path: Path) -> None:
    """Ten in the middle of a record, at a number of bytes drawn at random; ten at a time drawn at random."""
    draw = random.Random(0)
    options = [str(model), "--resume", str(tmp_path / "journal"), "-o", str(tmp_path / "out.jsonl")]
    sizes = []
    for kill in range(KILLS):
        (tmp_path / "journal").unlink(missing_ok=True)
        if kill % 2:
            place = [str(draw.randint(1, 60)), str(draw.random()), "SIGKILL"]
            command = [sys.executable, "-c", DIES, *place, "fit", *options]
            done = subprocess.run(command, env=environment(), capture_output=True, check=False)
            assert done.returncode == -signal.SIGKILL, done.stderr
        else:
            with subprocess.Popen([*FIT, *options], env=environment(), stderr=subprocess.DEVNULL) as process:
                while not (tmp_path / "journal").exists() and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(draw.uniform(0, 0.15))
                process.kill()
        if (tmp_path / "journal").exists():
            sizes.append((tmp_path / "journal").stat().st_size)
        finished = (tmp_path / "out.jsonl").exists()
        assert not finished or lines(tmp_path / "out.jsonl") == whole  # never a half
        for name in left_in(tmp_path) - {"journal", "out.jsonl"}:  # nobody was left to remove it
            assert name.startswith(".out.jsonl.")
            (tmp_path / name).unlink()
        assert run(["fit", *options]) == 0
        assert lines(tmp_path / "out.jsonl") == whole
        (tmp_path / "out.jsonl").unlink()
    assert len(set(sizes)) > KILLS // 2  # they were at different moments


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_after_the_block_and_writes(model: Path, whole: list[str], tmp_path: Path, name: str) -> None:
    options = [
        str(model),
        "--budget",
        "64MiB",
        "--resume",
        str(tmp_path / "journal"),
        "-o",
        str(tmp_path / "out.jsonl"),
    ]
    command = [sys.executable, "-c", DIES, "5", "1", name, "fit", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert f"{name}: finishing the block at hand" in done.stderr
    assert "Traceback" not in done.stderr
    partly = lines(tmp_path / "out.jsonl")
    missing = [line for line in partly if '"status": "failed"' in line]
    assert 0 < len(missing) < len(partly) == len(whole)
    assert all(f"{name} came before" in line for line in missing)
    assert set(partly) - set(missing) <= set(whole)  # what is there is whole
    assert run(["fit", *options]) == 0
    assert lines(tmp_path / "out.jsonl") == whole


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_at_once(model: Path, tmp_path: Path, name: str) -> None:
    twice = DIES.replace(
        "    return write", "    if calls == at + 1: os.kill(os.getpid(), getattr(signal, name))\n    return write"
    )
    options = [
        str(model),
        "--budget",
        "64MiB",
        "--resume",
        str(tmp_path / "journal"),
        "-o",
        str(tmp_path / "out.jsonl"),
    ]
    command = [sys.executable, "-c", twice, "5", "1", name, "fit", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert "teleojax: interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_in(tmp_path) == {"journal"}


def test_a_caller_may_stop(model: Path) -> None:
    asked = []

    def after_one() -> str | None:
        asked.append(None)
        return "enough" if len(asked) > 1 else None

    measured = tj.measure(model, stop=after_one)
    assert set(measured.failed.values()) == {"enough"}
    assert len(measured) + len(measured.failed) == 60
    assert len(measured) == 30  # the first of two files
    again = tj.measure(model)
    assert all(measured[name] == again[name] for name in measured)


def test_finished_tensors_are_not_read_again(model: Path, tmp_path: Path) -> None:
    tj.measure(model, resume=tmp_path / "journal", include=r"layer\.[0-9]\.")
    seen: list[int] = []
    tj.measure(model, resume=tmp_path / "journal", progress=lambda done, _: seen.append(done))
    first = sum(t.nbytes for name, t in tj.measure(model).specs.items() if re.search(r"layer\.[0-9]\.", name))
    assert seen[0] > first  # counted as done from the start
    size = (tmp_path / "journal").stat().st_size
    measured = tj.measure(model, resume=tmp_path / "journal", stop=lambda: "nothing more is read")
    assert not measured.failed
    assert (tmp_path / "journal").stat().st_size == size


def test_a_torn_record_is_cut_off_and_written_again(model: Path, tmp_path: Path) -> None:
    """Whatever came after a torn record could not be read."""
    journal = tmp_path / "journal"
    tj.measure(model, resume=journal)
    whole = journal.read_bytes()
    for part in (0.3, 0.7):
        journal.write_bytes(whole[: int(part * len(whole))])
        tj.measure(model, resume=journal)
        assert journal.read_bytes() == whole


@pytest.mark.parametrize("change", ["size", "time", "header", "file"])
def test_a_checkpoint_that_changed_is_refused(tmp_path: Path, change: str) -> None:
    rng = np.random.default_rng(0)
    file, journal = tmp_path / "m.safetensors", tmp_path / "journal"
    values = rng.standard_normal(20_000).astype(np.float32)
    save_file({"w": values}, file)
    tj.measure(file, resume=journal)
    before, status = journal.read_bytes(), file.stat()
    if change == "size":
        save_file({"w": values, "v": values}, file)
    elif change == "time":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "header":
        raw = file.read_bytes()
        file.write_bytes(raw.replace(b'"w"', b'"u"'))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        file = file.rename(tmp_path / "other.safetensors")
    with pytest.raises(tj.UsageError, match=r"remove .*journal and begin again") as caught:
        tj.measure(file, resume=journal)
    assert file.name in str(caught.value) or change == "header"
    assert journal.read_bytes() == before


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json", "quantize_config.json", "quant_config.json"])
@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_a_configuration_that_changed_is_refused(tmp_path: Path, file: str, change: str) -> None:
    save_file({"w": np.ones(300, np.float32)}, tmp_path / "m.safetensors")
    texts = {"added": (None, "{}"), "removed": ("{}", None), "changed": ('{"a": 1}', '{"a": 2}')}[change]

    def put(text: str | None) -> None:
        (tmp_path / file).unlink(missing_ok=True)
        if text is not None:
            (tmp_path / file).write_text(text)

    put(texts[0])
    tj.measure(tmp_path, resume=tmp_path / "journal")
    put(texts[1])
    with pytest.raises(tj.UsageError, match=rf"a run on another {file}.*remove .*journal and begin again"):
        tj.measure(tmp_path, resume=tmp_path / "journal")
    put(texts[0])  # written anew, with the same content
    tj.measure(tmp_path, resume=tmp_path / "journal")


def test_another_alpha_of_an_adapter_is_noticed(tmp_path: Path) -> None:
    """Names, shapes and types of its products stay, and their values do not."""
    rng = np.random.default_rng(0)
    factors = {"w.lora_A.weight": rng.normal(size=(4, 30)), "w.lora_B.weight": rng.normal(size=(20, 4))}
    save_file({n: f.astype(np.float32) for n, f in factors.items()}, tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    config.write_text('{"lora_alpha": 8, "r": 4}')
    before = tj.measure(tmp_path, resume=tmp_path / "journal")
    config.write_text('{"lora_alpha": 9, "r": 4}')
    assert dict(tj.measure(tmp_path)) != dict(before)
    with pytest.raises(tj.UsageError, match=r"another adapter_config\.json"):
        tj.measure(tmp_path, resume=tmp_path / "journal")


@pytest.mark.parametrize("rule", ["skip = true", "split = ['q', 'k']", "role = 'q'"])
def test_other_rules_are_refused_where_they_make_a_difference(tmp_path: Path, rule: str) -> None:
    save_file({"w": np.ones((4, 90), np.float32), "v": np.ones(9, np.float32)}, tmp_path / "m.safetensors")
    (tmp_path / "rules.toml").write_text("[[rule]]\nmatch = 'nothing'\nskip = true")
    options = {"rules": tmp_path / "rules.toml", "resume": tmp_path / "journal"}
    tj.measure(tmp_path, **options)
    (tmp_path / "rules.toml").write_text("[[rule]]\nmatch = 'nothing else'\nskip = true")
    tj.measure(tmp_path, **options)
    (tmp_path / "rules.toml").write_text(f"[[rule]]\nmatch = 'w'\n{rule}")
    with pytest.raises(tj.UsageError, match="a run on other tensors"):
        tj.measure(tmp_path, **options)


@pytest.mark.parametrize("other", [{"groups": 4}, {"histogram": False}])
def test_other_options_are_refused(model: Path, tmp_path: Path, other: dict) -> None:
    tj.measure(model, resume=tmp_path / "journal", include="layer.1.float16")
    with pytest.raises(tj.UsageError, match="found a run with groups=None, histogram=True"):
        tj.measure(model, resume=tmp_path / "journal", **other)


def test_a_file_that_is_no_journal_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    assert run(["fit", str(model), "--resume", str(tmp_path / "notes")]) == 3
    assert "needed the journal of an earlier run, or no file" in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "run", [{}, {"checkpoint": 1, "options": {}}, {"checkpoint": {"files": [3]}, "options": 1}], ids=str
)
def test_a_first_record_without_sense_is_said(model: Path, tmp_path: Path, run: dict) -> None:
    (tmp_path / "journal").write_bytes(b"teleojax journal 1\n" + record(pack({"kind": "run", **run})))
    with pytest.raises(tj.CorruptInputError, match="does not say which run"):
        tj.measure(model, resume=tmp_path / "journal")


@pytest.mark.parametrize("files", [3, None, [3], [["a", []]]], ids=str)
def test_a_run_on_files_that_are_none_is_refused(model: Path, tmp_path: Path, files: object) -> None:
    tj.measure(model, resume=tmp_path / "good", include="layer.1.float16")
    raw = memoryview((tmp_path / "good").read_bytes())
    _, payload = next(each_record(raw, len(b"teleojax journal 1\n")))
    header, _ = unpack(payload, "good")
    header["checkpoint"] = {"files": files}
    (tmp_path / "journal").write_bytes(b"teleojax journal 1\n" + record(pack(header)))
    with pytest.raises(tj.UsageError, match=r"another shard0\.safetensors"):
        tj.measure(model, resume=tmp_path / "journal")


def test_arrays_in_memory_and_streams_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(tj.UsageError, match="needed a checkpoint in files"):
        tj.measure({"w": np.ones(3, np.float32)}, resume=tmp_path / "journal")
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_full_disk_is_said_and_nothing_is_lost(
    model: Path,
    whole: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
) -> None:
    calls, write = 0, os.write

    def full(fd: int, raw: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls <= after:
            return write(fd, raw)
        if calls == after + 1:
            return write(fd, bytes(raw)[:10])  # as a real disk does: what still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = ["fit", str(model), "--resume", str(tmp_path / "journal"), "-o", str(tmp_path / "out.jsonl")]
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        assert run(options) == 3
    said = capsys.readouterr().err
    assert "journal: found No space left on device" in said
    assert "finished tensors are not read again" in said
    assert not (tmp_path / "out.jsonl").exists()
    assert run(options) == 0
    assert lines(tmp_path / "out.jsonl") == whole


def mounted(folder: Path, size: str) -> bool:
    """Whether a file system of this size, in memory, could be mounted there."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_small_file_system_that_is_full(model: Path, whole: list[str], tmp_path: Path) -> None:
    """A real one, where one may be mounted: the journal, and then the output, do not fit."""
    small = tmp_path / "small"
    small.mkdir()
    if not mounted(small, "64k"):
        pytest.skip("a file system can be mounted by root alone")
    try:
        options = [str(model), "--resume", str(small / "journal")]
        done = finish([*FIT, *options, "-o", str(tmp_path / "out.jsonl")], code=3)
        assert "No space left on device" in done.stderr
        assert "run the same command again" in done.stderr
        (tmp_path / "journal").write_bytes((small / "journal").read_bytes())
        (small / "journal").unlink()
        done = finish([*FIT, str(model), "-o", str(small / "out.jsonl")], code=2)
        assert "out.jsonl: found No space left on device" in done.stderr
        assert left_in(small) == set()  # nothing half-written
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert run(["fit", str(model), "--resume", str(tmp_path / "journal"), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert lines(tmp_path / "out.jsonl") == whole
