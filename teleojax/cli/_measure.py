"""`teleojax measure` and `teleojax merge`: statistics files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from teleojax.cli._options import (
    paths,
    reads,
    refuse_without_folder,
    selects,
    spreads,
    structures,
    target_of,
    writes_statistics,
)
from teleojax.cli._output import finish, leads, progress_bar, say_what_was_not_measured
from teleojax.cli._signals import stopping
from teleojax.engine import load_statistics, measure, merge_measured
from teleojax.report import save_statistics


@click.command("measure", short_help="Read once and keep the statistics.")
@paths
@selects
@structures
@click.option("--groups", type=click.IntRange(min=2), metavar="G",
              help="Keep the statistics of G contiguous blocks of each tensor as well, for a jackknife.")  # fmt: skip
@click.option("--cells", is_flag=True, help="Keep the rounding cells of quantised blocks, for --method interval.")
@writes_statistics
@reads
@spreads
def measure_command(paths: tuple[str, ...], output: Path, **options: Any) -> int:
    """Measure PATH... once and keep the statistics: `fit`, `merge` and comparisons need no weights after that.

    \b
    teleojax measure model-00001-of-00002.safetensors -o s1.stats
    zstd -dc shard.safetensors.zst | teleojax measure - -o s2.stats
    teleojax merge s1.stats s2.stats -o all.stats
    teleojax fit all.stats
    """
    refuse_without_folder(output)
    with progress_bar() as progress, stopping() as stop:
        measured = measure(target_of(paths), **options, progress=progress, stop=stop)
    if leads():
        save_statistics(measured, output)
    return finish(measured, stop)


@click.command("merge", short_help="Join statistics files of shards.")
@click.argument("files", nargs=-1, required=True, metavar="STATS...")
@writes_statistics
def merge_command(files: tuple[str, ...], output: Path) -> int:
    """Merge statistics files: of shards to a whole, of a tensor's parts, of models.

    Tensors of one name become one, as if their values had been measured together.
    """
    refuse_without_folder(output)
    merged = merge_measured(*(load_statistics(file) for file in files))
    save_statistics(merged, output)
    return say_what_was_not_measured(merged)
