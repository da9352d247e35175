"""What comes before the first number: importing, compiling, and a whole command on a small file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from conftest import Runner, Sizes

from teleojax.bench import SUBJECT, Contestant, weights
from teleojax.bench._data import split_unevenly, write_safetensors
from teleojax.bench._suite import compile_contestants, import_contestant


def test_import(race: Runner, sizes: Sizes) -> None:
    modules = ("teleojax", "jax", "scipy.stats", "numpy")
    race("import", [import_contestant(m) for m in modules], bound_by_memory=False, rounds=sizes.rounds)


def test_compile(race: Runner) -> None:
    race("compile", compile_contestants(), bound_by_memory=False)


def test_first_answer(tmp_path: Path, race: Runner) -> None:
    """`teleojax fit` on 4 MiB, from the start of the process to its end."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, split_unevenly(weights(1 << 20), 20))

    def command(*arguments: str) -> Contestant:
        def run() -> int:
            return subprocess.run([sys.executable, *arguments], check=False, capture_output=True).returncode

        return Contestant(" ".join(arguments[:3]), run, 0, 0, 0, rtol=0)

    scipy = (
        "import numpy as np, scipy.stats\n"
        f"w = np.memmap({str(path)!r}, np.uint8, 'r')[-4 << 20:].view(np.float32)\n"
        "for part in np.array_split(w, 20): scipy.stats.lognorm.fit(np.abs(part), floc=0)"
    )
    ours = command("-m", "teleojax", "fit", str(path), "--format", "jsonl")
    contestants = [
        replace(ours, name=SUBJECT, note="teleojax fit, a process from start to end"),
        replace(command("-c", scipy), name="SciPy lognorm.fit", note="a script, a process from start to end"),
    ]
    race("fit a file of 4 MiB", contestants, dtype="float32", bound_by_memory=False)
