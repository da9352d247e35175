"""`teleojax gradient`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from teleojax.cli._options import Bytes, Names, paths, reads, selects, target_of
from teleojax.cli._output import emit, progress_bar, say_what_was_not_measured
from teleojax.diagnose import DENSITIES
from teleojax.kernels import WRT
from teleojax.report import SHARD_BYTES, gradient_summary, write_gradient


@click.command("gradient", short_help="The utility gradient of every parameter.")
@paths
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
              help="A directory for the gradients, written whole or not at all; default: only a summary.")  # fmt: skip
@click.option("--density", type=click.Choice(DENSITIES), default="empirical", show_default=True,
              help="The law of the weights: as they lie, or their maximum-likelihood lognormal.")  # fmt: skip
@click.option("--wrt", type=click.Choice(WRT), default="log", show_default=True,
              help="The gradient by ln|w| or by w.")  # fmt: skip
@click.option("--target", type=Names(), metavar="ALPHA,BETA",
              help="Of the equilibrium aimed at, in the measure dx; default: each tensor's own.")  # fmt: skip
@selects
@click.option("--shard-size", type=Bytes(), default=SHARD_BYTES, metavar="BYTES", help="Largest file of OUT; 5 GB.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there and not empty.")
@reads
def gradient_command(
    paths: tuple[str, ...],
    output: Path | None,
    target: tuple[str, ...] | None,
    shard_size: int,
    force: bool,
    **options: Any,
) -> int:
    """The utility gradient of every parameter of PATH...: where each connection would gain utility.

    It is 0 for every connection at arbitrage equilibrium. A JSON line a tensor says how it is distributed; its mean
    square is the relative Fisher information. OUT becomes a sharded safetensors directory like the one read.

    \b
    teleojax gradient model.safetensors > model.jsonl
    teleojax gradient model-dir/ -o gradient-dir/ --wrt value
    """
    try:
        goal = None if target is None else (float(target[0]), float(target[1])) if len(target) == 2 else ()
    except ValueError:
        goal = ()
    if goal == ():
        raise click.BadParameter("two numbers are needed, such as -1.5,0.4", param_hint="'--target'")
    path, options = target_of(paths), options | {"target": goal}
    with progress_bar() as progress:
        if output is not None:
            written = write_gradient(path, output, **options, shard_bytes=shard_size, force=force, progress=progress)
            report = written.report
            click.echo(f"teleojax: {written.nbytes:,} bytes in {len(written.files)} files: {output}", err=True)
        else:
            report = gradient_summary(path, **options, progress=progress)
    emit(report.jsonl(), None)
    return say_what_was_not_measured(report.measured)
