"""`teleojax compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from teleojax.cli._options import Names, reads, refuse_without_folder, selects
from teleojax.cli._output import console_text, emit, progress_bar, say_what_was_not_measured
from teleojax.fits import families_by_name
from teleojax.report import (
    DEFAULT_FAMILIES,
    Report,
    compare,
    comparison_tables,
    fit,
    load_report,
    require_page,
    statistics_of,
)

FORMATS = {"table": ".txt", "jsonl": ".jsonl", "csv": ".csv", "html": ".html"}


@click.command("compare", short_help="What changed between two checkpoints.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--families", type=Names(), default=",".join(DEFAULT_FAMILIES), show_default=True, metavar="A,B",
              help="Families among which the best is sought; or all.")  # fmt: skip
@selects
@click.option("--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True,
              help="Confidence from which a change counts as one.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)),
              help="Default: by the ending of the output file, else a table.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write here, whole or not at all, instead of standard output.")  # fmt: skip
@reads
def compare_command(
    a: str, b: str, families: tuple[str, ...], level: float, form: str | None, output: Path | None, **options: Any
) -> int:
    """What changed from A to B: fine-tuned against base, quantised against original, one seed against another.

    A and B are checkpoints, statistics that `teleojax measure` wrote, or results that `fit --format jsonl` wrote
    (*.jsonl, which have no histograms). Tensors are paired by name, else by the name without prefixes such as model.
    and module., else by equal shape, role and depth where that is unambiguous.

    \b
    teleojax compare base/ finetuned/
    teleojax compare model.safetensors model.gguf --format jsonl -o change.jsonl

    w1 is the Wasserstein-1 distance between the two laws of ln|w|. ↑ and ↓ mark a change beyond its interval, = one
    within it; the intervals are those of independent weights, so too wide where B began as A.
    """
    refuse_without_folder(output)
    if a == b == "-":
        raise click.BadParameter("standard input can be one of the two only", param_hint="'B'")
    form = form or {ending: f for f, ending in FORMATS.items()}.get(output.suffix if output else "", "table")
    if form == "html":
        require_page()
    names = [f.name for f in families_by_name(families)]
    one, two = (_fitted(path, names, options) for path in (a, b))
    comparison = compare(one, two, level=level)
    if form == "table":
        emit(console_text(comparison_tables(comparison), output), output)
    else:
        emit({"jsonl": comparison.jsonl, "csv": comparison.csv, "html": comparison.html}[form](), output)
    unread = [0 if side.written is not None else say_what_was_not_measured(side.measured) for side in (one, two)]
    return max(unread)


def _fitted(path: str, families: list[str], options: dict[str, Any]) -> Report:
    if path.endswith(FORMATS["jsonl"]):
        if any(options[o] for o in ("include", "exclude", "min_size")):
            raise click.BadParameter(
                "tensors are selected when they are read, not from results", param_hint=f"'{path}'"
            )
        return load_report(path)
    with progress_bar() as progress:
        measured = statistics_of(path, **options, progress=progress)
    return fit(measured, families=families)
