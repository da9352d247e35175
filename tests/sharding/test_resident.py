"""Sharded arrays are measured where they lie: the same numbers, and nothing the size of a parameter in one place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from teleojax.sources._array_memory import boxes

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
CHECKS = [sys.executable, "-W", "error", "-m", "tests.sharding.resident_checks"]


def environment(n_devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("check", ["bits", "groups_are_stretches", "trees", "programs"])
def test_on_eight_devices(check: str) -> None:
    done = subprocess.run([*CHECKS, check], cwd=ROOT, env=environment(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_two_processes_with_four_devices_each() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "launch_processes.py"), "-n", "2", "--", *CHECKS, "processes"]
    done = subprocess.run(command, cwd=ROOT, env=environment(4), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2


def anonymous(pid: int) -> int:
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
def test_a_gibibyte_over_eight_devices_takes_little_beside_itself() -> None:
    growth: dict[str, int] = {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*CHECKS, "memory"], cwd=ROOT, env=environment(8), text=True, **pipes) as process:
        assert process.stdin
        assert process.stdout
        for line in process.stdout:
            if not line.startswith("begin"):
                continue
            before = peak = anonymous(process.pid)
            assert before > 1024 * MIB  # the array itself
            process.stdin.write("\n")
            process.stdin.flush()
            os.set_blocking(process.stdout.fileno(), False)
            while process.stdout.readline() != "end\n":
                peak = max(peak, anonymous(process.pid))
                time.sleep(0.02)
            os.set_blocking(process.stdout.fileno(), True)
            process.stdin.write("\n")
            process.stdin.flush()
            growth[line] = peak - before
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert len(growth) == 9
    assert max(growth.values()) <= 8 * 64 * MIB, growth
    assert max(n for line, n in growth.items() if "on devices" not in line) <= 256 * MIB, growth


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 5), (1, 6, 1, 4), (5, 1, 3)])
def test_any_stretch_of_an_array_is_a_few_boxes(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    for start in range(array.size + 1):
        for stop in range(start, array.size + 1):
            found = [array[tuple(slice(*ends) for ends in box)].reshape(-1) for box in boxes(start, stop, shape)]
            np.testing.assert_array_equal(np.concatenate([*found, np.empty(0, int)]), np.arange(start, stop))
            assert len(found) <= max(1, 2 * len(shape) - 1)
