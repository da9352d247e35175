"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from teleojax._version import __version__
from teleojax.bench._data import usable_cores

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes")


def environment() -> dict[str, Any]:
    """Machine (processor, cores, memory, devices), versions, commit of the checkout if there is one, date (UTC)."""
    devices = jax.devices()
    return {
        "machine": {
            "cpu": _processor(),
            "cores": usable_cores(),
            "memory_bytes": _memory_bytes(),
            "system": f"{platform.system()} {platform.machine()}",
            "platform": devices[0].platform,
            "device": devices[0].device_kind,
            "devices": len(devices),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
            "teleojax": __version__,
        },
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _commit() -> str | None:
    """The commit of the checkout that this package lies in, "+" when tracked files differ from it; None without one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
