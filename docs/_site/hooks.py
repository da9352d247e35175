"""What mkdocs does here beyond its plugins: code of every page is run, formulas are set, built pages are checked."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from blocks import faults_of, prepared  # mkdocs finds what lies beside a hook
from formulas import with_mathml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LINKED = ("models", "scripts", "examples", "benchmarks")  # what a page's commands find in their folder

log = logging.getLogger("mkdocs.hooks")
OUTSIDE = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)="?(?:https?:)?//[^">\s]+', re.I)
LINKS = re.compile(r'<a\b[^>]*?\bhref="([a-z]+:[^"]*)"')
ADDRESS = re.compile(r"https://[\w-]+(?:\.[\w-]+)+(?:/[^\s<>]*)?|mailto:\S+@\S+")
EMPTY = re.compile(
    r'<div class="result">\s*<div class="[^"]*highlight"><pre>(?:<span></span>)?<code>\s*</code></pre></div>\s*</div>'
)
_folder: list[Path] = []
_began: list[float] = []


def on_startup(**_: Any) -> None:
    """What the blocks see: the processor alone, a shell that stops at the first fault, figures without a screen."""
    folder = Path(tempfile.mkdtemp(prefix="teleojax-docs-"))
    _folder.append(folder)
    rules = folder / ".bashrc"
    rules.write_text("set -euo pipefail\n", encoding="utf-8")
    os.environ |= {
        "BASH_ENV": str(rules), "MPLBACKEND": "Agg", "NO_COLOR": "1", "COLUMNS": "110",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))  # commands need not compile anew
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    sys.path.insert(0, str(HERE))  # blocks import `tables` and `figures`


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Mark what is run; each page has a session and a folder of its own."""
    for fault in faults_of(markdown):
        log.warning("%s: %s", page.file.src_path, fault)
    name = re.sub(r"\W+", "-", page.file.src_path.removesuffix(".md"))
    _began.append(perf_counter())
    folder = _folder[0] / name
    if not folder.is_dir():
        folder.mkdir()
        for linked in LINKED:
            (folder / linked).symlink_to(ROOT / linked)
    return prepared(markdown, name, str(folder))


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Formulas, and nothing where a block printed nothing."""
    log.info("%s: %.1f s", page.file.src_path, perf_counter() - _began.pop())
    return EMPTY.sub("", with_mathml(html))


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """A page asks nothing of other machines when it is opened, and where it links to them the address is one."""
    for address in LINKS.findall(output):
        if not ADDRESS.fullmatch(address):
            log.warning("%s: no address: %s", page.file.src_path, address)
    for request in OUTSIDE.findall(output):
        log.warning("%s: a request to outside: %s", page.file.src_path, request)
    return output


def on_post_build(*, config: Any, **_: Any) -> None:
    """What blocks have kept, and the benchmark runs that tables were made from."""
    import figures
    import tables

    site = Path(config["site_dir"])
    (site / "results").mkdir(exist_ok=True)
    for run in tables.runs():
        shutil.copyfile(tables.RESULTS / run["file"], site / "results" / run["file"])
    for place, path in figures.KEPT.items():
        shutil.copyfile(path, site / place)


def on_shutdown(**_: Any) -> None:
    """Remove what the blocks have written."""
    for folder in _folder:
        shutil.rmtree(folder, ignore_errors=True)
