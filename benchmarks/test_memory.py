"""Peak anonymous memory of processes that fit a checkpoint, beside that of their imports alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkpoint, Runner

from teleojax.bench import SUBJECT, Contestant, Record

LOOK_S = 0.002  # between two looks at a process
MEASURABLE = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc"
)


class Watched:
    """A command whose anonymous memory is looked at while it runs; `peak` is the most in any run so far."""

    def __init__(self, *arguments: str) -> None:
        self.command = [sys.executable, *arguments]
        self.peak = 0

    def __call__(self) -> tuple[int, str]:
        """Run it; the exit status and the last line of its output."""
        with tempfile.TemporaryFile("w+") as out:  # a pipe that nobody reads would stop it
            with subprocess.Popen(self.command, stdout=out, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None:
                    try:
                        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                    except OSError:  # it ended between two looks
                        continue
                    found = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
                    self.peak = max(self.peak, int(found[1]) * 1024 if found else 0)
                    time.sleep(LOOK_S)
            out.seek(0)
            return process.returncode, out.read().rstrip().rpartition("\n")[2]


def peaks(checkpoint: Checkpoint, name: str, race: Runner, benchmark: Any) -> None:
    ours = Watched("-m", "teleojax", "fit", str(checkpoint.path), "--format", "jsonl")
    imports = Watched("-c", "import teleojax, teleojax.cli, jax; jax.devices()")

    def answer(result: tuple[int, str]) -> tuple[int, int]:
        return result[0], json.loads(result[1])["summary"]["ok"]

    note = f"teleojax fit of {checkpoint.n_bytes / (1 << 30):.2g} GiB, a process from start to end"
    contestants = [
        Contestant(SUBJECT, ours, (0, 200), 0, 0, answer, 0, note),
        Contestant("imports alone", imports, 0, 0, 0, lambda result: result[0], 0, "teleojax, JAX and its backend"),
    ]
    watched = {SUBJECT: ours, "imports alone": imports}

    def finish(records: list[Record]) -> list[Record]:
        benchmark.extra_info["peak_anonymous_MiB"] = {n: round(w.peak / (1 << 20), 1) for n, w in watched.items()}
        mib = {n: f"peak anonymous memory {w.peak / (1 << 20):.0f} MiB" for n, w in watched.items()}
        return [
            replace(r, peak_bytes=watched[r.contestant].peak, note=f"{mib[r.contestant]}; {r.note}") for r in records
        ]

    race(name, contestants, dtype="bfloat16", rounds=3, finish=finish, bound_by_memory=False)
    assert ours.peak > imports.peak > 0


@MEASURABLE
def test_peak(checkpoint: Checkpoint, race: Runner, benchmark: Any) -> None:
    peaks(checkpoint, "memory", race, benchmark)


@MEASURABLE
def test_peak_large(large_checkpoint: Checkpoint, race: Runner, benchmark: Any) -> None:
    peaks(large_checkpoint, "memory, large", race, benchmark)
