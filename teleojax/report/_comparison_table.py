"""A comparison as tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table
from scipy.special import ndtri

from teleojax._errors import printable
from teleojax.report._comparison import Change, Comparison, TensorChange
from teleojax.report._result import TensorFit
from teleojax.report._table import plain_table

HEADINGS = ("d mu", "d sigma", "d kl nats", "w1 ln|w|")
ARROWS = {1: "↑", -1: "↓", 0: "=", None: " "}


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The pairs; the roles, if any; what only one network has, if anything.

    A change stands with its interval; ↑ and ↓ mark one beyond it, = one within.
    """
    z = float(ndtri((1 + comparison.level) / 2))
    title = f"{comparison.source_a} → {comparison.source_b}: change of each tensor ± {z:.2f} se"
    tables = [_changes(title, "tensor", comparison.changes.values(), z)]
    if comparison.roles:
        tables.append(_changes("by role, tensors of both merged", "role", comparison.roles.values(), z))
    for source, alone in ((comparison.source_a, comparison.only_a), (comparison.source_b, comparison.only_b)):
        if alone:
            tables.append(_alone(source, alone))
    return tables


def _changes(title: str, what: str, changes: Iterable[TensorChange], z: float) -> Table:
    table = plain_table(escape(printable(title)))
    table.add_column(what, overflow="fold", min_width=8)
    table.add_column("matched by" if what == "tensor" else "tensors", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best", no_wrap=True)
    for cells in change_cells(changes, z):
        table.add_row(*map(escape, cells))
    return table


def change_cells(changes: Iterable[TensorChange], z: float) -> list[list[str]]:
    """The rows of that table as text: control characters as escapes, intervals of `z` standard errors."""
    rows = []
    for c in changes:
        name = c.a.name if c.a.name == c.b.name else f"{c.a.name} → {c.b.name}"
        cells = [_change(change, z) for change in (c.mu, c.sigma, c.kl_nats)]
        w1 = f"{c.w1_log:.5f}" if math.isfinite(c.w1_log) else c.reason or "–"
        before, after = c.a.best_bic or "–", c.b.best_bic or "–"
        best = before if before == after else f"{before} → {after}"
        second = c.matched if c.tensors is None else str(c.tensors)
        rows.append([printable(text) for text in (name, second, *cells, w1, best)])
    return rows


def _change(change: Change, z: float) -> str:
    if not math.isfinite(change.delta):
        return "–"
    error = f" ± {z * change.se:.4f}" if math.isfinite(change.se) else ""
    return f"{change.delta:+.4f}{error} {ARROWS[change.sign]}"


def _alone(source: str, results: Iterable[TensorFit]) -> Table:
    table = plain_table(escape(printable(f"only in {source}")))
    for heading in ("tensor", "role", "shape"):
        table.add_column(heading, overflow="fold")
    for r in results:
        shape = "x".join(map(str, r.shape or ()))
        table.add_row(*(escape(printable(text)) for text in (r.name, r.role or "–", shape)))
    return table
