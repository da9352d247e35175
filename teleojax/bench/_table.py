"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby

from rich import box
from rich.table import Table

from teleojax.bench._contestants import SUBJECT
from teleojax.bench._record import Record
from teleojax.bench._suite import Results

COLUMNS = ("values/s", "GB/s", "of read", "best", "median", "first run", "teleojax is", "error")


def results_table(records: Iterable[Record], title: str) -> Table:
    """One line a contestant, the benchmarks one after another."""
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("benchmark · contestant", overflow="fold", min_width=24)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for (benchmark, dtype), group in groupby(records, key=lambda r: (r.benchmark, r.dtype)):
        table.add_row(f"[bold]{benchmark}{f' · {dtype}' if dtype else ''}[/bold]")
        for record in group:
            table.add_row(f"  {record.contestant}", *cells(record), record.note)
        table.add_section()
    return table


def cells(record: Record) -> list[str]:
    """The numbers of a record under COLUMNS, a dash where there is none."""
    return [
        _number(record.values_per_s, "{:.2e}"),
        _number(record.bytes_per_s, "{:.2f}", 1e-9),
        _number(record.share_of_read, "{:.2f}"),
        seconds(record.best_s),
        seconds(record.median_s),
        seconds(record.warmup_s),
        "" if record.contestant == SUBJECT else ratio(record.teleojax_speedup),
        "0" if record.error == 0 else _number(record.error, "{:.0e}"),
    ]


def ratio(speedup: float | None) -> str:
    """A speed-up in words: 12× faster, 1.3× slower, as fast (within 1%)."""
    if speedup is None:
        return "–"
    if abs(speedup - 1) < 0.01:
        return "as fast"
    return f"{speedup:.3g}× faster" if speedup >= 1 else f"{1 / speedup:.3g}× slower"


def seconds(value: float | None) -> str:
    """Seconds with three figures and a unit that fits."""
    if value is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def limits_line(results: Results) -> str:
    """The memory limits in one line."""
    limits = results.limits
    best = max(limits.methods, key=lambda name: limits.methods[name])
    return f"memory: read {limits.read / 1e9:.1f} GB/s ({best}), copy {limits.copy / 1e9:.1f} GB/s"


def results_json(results: Results) -> str:
    """The environment, the limits and the records as JSON, numbers in full precision, null for what does not exist."""
    content = {
        "environment": results.environment,
        "limits": asdict(results.limits),
        "records": [record.as_dict() for record in results.records],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value * scale)
