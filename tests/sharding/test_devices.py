"""The numbers do not depend on how many devices the process sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
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
