"""Results as a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table
from scipy.special import ndtri

from teleojax._errors import printable
from teleojax.diagnose import Universality
from teleojax.report._report import Report
from teleojax.report._result import LognormalFit, TensorFit, WrittenMoments
from teleojax.report._wins import FamilyWins
from teleojax.stats import LogMoments

WIDE = 116  # columns of a terminal from which the table shows everything


class Row(NamedTuple):
    """A measured tensor or group, and how many standard errors an interval reaches."""

    result: TensorFit
    moments: LogMoments | WrittenMoments
    fit: LognormalFit
    z: float


class Column(NamedTuple):
    """A heading, what it shows of a row, how it is justified, and whether only a wide table has it."""

    heading: str
    cell: Callable[[Row], str]
    justify: Literal["left", "right"] = "right"
    wide: bool = False


def _decimals(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _share(part: int, whole: int) -> str:
    if part == 0:
        return "0"
    return f"{part / whole:.2%}" if part / whole >= 1e-4 else f"{part:,}"


def _gap(row: Row) -> str:
    fit = row.fit
    return f"{fit.kl_nats:.4f} ± {_decimals(row.z * fit.kl_se)}" if math.isfinite(fit.kl_nats) else "–"


GAIN, BEST, KL = "gain", "best", "kl nats"
COLUMNS = (
    Column(GAIN, lambda row: _decimals(row.result.gain(row.result.best_bic))),
    Column(BEST, lambda row: row.result.best_bic or "–", justify="left"),
    Column("n", lambda row: f"{row.moments.n:,}"),
    Column("zeros", lambda row: _share(row.moments.n_zero, row.moments.size)),
    Column("mu", lambda row: _decimals(row.fit.mu)),
    Column("sigma", lambda row: _decimals(row.fit.sigma)),
    Column(KL, _gap),
    Column("skew", lambda row: _decimals(row.moments.skew, 2), wide=True),
    Column("ks", lambda row: _decimals(row.fit.ks), wide=True),
)
COUNTS = ("n", "zeros")  # the columns that a tensor without a fit has too


def plain_table(title: str) -> Table:
    """An empty table in the style of all."""
    return Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


class Cells(NamedTuple):
    """A table before it is drawn: headings, whether each column is "left" or "right", and text by row and column."""

    headings: list[str]
    justify: list[Literal["left", "right"]]
    rows: list[list[str]]


def report_cells(report: Report, *, wide: bool) -> Cells:
    """One row a tensor or group that was measured; names on one line, control characters as escapes."""
    grouped = any(r.tensors is not None for r in report.values())
    columns = [c for c in COLUMNS if wide or not c.wide]
    z = float(ndtri((1 + report.options.level) / 2))
    table = Cells(["group" if grouped else "tensor"], ["left"], [])
    if grouped or wide:
        table.headings.append("tensors" if grouped else "role")
        table.justify.append("right" if grouped else "left")
    table.headings.extend(f"{c.heading} ± {z:.2f} se" if c.heading == KL else c.heading for c in columns)
    table.justify.extend(c.justify for c in columns)
    for r in report.values():
        if (moments := r.moments) is None:
            continue
        second = [str(r.tensors)] if grouped else [r.role or "–"] if wide else []
        row = Row(r, moments, r.lognormal or LognormalFit(*(math.nan,) * 4), z)
        fitted = r.status == "ok"
        cells = [c.cell(row) if fitted or c.heading in COUNTS else "–" for c in columns]
        if not fitted:
            cells[1] = r.reason or "–"
        table.rows.append([printable(cell) for cell in (r.name, *second, *cells)])
    return table


def report_table(report: Report, title: str, width: int) -> Table:
    """One line a tensor or group that was measured, for `width` columns of text.

    gain is what the best family, by BIC, gains over the lognormal in nats per value; kl the distance from arbitrage
    equilibrium per connection, with its interval.
    """
    cells = report_cells(report, wide=width >= WIDE)
    table = plain_table(title)
    table.add_column(cells.headings[0], overflow="fold", min_width=8)
    for heading, justify in zip(cells.headings[1:], cells.justify[1:], strict=True):
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in cells.rows:
        table.add_row(*map(escape, row))
    return table


def wins_table(wins: Mapping[str, FamilyWins], by: str) -> Table:
    """Which family wins, by lowest BIC, in how many tensors of each group; the mean gain of the winners, its range."""
    table = plain_table(f"families by {by}: tensors won by lowest BIC, gain over the lognormal in nats per value")
    table.add_column(by)
    for heading in ("gain", "least", "most", "tensors", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("won by")
    for name, group in wins.items():
        numbers = (_decimals(g) for g in (group.gain_nats, group.least_gain_nats, group.most_gain_nats))
        won = ", ".join(f"{family} {count}" for family, count in group.wins.items())
        table.add_row(escape(printable(name)), *numbers, str(group.tensors), f"{group.n:,}", won)
    return table


def universality_table(found: Mapping[str, Universality], by: str) -> Table:
    """Spread of mu, sigma and mu + ½ ln fan_in over the tensors of each group, beside what sampling explains."""
    table = plain_table(
        f"layers by {by}: spread between tensors, and that part (tau) which sampling error does not explain"
    )
    table.add_column(by)
    table.add_column("tensors", justify="right")
    for name in ("mu", "sigma", "mu + ½ ln fan_in"):
        for heading in (name, "spread", "tau"):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, group in found.items():
        cells = [str(group.mu.n)]
        for part in (group.mu, group.sigma, group.scaled_mu):
            numbers = (part.plain_mean, part.spread, part.tau) if part is not None else (math.nan,) * 3
            cells += [_decimals(number) for number in numbers]
        table.add_row(escape(printable(name)), *cells)
    return table
