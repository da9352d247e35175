"""Results as Markdown, LaTeX and in a notebook: every cell is there, and a name is never more than text."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

import teleojax as tj
from teleojax._errors import printable
from teleojax.report import report_table
from teleojax.report._notebook import MOST_ROWS

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b\\|c\\",
    r"\input{/etc/passwd} $x_1$ %{}~^&#",
    "*[x](http://evil.example) **b** _i_ `c` ![y](z)",
    "www.evil.example https://evil.example a@evil.example",
    "\x1b[31mred\nnew\r\trow\x00",
    "</td></tr></table><style>*{display:none}</style>",
    "[bold]markup[/bold] --- ''quotes'' \"and\" `more`",
    "&amp; &#60; &lt;",
    "[] begins",
    "* begins",
    "q\u202egnp.lacitirc",
]


@pytest.fixture(scope="module")
def report() -> tj.Report:
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.02, 300).astype(np.float32) for name in HOSTILE}
    return tj.fit(params | {"zeros": np.zeros(9, np.float32), "ids": np.arange(3)})


def shown(report: tj.Report) -> list[str]:
    return [printable(name) for name, r in report.items() if r.moments is not None]


class Cells(HTMLParser):
    """Tags, and the text of each cell by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def test_markdown_shows_names_as_they_are(report: tj.Report) -> None:
    text = report.to_markdown()
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)
    found = Cells(html)
    assert {tag for tag, _ in found.tags} == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [row[0] for row in found.rows[1:]] == shown(report)
    assert len({len(row) for row in found.rows}) == 1
    assert found.rows[0][:4] == ["tensor", "role", "gain", "best"]
    assert f"{report[HOSTILE[0]].lognormal.mu:.4f}" in {row[6] for row in found.rows}
    assert not re.search(r"www\.|https?:|a@", text)  # what readers with automatic links would take for one


def untex(cell: str) -> str:
    """What LaTeX would print, of the commands that are allowed; anything else fails."""
    words = {
        "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<", "textgreater": ">",
        "textbar": "|", "textquotedbl": '"', "textquotesingle": "'", "textasciigrave": "`",
    }  # fmt: skip
    out, i = "", 0
    while i < len(cell):
        if match := re.match(r"\\([a-z]+)\{\}", cell[i:]):
            out += words[match[1]]
        elif (
            (match := re.match(r"\\([{}$&#%_])", cell[i:]))
            or (match := re.match(r"\{([\[\]*])\}", cell[i:]))
            or (match := re.match(r"(-)\{\}(?=-)", cell[i:]))
            or (match := re.match(r"([^\\{}$&#%_^~<>|\"'`\[\]*\n])", cell[i:]))
        ):
            out += match[1]
        else:
            raise AssertionError(cell[i:])
        i += match.end()
    return out


def test_latex_prints_names_as_they_are(report: tj.Report) -> None:
    lines = report.to_latex().splitlines()
    assert lines[:2] == [r"\begin{tabular}{llrlrrrrrrr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines[4:-2]]
    assert [untex(row[0]) for row in rows] == shown(report)
    assert {len(row) for row in rows} == {11}
    assert all(line.endswith(r" \\") for line in lines[4:-2])
    first = next(iter(report.values())).lognormal
    assert first is not None
    assert rows[0][6] == f"${first.mu:.4f}$"
    assert re.fullmatch(r"\d\.\d{4} \$\\pm\$ \d\.\d{4}", rows[0][8])


def test_the_terminal_shows_names_as_they_are(report: tj.Report) -> None:
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(report_table(report, "title", 250))
    text = console.export_text()
    assert re.search(r"[\x00-\x09\x0b-\x1f]", text) is None
    for name in shown(report):
        assert name in text


def test_the_notebook_table_is_complete_without_scripts(report: tj.Report) -> None:
    html = report._repr_html_()
    found = Cells(html)
    assert [row[0] for row in found.rows[1:]] == shown(report)
    assert len({len(row) for row in found.rows}) == 1
    tags = [tag for tag, _ in found.tags]
    assert set(tags) == {
        "style", "table", "thead", "tbody", "tr", "th", "td", "svg", "path", "polyline", "p", "script",
    }  # fmt: skip
    assert tags.count("script") == tags.count("table") == 1
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in found.tags for name in attrs)
    assert not re.search(r"https?:|@import|url\(", html.replace("https://evil.example", "").replace("http://evil", ""))
    numbers = [attrs["data-v"] for tag, attrs in found.tags if tag == "td" and "data-v" in attrs]
    assert f"{report[HOSTILE[0]].lognormal.mu:.4f}" in numbers


def test_sparklines_hold_the_values_within_four_deviations(report: tj.Report) -> None:
    pictures = re.findall(r"<svg.*?</svg>", report._repr_html_())
    assert len(pictures) == len(HOSTILE)
    tree = ElementTree.fromstring(pictures[0])
    path = tree[0].get("d")
    assert path is not None
    step = 96 / 32
    heights = np.asarray([float(h) for h in re.findall(r"v-([\d.]+)h", path)])
    top = re.findall(r"[\d.]+,([\d.]+)", tree[1].get("points") or "")
    scale = (22 - min(map(float, top))) / (1 / np.sqrt(2 * np.pi))  # pixels per unit of density of z
    assert heights.sum() * 8 / 32 / scale == pytest.approx(1, abs=0.05)
    assert 2 < len(heights) <= 32
    assert step == float(re.findall(r"h([\d.]+)V", path)[0])


def test_long_reports_say_how_much_is_not_shown() -> None:
    stats = tj.measure({"x": np.asarray([1.0, 2.0, 3.0], np.float32)})["x"]
    many = tj.fit({f"x{i}": stats for i in range(MOST_ROWS + 7)}, families="lognormal")
    assert "7 more rows are not shown" in many._repr_html_()


def test_groups_have_their_count_of_tensors(report: tj.Report) -> None:
    groups = report.group_by("model")
    assert groups.to_markdown().splitlines()[0].startswith("| group | tensors |")
    assert f" & {len(HOSTILE) + 1} & " in groups.to_latex()
    assert "pytree" in groups._repr_html_()
