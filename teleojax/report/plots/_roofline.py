"""The figure of a benchmark run: rates of all contestants under the roof that reading memory sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teleojax._errors import UsageError
from teleojax.report.plots._style import canvas, legend, style_named

SUBJECT = "teleojax"  # the contestant that others are compared with
MEMORY_READ = "memory read"  # the contestant that only reads: the limit of everything that reads the same bytes
COLUMNS = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32", "float64")
WIDE = (8.4, 4.0)  # inches
ABOVE: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "fontsize": 7, "ha": "center"}


def plot_roofline(
    run: Mapping[str, Any], benchmark: str = "log moments", ax: Any = None, *, style: str = "light"
) -> Any:
    """Values a second of every contestant of a benchmark, type by type; bars are the rate of reading the same bytes.

    `run` is what `teleojax bench --json` writes, or a file of benchmarks/results, read. Percentages are teleojax's
    share of the rate of reading. What was not timed is left out, and so are teleojax's own variants. Returns the Axes.
    Raises UsageError where the run has no timed record of the benchmark, MissingExtraError without matplotlib.
    """
    look = style_named(style)
    timed = [r for r in run["records"] if r.get("values_per_s")]
    records = [r for r in timed if r["benchmark"] == benchmark and not r["contestant"].startswith(f"{SUBJECT}, ")]
    if not records:
        names = ", ".join(dict.fromkeys(r["benchmark"] for r in timed)) or "a run with records that were timed"
        raise UsageError("benchmark", found=repr(benchmark), needed=f"one of {names}", remedy="Choose one of them.")
    types = {r["dtype"] for r in records}
    columns = [d for d in COLUMNS if d in types] + sorted(types.difference(COLUMNS))
    contestants = sorted({r["contestant"] for r in records} - {MEMORY_READ}, key=lambda name: (name != SUBJECT, name))
    ax = canvas(ax, look, WIDE)
    for i, name in enumerate(contestants):
        mine = [r for r in records if r["contestant"] == name]
        x, y = [columns.index(r["dtype"]) for r in mine], [r["values_per_s"] for r in mine]
        ax.plot(x, y, ls="", ms=5, label=name, **look.marks(i))
    roof = [r for r in records if r["contestant"] == MEMORY_READ]
    for i, r in enumerate(roof):
        x, label = columns.index(r["dtype"]), MEMORY_READ if i == 0 else None
        ax.hlines(r["values_per_s"], x - 0.4, x + 0.4, color=look.ink, lw=1.4, label=label)
    for r in records:
        at = columns.index(r["dtype"]), r["values_per_s"]
        if r["contestant"] == MEMORY_READ:
            ax.annotate(f"{r['bytes_per_s'] / 1e9:.1f} GB/s", at, color=look.ink, **ABOVE)
        elif r["contestant"] == SUBJECT and r.get("share_of_read"):
            ax.annotate(f"{r['share_of_read']:.0%}", at, color=look.ink, **ABOVE)
    ax.set_xticks(range(len(columns)), columns)
    ax.set(yscale="log", xlim=(-0.6, len(columns) - 0.4), title=benchmark)
    ax.set(xlabel="type of the values", ylabel="values a second")
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
    return ax
