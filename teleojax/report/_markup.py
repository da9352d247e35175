"""The table for people as LaTeX and as Markdown; whatever a name holds stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from teleojax._errors import printable
from teleojax.report._report import Report
from teleojax.report._table import Cells, report_cells

TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "±": r"$\pm$", "–": "--", "*": "{*}",
}  # fmt: skip
NUMBER = re.compile(r"-[\d.,]+%?")
MARKS = re.compile(r"[!-+:-@\[-`{-~]")  # ASCII punctuation, but for , - . /
WEB = re.compile(r"(?i)\bwww\.")


def tex(text: str) -> str:
    """Text as LaTeX that prints it: specials escaped, ligatures and optional arguments kept apart."""
    return "".join(TEX.get(c, c) for c in re.sub("-(?=-)", "-\0", printable(text))).replace("\0", "{}")


def markdown(text: str) -> str:
    """Text as Markdown that shows it: no emphasis, links, HTML or cells of its own."""
    text = MARKS.sub(lambda m: f"&#{ord(m[0])};" if m[0] in "|\\<>&`" else f"\\{m[0]}", printable(text))
    return WEB.sub(lambda m: m[0].replace(".", "\\."), text)


def latex_table(report: Report) -> str:
    """A tabular in the style of the package booktabs; T1 fonts and textcomp where names hold quotation marks."""
    cells = report_cells(report, wide=True)
    columns = "".join(side[0] for side in cells.justify)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tex_row(cells.headings), r"\midrule"]
    lines += [_tex_row(row) for row in cells.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex_row(row: Sequence[str]) -> str:
    return " & ".join(f"${cell}$".replace("%", r"\%") if NUMBER.fullmatch(cell) else tex(cell) for cell in row) + r" \\"


def markdown_table(report: Report) -> str:
    """A pipe table, as GitHub and most others read it."""
    cells = report_cells(report, wide=True)
    rule = ["---:" if side == "right" else ":---" for side in cells.justify]
    return "".join(f"| {' | '.join(row)} |\n" for row in (_escaped(cells.headings), rule, *_rows(cells)))


def _escaped(row: Sequence[str]) -> list[str]:
    return [markdown(cell) for cell in row]


def _rows(cells: Cells) -> list[list[str]]:
    return [_escaped(row) for row in cells.rows]
