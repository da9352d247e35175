"""Results as a table for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from teleojax._errors import printable
from teleojax.report._report import Report
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.stats import LogMoments

WIDE = 116  # columns of a terminal from which the table shows everything


class Column(NamedTuple):
    """A heading, what it shows of a result, how it is justified, and whether only a wide table has it."""

    heading: str
    cell: Callable[[TensorFit, LogMoments, LognormalFit], str]
    justify: Literal["left", "right"] = "right"
    wide: bool = False


def _decimals(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _share(part: int, whole: int) -> str:
    if part == 0:
        return "0"
    return f"{part / whole:.2%}" if part / whole >= 1e-4 else f"{part:,}"


def _gap(fit: LognormalFit) -> str:
    return f"{fit.kl_nats:.4f} ± {_decimals(1.96 * fit.kl_se)}" if math.isfinite(fit.kl_nats) else "–"


COLUMNS = (
    Column("mu", lambda _r, _m, f: _decimals(f.mu)),
    Column("sigma", lambda _r, _m, f: _decimals(f.sigma)),
    Column("kl nats ± 1.96 se", lambda _r, _m, f: _gap(f)),
    Column("skew", lambda _r, m, _f: _decimals(m.skew, 2), wide=True),
    Column("ks", lambda _r, _m, f: _decimals(f.ks), wide=True),
    Column("best", lambda r, _m, _f: r.best_family or "–", justify="left"),
    Column("gain", lambda r, _m, _f: _decimals(r.delta_nats)),
)


def report_table(report: Report, title: str, width: int) -> Table:
    """One line a tensor or group that was measured, for `width` columns of text.

    kl is the distance from arbitrage equilibrium per connection, gain what the best family gains over the lognormal.
    """
    grouped = any(r.tensors is not None for r in report.values())
    columns = [c for c in COLUMNS if width >= WIDE or not c.wide]
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("group" if grouped else "tensor", overflow="fold", min_width=8)
    if grouped:
        table.add_column("tensors", justify="right", no_wrap=True)
    elif width >= WIDE:
        table.add_column("role", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("zeros", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for r in report.values():
        if (moments := r.moments) is None:
            continue
        second = [str(r.tensors)] if grouped else [r.role or "–"] if width >= WIDE else []
        cells = [escape(printable(r.name)), *second, f"{moments.n:,}", _share(moments.n_zero, moments.size)]
        if r.status == "ok" and r.lognormal is not None:
            cells += [c.cell(r, moments, r.lognormal) for c in columns]
        else:
            cells += ["–"] * (len(columns) - 2) + [r.reason or "–", "–"]
        table.add_row(*cells)
    return table
