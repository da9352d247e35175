"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def networks() -> dict[str, Path]:
    """The two real networks, fetched once into models/ and verified."""
    script = [sys.executable, str(ROOT / "scripts" / "fetch_models.py"), "minilm", "blazepose"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {
        "minilm": ROOT / "models" / "minilm" / "model.safetensors",
        "blazepose": ROOT / "models" / "blazepose" / "pose_landmark_full.tflite",
    }
