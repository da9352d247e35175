"""The shell pipelines of the README, run as they stand there."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save, save_file

from teleojax.cli import run
from tests.sharding.processes import ROOT, environment, lines

PIPELINES = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two shards: compressed, each by itself, and as a directory."""
    rng = np.random.default_rng(0)
    shards = [{f"layer.{i}.weight": rng.standard_normal((300, 200)).astype(np.float32)} for i in range(2)]
    (tmp_path / "shard-1.safetensors.zst").write_bytes(zstandard.compress(save(shards[0])))
    (tmp_path / "shard-2.safetensors.gz").write_bytes(gzip.compress(save(shards[1])))
    (tmp_path / "model-dir").mkdir()
    for number, shard in enumerate(shards):
        save_file(shard, tmp_path / "model-dir" / f"{number}.safetensors")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    return tmp_path


def test_they_run_and_agree(folder: Path) -> None:
    assert PIPELINES is not None
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", "-euo", "pipefail", "-c", PIPELINES[1]]
    done = subprocess.run(
        script, cwd=folder, env=environment(PATH=path), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert run(["fit", str(folder / "model-dir"), "-o", str(folder / "plain.jsonl")]) == 0
    plain = lines(folder / "plain.jsonl")
    for name in ("merged", "same", "resumed", "shared"):
        assert lines(folder / f"{name}.jsonl") == plain, name
    assert lines(folder / "shard-1.jsonl") == plain[:1]
