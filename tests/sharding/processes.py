"""Real processes for the tests: started, watched, killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FIT = [sys.executable, "-m", "teleojax", "fit"]
LAUNCH = [sys.executable, str(ROOT / "scripts" / "launch_processes.py")]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """The environment of a process that sees so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}


def finish(command: list[str], *, devices: int = 1, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which is to be this exit code."""
    done = subprocess.run(
        command, env=environment(devices), capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    assert done.returncode == code, (done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lines(path: Path) -> list[str]:
    """The JSON lines of the tensors: all but the last, which holds the seconds it took."""
    found = path.read_text().splitlines()
    assert found[-1].startswith('{"summary"')
    return found[:-1]
