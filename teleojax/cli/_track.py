"""`teleojax track`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from teleojax._errors import printable
from teleojax.cli._options import Names, reads, refuse_without_folder, selects, structures
from teleojax.cli._output import PARTIAL, console_text, emit, progress_bar, table_width
from teleojax.cli._signals import stopping
from teleojax.fits import families_by_name
from teleojax.report import DEFAULT_FAMILIES, Trajectory, track, trajectory_table
from teleojax.report.plots import refuse_figure, save_figure

FORMATS = {"table": ".txt", "jsonl": ".jsonl", "csv": ".csv"}


@click.command("track", short_help="Every statistic over a run's checkpoints.")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...")
@click.option("--families", type=Names(), default=",".join(DEFAULT_FAMILIES), show_default=True, metavar="A,B",
              help="Families among which the best is sought; or all.")  # fmt: skip
@selects
@structures
@click.option("--step-pattern", metavar="RE", help="What the step is in a name: the first group of this expression.")
@click.option("--false-alarm", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.01,
              show_default=True, help="Share of series of noise in which a change may be found.")  # fmt: skip
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw the run as well: .png, .pdf, .svg; extra plots.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)),
              help="Default: by the ending of the output file, else a table.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write here instead of standard output; of JSON lines no step is read twice.")  # fmt: skip
@reads
def track_command(
    checkpoints: tuple[str, ...],
    families: tuple[str, ...],
    step_pattern: str | None,
    false_alarm: float,
    figure: Path | None,
    form: str | None,
    output: Path | None,
    **options: Any,
) -> int:
    """Follow a run over its checkpoints: every statistic of every tensor by step, and where it changes.

    CKPT are checkpoints whose names say the step (checkpoint-500, step_1000.safetensors, ckpt-00012, global_step1000,
    epoch=3-step=900.ckpt, Orbax's 1000), statistics that `teleojax measure` wrote, or directories of them.

    \b
    teleojax track run/
    teleojax track run/ -o run.jsonl           measures every step, one JSON line a tensor and step
    teleojax track run/ -o run.jsonl           reads what is new since
    teleojax track run/*.ckpt --figure run.png

    In the table, ↑ and ↓ mark what changed from the first step to the last beyond its error at 95%, = what did not;
    changes are steps at which the straight line that a statistic follows breaks or bends.
    """
    refuse_without_folder(output)
    refuse_without_folder(figure, "--figure")
    if figure is not None:
        refuse_figure(figure)
    names = tuple(f.name for f in families_by_name(families))
    form = form or {ending: f for f, ending in FORMATS.items()}.get(output.suffix if output else "", "table")
    kept = output if form == "jsonl" else None
    with progress_bar() as progress, stopping() as stop:
        run = track(
            list(checkpoints), out=kept, step_pattern=step_pattern, families=names, false_alarm=false_alarm,
            progress=progress, stop=stop, **options,
        )  # fmt: skip
    if kept is None:
        emit(_text(run, form, output), output)
    if figure is not None and run.points:
        save_figure(run, figure)
    code = _said(run)
    return stop.code or code


def _text(run: Trajectory, form: str, output: Path | None) -> str:
    if form == "table":
        return console_text([trajectory_table(run, table_width(output))], output)
    return run.jsonl() if form == "jsonl" else run.csv()


def _said(run: Trajectory) -> int:
    """Steps read and kept, and tensors that could not be measured, on standard error; the exit code."""
    total = run.summary
    click.echo(f"teleojax: {total['steps']} steps: {total['measured']} read, {total['kept']} kept", err=True)
    failed = [(p, r) for p in run.points for r in p.report.values() if r.status == "failed"]
    for point, result in failed:
        click.echo(printable(f"teleojax: {point.checkpoint}: {result.name}: not measured: {result.reason}"), err=True)
    return PARTIAL if failed else 0
