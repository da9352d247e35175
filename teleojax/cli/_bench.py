"""`teleojax bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from teleojax.cli._options import refuse_without_folder
from teleojax.cli._output import PIPED_WIDTH
from teleojax.report import write_atomically


@click.command("bench", short_help="Speed on this machine, beside its memory limit and peers.")
@click.option("--size", type=click.IntRange(min=8192), metavar="N",
              help="Values an array: default 2^27, with --quick 2^24.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer types, fewer rounds.")
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the records and the environment here as well, whole or not at all.")  # fmt: skip
def bench_command(size: int | None, quick: bool, output: Path | None) -> int:
    """Measure the speed of teleojax on this machine, beside its memory limit and what NumPy, SciPy and JAX reach.

    All contestants run in turn in one process, after their answers were checked. Share of read is the bytes a second
    over those of a pass that only reads the same memory. The default needs about 3 GB of memory and some minutes.
    """
    from teleojax.bench import limits_line, results_json, results_table, run_suite

    refuse_without_folder(output, "--json")
    messages = Console(stderr=True)
    with messages.status("measuring") as status:
        results = run_suite(size, quick=quick, say=status.update)
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width).print(results_table(results.records, limits_line(results)))
    if output is not None:
        write_atomically(output, results_json(results))
    return 0
