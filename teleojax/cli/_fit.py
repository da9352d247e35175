"""`teleojax fit`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from teleojax.cli._options import Names, paths, reads, refuse_without_folder, selects, spreads, structures, target_of
from teleojax.cli._output import console_text, emit, finish, leads, progress_bar, say_skipped, table_width
from teleojax.cli._signals import stopping
from teleojax.diagnose import LARGE
from teleojax.families import FAMILIES
from teleojax.fits import families_by_name
from teleojax.report import (
    DEFAULT_FAMILIES,
    GROUPINGS,
    METHODS,
    Report,
    finding,
    fit,
    report_table,
    require_page,
    require_parquet,
    statistics_of,
    universality_table,
    wins_table,
)

TEXT_WIDTH = 120  # columns of running text
FORMATS = {"table": ".txt", "jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "html": ".html"}


@click.command("fit", short_help="Lognormal, distance from equilibrium, best family.")
@paths
@click.option("--families", type=Names(), default=",".join(DEFAULT_FAMILIES), show_default=True, metavar="A,B",
              help=f"Families to compare with the lognormal: {', '.join(FAMILIES)}; or all.")  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="mle", show_default=True,
              help="Maximum likelihood of values or of their rounding cells, or a published protocol.")  # fmt: skip
@click.option("--group-by", type=click.Choice(GROUPINGS), default="tensor", show_default=True,
              help="Merge the statistics of tensors before fitting; nothing is read twice.")  # fmt: skip
@selects
@structures
@click.option("--axis", multiple=True, type=int, metavar="N",
              help="Fit once per index along this axis (0: per output neuron). May be repeated.")  # fmt: skip
@click.option("--moments-only", is_flag=True, help="No histograms: no distance from equilibrium, twice the speed.")
@click.option("--bins", type=click.IntRange(min=4), default=100, show_default=True, metavar="N",
              help="Bins of the linear histogram of --method histogram.")  # fmt: skip
@click.option("--grid", type=click.Choice(("npm-weibull",)), help="Bins of --method probability-plot; default: none.")
@click.option("--xmin", type=click.FloatRange(min=0, min_open=True), metavar="X",
              help="Where pareto and truncated_lognormal begin; default: searched for in each tensor.")  # fmt: skip
@click.option("--groups", type=click.IntRange(min=2), metavar="G",
              help="Standard errors by a jackknife over G contiguous blocks of each tensor as well.")  # fmt: skip
@click.option("--bootstrap", type=click.IntRange(min=0), default=0, metavar="N",
              help="Calibrated p of every family from N replicates (in jsonl and csv).")  # fmt: skip
@click.option("--vuong", is_flag=True, help="Test every family against the lognormal (in jsonl and csv).")
@click.option("--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True,
              help="Confidence of the intervals in the table.")  # fmt: skip
@click.option("--universality", is_flag=True, help="A table of how mu and sigma spread over layers, by role or depth.")
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)),
              help="Default: by the ending of the output file, else a table.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write here, whole or not at all, instead of standard output.")  # fmt: skip
@reads
@spreads
def fit_command(
    paths: tuple[str, ...],
    group_by: str,
    axis: tuple[int, ...],
    moments_only: bool,
    universality: bool,
    form: str | None,
    output: Path | None,
    families: tuple[str, ...],
    method: str,
    bins: int,
    grid: str | None,
    xmin: float | None,
    bootstrap: int,
    vuong: bool,
    level: float,
    **options: Any,
) -> int:
    """Fit every tensor of PATH...: lognormal, distance from equilibrium, rival families.

    PATH is a checkpoint: safetensors, PyTorch, GGUF, ONNX, Orbax, Zarr, Flax, Keras, HDF5, TensorFlow Lite, .npz or
    .npy, a file or a directory (a Hugging Face sharded checkpoint is read by its index); statistics that `teleojax
    measure` wrote; or - for a safetensors stream on standard input.

    \b
    teleojax fit model.safetensors
    teleojax fit model-dir/ --group-by role
    cat model.safetensors | teleojax fit - --format jsonl > model.jsonl
    teleojax fit model-dir/ -o page.html

    In the table, best is the family of lowest BIC and gain what it gains over the lognormal, in nats per value; kl nats
    is the distance from arbitrage equilibrium in nats per connection (0 at equilibrium, 0.163 for an untrained Gaussian
    layer), ks the largest gap between the distribution functions. With more families than two, a second table counts by
    role the tensors that each family wins.
    """
    refuse_without_folder(output)
    target = target_of(paths)
    if axis:
        return _fit_axis(target, axis, {o: options[o] for o in ("include", "exclude", "min_size")}, form, output)
    form = form or _format_of(output)
    if form == "parquet":
        _check_parquet(output)
    elif form == "html":
        require_page()
    names = [f.name for f in families_by_name(families)]  # an unknown one is told before anything is read
    with progress_bar() as progress, stopping() as stop:
        options |= {"histogram": not moments_only, "cells": method == "interval"}
        measured = statistics_of(target, **options, progress=progress, stop=stop)
    if not leads():
        return finish(measured, stop)
    report = fit(
        measured, families=names, method=method, bins=bins, grid=grid, xmin=xmin,
        bootstrap=bootstrap, vuong=vuong, level=level,
    )  # fmt: skip
    if bootstrap and any(s.moments.n > LARGE for s in report.measured.values()):
        click.echo(f"teleojax: above {LARGE:,} values any p-value is small: read gain and ks first", err=True)
    more = []
    by = "depth" if group_by == "depth" else "role"
    if len(report.options.families) > len(DEFAULT_FAMILIES):
        more.append(wins_table(report.wins(by), by))
    if universality:
        more.append(universality_table(report.universality(by), by))
    _write(report, report.group_by(group_by), form, output, more)
    return finish(measured, stop)


def _format_of(output: Path | None) -> str:
    by_ending = {ending: form for form, ending in FORMATS.items()}
    return by_ending.get(output.suffix, "table") if output else "table"


def _fit_axis(
    target: object, axis: tuple[int, ...], select: dict[str, Any], form: str | None, output: Path | None
) -> int:
    form = form or (_format_of(output) if output else "jsonl")
    if form not in ("jsonl", "csv"):
        raise click.BadParameter("fits along an axis are written as jsonl or csv", param_hint="'--format'")
    report = fit(target, axis=axis, **select)
    emit(report.jsonl() if form == "jsonl" else report.csv(), output)
    skipped = Counter(reason.split(":")[0] for reason in report.skipped.values())
    say_skipped(skipped)
    return 0


def _check_parquet(output: Path | None) -> None:
    """Before anything is read: it is no text, and it needs a package."""
    require_parquet()
    if output is None:
        raise click.BadParameter("parquet is written to a file: give -o FILE", param_hint="'--format'")


def _write(whole: Report, shown: Report, form: str, output: Path | None, more: Sequence[Table]) -> None:
    if form == "parquet" and output is not None:
        shown.to_parquet(output)
        return
    if form == "table":
        width = table_width(output)
        totals = whole.summary
        rate = f"{totals['bytes'] / 1e6:,.1f} MB in {totals['seconds']:.2f} s"
        title = f"{totals['source']}: {totals['values']:,} values, {rate}"
        words = Constrain(Text(finding(whole)), min(width, TEXT_WIDTH))
        text = console_text([report_table(shown, title, width), *more, words], output)
    else:
        text = {"jsonl": shown.jsonl, "csv": shown.csv, "html": shown.html}[form]()
    emit(text, output)
