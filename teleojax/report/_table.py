"""Results as a table for people."""

from __future__ import annotations

import math

from rich import box
from rich.markup import escape
from rich.table import Table

from teleojax._errors import printable
from teleojax.report._report import Report
from teleojax.report._result import TensorFit

COLUMNS = (  # heading, how to justify
    ("n", "right"),
    ("zeros", "right"),
    ("mu", "right"),
    ("sigma", "right"),
    ("kl nats ± 1.96 se", "right"),
    ("skew", "right"),
    ("ks", "right"),
    ("best family", "left"),
    ("gain nats", "right"),
)


def report_table(report: Report, title: str) -> Table:
    """One line a tensor or group that was measured; kl is the distance from arbitrage equilibrium per connection."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    grouped = any(r.tensors is not None for r in report.values())
    table.add_column("group" if grouped else "tensor", overflow="fold", min_width=12)
    if grouped:
        table.add_column("tensors", justify="right")
    else:
        table.add_column("role", overflow="fold")
    for heading, justify in COLUMNS:
        table.add_column(heading, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for result in report.values():
        if result.status in ("ok", "degenerate"):
            second = str(result.tensors) if grouped else result.role or "–"
            table.add_row(escape(printable(result.name)), second, *_cells(result))
    return table


def _cells(result: TensorFit) -> list[str]:
    fit, moments = result.lognormal, result.moments
    if moments is None or fit is None or result.status != "ok":
        counts = ["–", "–"] if moments is None else [f"{moments.n:,}", _share(moments.n_zero, moments.size)]
        return [*counts, *["–"] * 5, result.reason or "", "–"]
    return [
        f"{moments.n:,}",
        _share(moments.n_zero, moments.size),
        f"{fit.mu:.4f}",
        f"{fit.sigma:.4f}",
        f"{_decimals(fit.kl_nats)} ± {_decimals(1.96 * fit.kl_se)}" if math.isfinite(fit.kl_nats) else "–",
        _decimals(moments.skew, 2),
        _decimals(fit.ks),
        result.best_family or "–",
        _decimals(result.delta_nats),
    ]


def _share(part: int, whole: int) -> str:
    return "0" if part == 0 else f"{part / whole:.2%}" if part / whole >= 1e-4 else f"{part:,}"


def _decimals(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
