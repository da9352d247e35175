"""Completion in a real shell, as the page on the command line sets it up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [
    ("teleojax ", {"fit", "measure", "merge", "compare", "gradient", "bench"}),
    ("teleojax fit --gr", {"--group-by", "--groups", "--grid"}),
    ("teleojax fit --method ", {"mle", "interval", "histogram", "probability-plot"}),
    ("teleojax merge --o", {"--output"}),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(("typed", "offered"), CASES, ids=[c[0].strip() for c in CASES])
def test_bash_completes(typed: str, offered: set[str]) -> None:
    """What bash does on Tab: the function that `complete` has registered fills COMPREPLY."""
    words = typed.split(" ")
    script = (
        'eval "$(_TELEOJAX_COMPLETE=bash_source teleojax)"\n'
        f"COMP_WORDS=({' '.join(repr(w) for w in words)})\nCOMP_CWORD={len(words) - 1}\n"
        "register=$(complete -p teleojax)\n"
        "function=${register##*-F }\nfunction=${function%% *}\n"
        '"$function" teleojax\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert offered <= found if typed.endswith("teleojax ") else offered == found
