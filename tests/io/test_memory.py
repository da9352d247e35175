"""A checkpoint far larger than the memory that reading it may take, written and read by real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def run_and_watch(command: list[str], stdin: IO[bytes] | None = None) -> tuple[str, int]:
    """Standard output of a command, and the peak of its anonymous memory in bytes."""
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(command, stdin=stdin, stdout=out) as process:
            peak = 0
            while process.poll() is None:
                try:
                    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                except OSError:  # it ended between two looks
                    continue
                found = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
                peak = max(peak, int(found[1]) * 1024 if found else 0)
                time.sleep(0.005)
        assert process.returncode == 0
        out.seek(0)
        return out.read(), peak


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    make = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), str(path), "--fast"]
    options = ["--bytes", "2GiB", "--dtype", "bfloat16", "--shards", "4", "--tensors", "200", "--shapes", "120"]
    subprocess.run([*make, *options], check=True, capture_output=True)
    return path


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
def test_two_gibibytes_in_four_hundred_mebibytes(checkpoint: Path) -> None:
    out, peak = run_and_watch([sys.executable, "-m", "teleojax", "fit", str(checkpoint), "--format", "jsonl"])
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert summary["ok"] == summary["tensors"] == 200
    assert abs(summary["bytes"] / 2**31 - 1) < 0.01
    assert 40 * MIB < peak <= 400 * MIB


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
def test_a_piped_shard_in_bounded_memory(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    with subprocess.Popen(["cat", str(shard)], stdout=subprocess.PIPE) as cat:
        out, peak = run_and_watch([sys.executable, "-m", "teleojax", "fit", "-", "--format", "jsonl"], cat.stdout)
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert summary["ok"] == summary["tensors"] > 40
    assert 40 * MIB < peak <= 400 * MIB
