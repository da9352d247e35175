"""Tables of the kept benchmark runs (benchmarks/results/*.json), made when the site is built; no number is typed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SUBJECT = "teleojax"
READ = "memory read"
Record = dict[str, Any]


@cache
def runs() -> list[dict[str, Any]]:
    """The runs that are kept, newest first, each with the name of its `file`."""
    found = [p for p in RESULTS.glob("*.json") if not p.name.startswith("raw") and not p.stem.endswith("-quick")]
    content = [{"file": p.name, **json.loads(p.read_text(encoding="utf-8"))} for p in found]
    return sorted(content, key=lambda run: run["environment"]["date"], reverse=True)


def machine_of(run: dict[str, Any]) -> str:
    """What the run was made on."""
    machine = run["environment"]["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores" if machine["platform"] == "cpu" else machine["device"]


def about(run: dict[str, Any]) -> str:
    """Machine, versions, commit and memory limits of a run, in a sentence each, with a link to its numbers."""
    environment, limits = run["environment"], run["limits"]
    machine, versions = environment["machine"], environment["versions"]
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine_of(run)}, {machine['memory_bytes'] / 2**30:.0f} GiB of memory, {machine['system']}; {names}; "
        f"commit {environment['commit'][:10]}, {environment['date'][:16].replace('T', ' ')} UTC. Memory of the "
        f"{machine['platform']} is read at {limits['read'] / 1e9:.1f} GB/s, copied at {limits['copy'] / 1e9:.1f} GB/s. "
        f"All numbers: [{run['file']}](results/{run['file']})."
    )


def benchmarks_of(run: dict[str, Any]) -> dict[str, list[Record]]:
    """The records that have a time, by benchmark, in the order they were run."""
    found: dict[str, list[Record]] = {}
    for record in run["records"]:
        if "best_s" in record:
            found.setdefault(record["benchmark"], []).append(record)
    return found


def speed_table(records: Iterable[Record]) -> str:
    """A line a contestant: rate, share of the memory limit, time, and how many times as fast teleojax is."""
    lines = ["| type | contestant | 10⁹ values/s | of memory read | best | teleojax is | what it does |",
             "|---|---|--:|--:|--:|--:|---|"]  # fmt: skip
    before = None
    for r in records:
        dtype = r.get("dtype") or ""
        own = r["contestant"].startswith(SUBJECT)
        cells = [
            dtype if dtype != before else "",
            f"**{r['contestant']}**" if r["contestant"] == SUBJECT else r["contestant"],
            f"{r['values_per_s'] / 1e9:.3g}" if "values_per_s" in r else "",
            f"{r['share_of_read']:.2f}" if "share_of_read" in r else "",
            duration(r["best_s"]),
            f"{r['teleojax_speedup']:.3g}×" if "teleojax_speedup" in r and not own else "",
            (r.get("note") or "").replace("|", "\\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        before = dtype
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds to three figures."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def all_runs(heading: str = "##") -> str:
    """Every run with all its benchmarks, each in a box that opens."""
    parts = []
    for run in runs():
        parts += [
            f"{heading} {machine_of(run)}, {run['environment']['date'][:16].replace('T', ' ')}",
            "",
            about(run),
            "",
        ]
        for name, records in benchmarks_of(run).items():
            parts += [f'??? note "{name}"', ""]
            parts += [f"    {line}" for line in speed_table(records).splitlines()] + [""]
    return "\n".join(parts)


def headline(chosen: dict[str, str], run: dict[str, Any] | None = None) -> str:
    """Of some benchmarks, in words of the page: each type's rate and how many times as fast as the others it is."""
    run = run or runs()[0]
    others = ("NumPy, blocked", "SciPy lognorm.fit", "torch", "jax.numpy")
    lines = [
        f"| | type | 10⁹ values/s | of memory read | {' | '.join(others)} |",
        f"|---|---|--:|--:|{'--:|' * len(others)}",
    ]
    for benchmark, words in chosen.items():
        records = benchmarks_of(run)[benchmark]
        for dtype in dict.fromkeys(r["dtype"] for r in records):
            of = {r["contestant"]: r for r in records if r["dtype"] == dtype}
            own = of[SUBJECT]
            times = [
                f"{of[o]['teleojax_speedup']:.1f}×" if "teleojax_speedup" in of.get(o, {}) else "–" for o in others
            ]
            cells = [words, dtype, f"{own['values_per_s'] / 1e9:.2f}", f"{own['share_of_read']:.2f}", *times]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def error_table(run: dict[str, Any] | None = None) -> str:
    """The largest relative error of each answer that was timed, of teleojax and of the others."""
    run = run or runs()[0]
    lines = ["| benchmark | type | contestant | largest relative error | of what |", "|---|---|---|--:|---|"]
    for name, records in benchmarks_of(run).items():
        for r in records:
            if (
                r.get("error") is not None
                and (name.startswith(("accuracy", "log moments")))
                and r["contestant"] != READ
            ):
                shown = f"**{r['contestant']}**" if r["contestant"] == SUBJECT else r["contestant"]
                lines.append(f"| {name} | {r['dtype']} | {shown} | {r['error']:.1e} | {r.get('note', '')} |")
    return "\n".join(lines)
