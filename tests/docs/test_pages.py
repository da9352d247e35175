"""The pages of docs/: which of their code is run, what they say of the package, the numbers in their tables."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from teleojax.cli import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("", ".teleo", ".train", ".families", ".engine", ".report.plots")
MOST_NOT_RUN = 12


def site(name: str) -> ModuleType:
    """A module of docs/_site, which is no package."""
    sys.path.insert(0, str(DOCS / "_site"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS / "_site"))


@pytest.fixture(scope="module")
def blocks() -> ModuleType:
    return site("blocks")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_block_is_run_or_says_that_it_is_not(page: Path, blocks: ModuleType) -> None:
    assert list(blocks.faults_of(page.read_text(encoding="utf-8"))) == []


def test_few_blocks_are_not_run(blocks: ModuleType) -> None:
    everything = [b for page in PAGES for b in blocks.blocks_of(page.read_text(encoding="utf-8"))]
    not_run = [b for b in everything if "run" in b.options]
    assert 0 < len(not_run) <= MOST_NOT_RUN
    assert sum(b.is_run for b in everything) > 4 * len(not_run)


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("```python\n1 + 1\n", "not closed"),
        ("```\n1 + 1\n```\n", "without a language"),
        ('```sh run="no"\nsrun teleojax\n```\n', "neither"),
        ('```sh title="Not run here: too long"\nmake bench\n```\n', "neither"),
        ('```text run="no" title="Not run here: words"\nwords\n```\n', "of a text block"),
        ('```sh run="maybe" title="Not run here: who knows"\nls\n```\n', "run='maybe'"),
    ],
)
def test_a_block_that_is_neither_is_found(page: str, fault: str, blocks: ModuleType) -> None:
    (said,) = blocks.faults_of(page)
    assert fault in said


def test_what_the_plugin_is_told(blocks: ModuleType) -> None:
    page = (
        'A\n\n```python\nx = 1\n```\n\n```console\nls\n```\n\n```sh run="no" title="Not run here: no"\nsrun\n```\n\n'
        '```python source="none"\nprint(x)\n```\n\n```text\nx\n```\n\n```python\nr.plot_wins()\n```\n'
    )
    found = list(blocks.blocks_of(blocks.prepared(page, "s", "/tmp/s")))
    shown = {"exec": "on", "source": "block", "result": "text", "session": "s", "workdir": "/tmp/s"}
    hidden = {"exec": "on", "session": "s", "workdir": "/tmp/s"}
    assert [(b.language, b.options) for b in found] == [
        ("python", shown), ("bash", shown), ("bash", {"title": "Not run here: no"}), ("python", hidden), ("text", {}),
        ("python", shown), ("python", {"exec": "on", "html": "on", "session": "s"}),
    ]  # fmt: skip
    assert found[-1].code == "from figures import drawn\nprint(drawn('r.plot_wins()\\n'))\n"


def test_blocks_of_the_readme_are_those_that_its_tests_run(blocks: ModuleType) -> None:
    """console and python by tests/edge/test_readme.py, sh by tests/io/test_shell_pipelines.py; the rest is no code."""
    languages = [b.language for b in blocks.blocks_of(README)]
    assert languages.count("python") == languages.count("sh") == 1
    assert set(languages) <= {"console", "python", "sh", "text", "bibtex"}


def exported(room: str) -> set[str]:
    tree = ast.parse(Path(str(importlib.import_module(f"teleojax{room}").__file__)).read_text(encoding="utf-8"))
    names = {a.asname for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
    return names | {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room: str) -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "reference").glob("*.md"))
    listed = set(re.findall(rf"^::: teleojax{re.escape(room)}\.(\w+)$", text, re.MULTILINE))
    elsewhere = {"__version__", "engine", "teleo", "train", "FAMILIES"} if room == "" else set()
    if room == ".engine":
        elsewhere = exported("") & exported(room)
    assert listed == exported(room) - elsewhere
    for name in listed:
        assert getattr(importlib.import_module(f"teleojax{room}"), name).__doc__


def test_every_figure_is_in_the_gallery() -> None:
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    figures = {name for name in exported(".report.plots") if name.startswith("plot_")}
    assert len(figures) >= 7
    for name in figures:
        heading = gallery.index(f"### {name}\n")
        section = gallery[heading : gallery.find("\n### ", heading + 1)]
        assert f"{name}(" in section.split("```python")[1]


@pytest.mark.parametrize("command", [cli, *cli.commands.values()], ids=lambda c: c.name)
def test_help_stands_by_itself(command: click.Command) -> None:
    """Every command says what it does and every option what it is for, within 100 columns."""
    context = click.Context(command, info_name="teleojax", terminal_width=100, help_option_names=["-h", "--help"])
    text = command.get_help(context)
    assert max(map(len, text.splitlines())) <= 100
    summary = (command.help or "").split("\n\n")[0]
    assert len(summary) > 30
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.endswith((".", ";")) or option.help[-1] in ")]", option.name


def test_tables_hold_the_numbers_of_the_files() -> None:
    tables = site("tables")
    files = [p for p in (ROOT / "benchmarks" / "results").glob("*.json") if not re.match(r"raw|.*-quick", p.stem)]
    page = tables.all_runs()
    assert len(tables.runs()) == len(files) >= 2
    for path in files:
        run = json.loads(path.read_text(encoding="utf-8"))
        timed = [r for r in run["records"] if "best_s" in r]
        assert f"[{path.name}](results/{path.name})" in page
        lines = tables.benchmarks_of(run)
        assert sum(map(len, lines.values())) == len(timed)
        for r in [r for r in timed if {"values_per_s", "share_of_read"} <= r.keys()][:20]:
            line = tables.speed_table([r]).splitlines()[-1]
            assert r["contestant"] in line
            rate, share, _, times = (c.strip() for c in line.split("|")[3:7])
            assert float(rate) * 1e9 == pytest.approx(r["values_per_s"], rel=5e-3)
            assert float(share) == pytest.approx(r["share_of_read"], abs=5e-3)
            assert times == "" or float(times.rstrip("×")) == pytest.approx(r["teleojax_speedup"], rel=5e-3)
    assert [tables.duration(s) for s in (3.4375, 0.0133, 4.2e-5)] == ["3.44 s", "13.3 ms", "42 µs"]
    errors = [r for r in tables.runs()[0]["records"] if r["benchmark"] == "accuracy" and r["contestant"] == "teleojax"]
    assert f"{errors[0]['error']:.1e}" in tables.error_table()
