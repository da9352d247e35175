"""What is kept of a benchmark run: a small JSON file, a plot beside the memory limit, a Markdown table.

    python benchmarks/report.py                         reads results/raw.json, which `make bench` leaves
    python benchmarks/report.py FILE                    a dump of pytest-benchmark, or of `teleojax bench --json`
    python benchmarks/report.py --match 'log moments'   only these benchmarks in the table

Writes results/<machine>-<date>.json and .png; the table goes to standard output, the names of the files to standard
error. Exit status: 0 done, 2 usage, 3 FILE cannot be read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from teleojax.bench import SUBJECT
from teleojax.bench._table import ratio, seconds
from teleojax.report import plot_roofline

RESULTS = Path(__file__).parent / "results"
DIGITS = 6  # significant figures that are kept
PANELS = ("log moments", "exact counts")


def curated(dump: dict[str, Any]) -> dict[str, Any]:
    """Environment, limits and records of a dump, without nulls and in a few figures."""
    return {
        "environment": dump["environment"],
        "limits": rounded(dump["limits"]),
        "records": [rounded({k: v for k, v in r.items() if v is not None}) for r in dump["records"]],
    }


def rounded(value: Any) -> Any:
    """Floats to DIGITS significant figures, inside dictionaries too."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def as_text(content: dict[str, Any]) -> str:
    """JSON with one record a line."""
    records = ",\n".join("  " + json.dumps(r, ensure_ascii=False) for r in content["records"])
    head = {k: v for k, v in content.items() if k != "records"}
    return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "records": [\n{records}\n ]\n}}\n'


def stem_of(environment: dict[str, Any], quick: bool) -> str:
    """<machine>-<date>: the accelerator if there is one, else the processor and its cores."""
    machine = environment["machine"]
    name = f"{machine['cpu']} {machine['cores']} cores" if machine["platform"] == "cpu" else machine["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{slug}-{environment['date'][:10]}{'-quick' if quick else ''}"


def markdown(records: Iterable[dict[str, Any]]) -> str:
    """One line a contestant."""
    lines = [
        "| benchmark | type | contestant | values/s | GB/s | of memory read | time | teleojax is |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    before = None
    for r in records:
        here = (r["benchmark"], r.get("dtype", ""))
        if "best_s" not in r:
            numbers = ["", "", "", r["note"], ""]
        else:
            numbers = [
                f"{r['values_per_s']:.2g}" if "values_per_s" in r else "",
                f"{r['bytes_per_s'] / 1e9:.2f}" if "bytes_per_s" in r else "",
                f"{r['share_of_read']:.2f}" if "share_of_read" in r else "",
                seconds(r["best_s"]),
                "" if r["contestant"] == SUBJECT else ratio(r.get("teleojax_speedup")),
            ]
        first = here if here != before else ("", "")
        lines.append("| " + " | ".join([*first, r["contestant"], *numbers]) + " |")
        before = here
    return "\n".join(lines)


def plot(content: dict[str, Any], path: Path) -> None:
    """Values a second, type by type, under the roof that reading memory once sets."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.6), layout="constrained")
    for ax, benchmark in zip(axes, PANELS, strict=True):
        plot_roofline(content, benchmark, ax)
    machine, versions = content["environment"]["machine"], content["environment"]["versions"]
    date = content["environment"]["date"][:10]
    name = machine["cpu"] if machine["platform"] == "cpu" else machine["device"]
    title = f"{name}, {machine['cores']} cores · jax {versions['jax']} · teleojax {versions['teleojax']} · {date}"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Keep a benchmark run: JSON, plot, Markdown table.")
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS / "raw.json", help="default: results/raw.json")
    parser.add_argument("--match", default="", metavar="RE", help="benchmarks in the table")
    args = parser.parse_args(argv)
    try:
        dump = json.loads(args.file.read_text(encoding="utf-8"))
        content = curated(dump)
    except (OSError, ValueError, KeyError, TypeError) as e:
        print(f"{args.file}: no dump of a benchmark run ({type(e).__name__}: {e})", file=sys.stderr)
        return 3
    path = RESULTS / f"{stem_of(content['environment'], dump.get('quick', False))}.json"
    path.write_text(as_text(content), encoding="utf-8")
    plot(content, path.with_suffix(".png"))
    print(path, path.with_suffix(".png"), sep="\n", file=sys.stderr)
    print(markdown(r for r in content["records"] if re.search(args.match, r["benchmark"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
