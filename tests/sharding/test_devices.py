"""The numbers do not depend on how many devices the process sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file


def fit_with(n_devices: int, path: Path) -> list[str]:
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    command = [sys.executable, "-m", "teleojax", "fit", str(path), "--format", "jsonl"]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_lines_are_equal_on_one_and_eight_devices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal(3_000_001).astype(np.float32),
        "b": rng.standard_normal(1_000_001).astype(ml_dtypes.bfloat16),
        "c": rng.standard_normal(70_001),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    one, eight = (fit_with(n, tmp_path / "m.safetensors") for n in (1, 8))
    assert len(one) == 4
    assert one[:-1] == eight[:-1]  # the last line holds the seconds it took


STREAM = """
import sys
import teleojax as tj
from teleojax.blocks._plan import BLOCK_BYTES, BUFFERS
from teleojax.engine import _compile

found = tj.measure(sys.argv[1], budget_bytes=(BUFFERS + 1) * BLOCK_BYTES)
print(_compile.compiled_row_sums()._cache_size(), file=sys.stderr)
print(tj.fit(found).jsonl().rpartition('{"summary"')[0], end="")
"""


def stream_with(n_devices: int, path: Path) -> tuple[str, int]:
    """The lines, and how often the program for row sums was compiled: for each device it ran on, and for fragments."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={n_devices}"
    command = [sys.executable, "-W", "error", "-c", STREAM, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr)


@pytest.mark.parametrize("n_devices", [2, 8])
def test_windows_go_to_all_devices_in_turn_and_no_number_changes(n_devices: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": rng.standard_normal(9_000_001).astype(np.float32), "b": rng.standard_normal(3_000_001, np.float32)}
    save_file(tensors, tmp_path / "m.safetensors")  # three windows of 16 MiB
    one, programs = stream_with(1, tmp_path / "m.safetensors")
    several, more = stream_with(n_devices, tmp_path / "m.safetensors")
    assert several == one
    assert one.count("\n") == 2
    assert more - programs == min(n_devices, 3) - 1
