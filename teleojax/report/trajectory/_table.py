"""A trajectory as a table for people: a tensor a line, from the first step that has it to the last."""

from __future__ import annotations

import math
from html import escape as html_escape

from rich.markup import escape
from rich.table import Table
from scipy.special import ndtri

from teleojax._errors import printable
from teleojax.report._compare import _difference
from teleojax.report._comparison_table import ARROWS
from teleojax.report._notebook import MOST_ROWS, STYLE
from teleojax.report._table import Cells, plain_table
from teleojax.report.trajectory._result import PRESENT, TensorTrajectory, Trajectory

SHOWN = {"mu": "mu", "sigma": "sigma", "kl_nats": "kl"}  # statistics with columns, and how their changes are called
MOST_STEPS = 3  # of one statistic in a cell
LEVEL = 0.95  # from which a change from first to last has an arrow
WIDE = 116  # columns of a terminal from which changes are shown


def trajectory_cells(trajectory: Trajectory, *, wide: bool = True) -> Cells:
    """First → last of mu, sigma and kl nats, ↑ and ↓ where that is more than its error at 95%; steps of changes."""
    headings = ["tensor", "steps", "mu", "sigma", "kl nats", "best", "changes at step"]
    cells = Cells(headings, ["left", "right", "right", "right", "right", "left", "left"], [])
    if not wide:
        del cells.headings[-1], cells.justify[-1]
    z = float(ndtri((1 + LEVEL) / 2))
    for tensor in trajectory.values():
        first, last = tensor.measured[0], tensor.measured[-1]
        numbers = []
        for stat in SHOWN:
            change = _difference(first, last, stat, z)
            ends = " → ".join(f"{v:.4f}" if math.isfinite(v) else "–" for v in (change.a, change.b))
            numbers.append(f"{ends} {ARROWS[change.sign]}")
        before, after = first.best_bic or "–", last.best_bic or "–"
        best = before if before == after else f"{before} → {after}"
        row = [tensor.name, str(len(tensor.measured)), *numbers, best, *([changes_text(tensor)] if wide else [])]
        cells.rows.append([printable(text) for text in row])
    return cells


def changes_text(tensor: TensorTrajectory) -> str:
    """Where a tensor changes: "mu 900 1500; kl 900; gone 2000"; other statistics by their number."""
    parts = []
    for stat, word in SHOWN.items():
        if steps := [str(c.step) for c in tensor.changes_of(stat)]:
            parts.append(" ".join([word, *steps[:MOST_STEPS], *(["…"] if len(steps) > MOST_STEPS else [])]))
    parts += [f"{'since' if c.present else 'gone'} {c.step}" for c in tensor.changes_of(PRESENT)]
    others = sum(c.stat not in (*SHOWN, PRESENT) for c in tensor.changes)
    return "; ".join([*parts, *([f"{others} of other statistics"] if others else [])]) or "–"


def title_of(trajectory: Trajectory) -> str:
    """How many steps, and of what."""
    points, total = trajectory.points, trajectory.summary
    if not points:
        return "no steps"
    ends = f"{points[0].checkpoint} → {points[-1].checkpoint}"
    return printable(f"{ends}: {len(points)} steps, {len(trajectory)} tensors, {total['changes']} changes")


def trajectory_table(trajectory: Trajectory, width: int) -> Table:
    """One line a tensor that any step measured, for `width` columns of text."""
    cells = trajectory_cells(trajectory, wide=width >= WIDE)
    table = plain_table(escape(title_of(trajectory)))
    for heading, justify in zip(cells.headings, cells.justify, strict=True):
        folds = heading in ("tensor", "changes at step")
        table.add_column(
            heading, justify=justify, no_wrap=not folds, overflow="fold", min_width=8 if folds else None
        )  # fmt: skip
    for row in cells.rows:
        table.add_row(*map(escape, row))
    return table


def notebook_html(trajectory: Trajectory) -> str:
    """The same table as HTML, at most MOST_ROWS lines of it; nothing is fetched."""
    cells = trajectory_cells(trajectory)
    sides = [side[0] for side in cells.justify]

    def line(tag: str, texts: list[str]) -> str:
        return "".join(f'<{tag} class="{s}">{html_escape(t)}</{tag}>' for s, t in zip(sides, texts, strict=True))

    body = [f"<tr>{line('td', row)}</tr>" for row in cells.rows[:MOST_ROWS]]
    more = len(cells.rows) - len(body)
    return "\n".join(
        [
            STYLE,
            '<table class="teleojax">',
            f"<caption>{html_escape(title_of(trajectory))}</caption>",
            f"<thead><tr>{line('th', cells.headings)}</tr></thead>",
            "<tbody>",
            *body,
            "</tbody></table>",
            *([f"<p>{more:,} more rows are not shown.</p>"] if more else []),
        ]
    )
