"""Every command and the Python example of the README run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "console" for line in text.strip().splitlines()]
EXAMPLES = [text for kind, text in BLOCKS if kind == "python"]


@pytest.fixture
def folder(tmp_path: Path, networks: dict[str, Path]) -> Path:
    (tmp_path / "models").symlink_to(networks["minilm"].parents[1])
    return tmp_path


def run(command: list[str], where: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=where, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 4
    assert len(EXAMPLES) == 1
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, folder: Path) -> None:
    out = run(["bash", "-o", "pipefail", "-c", command], folder)
    written = [p for p in folder.iterdir() if p.name != "models"]
    assert out if "-o " not in command else written
    for path in written:
        assert path.stat().st_size > 1000
        if path.suffix == ".jsonl":
            assert "summary" in json.loads(path.read_text(encoding="utf-8").splitlines()[-1])


def test_python_example_prints_what_the_readme_shows(folder: Path) -> None:
    shown = re.search(r"```python\n.*?```\n+```text\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    out = run([sys.executable, "-c", EXAMPLES[0]], folder)
    got, want = (re.findall(r"-?\d+\.\d+|[a-z]+", text) for text in (out, shown[1]))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a == b if b.isalpha() else float(a) == pytest.approx(float(b), rel=1e-6)
