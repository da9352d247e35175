"""`teleojax report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from teleojax.cli._options import Names, refuse_without_folder, selects
from teleojax.cli._output import emit, say_what_was_not_measured
from teleojax.engine import is_statistics
from teleojax.fits import families_by_name
from teleojax.report import DEFAULT_FAMILIES, fit, load_report, require_page


@click.command("report", short_help="One HTML page of results or statistics.")
@click.argument("source", metavar="RESULT", type=click.Path(path_type=Path))
@click.option("--families", type=Names(), metavar="A,B",
              help=f"Families to fit to statistics; or all.  [default: {','.join(DEFAULT_FAMILIES)}]")  # fmt: skip
@selects
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PAGE",
              help="Write the page here, whole or not at all, instead of to standard output.")  # fmt: skip
def report_command(source: Path, families: tuple[str, ...] | None, output: Path | None, **options: Any) -> int:
    """One self-contained HTML page of RESULT: results that `teleojax fit --format jsonl` wrote, or statistics.

    The page fetches nothing. It lists every tensor, draws the one that is chosen, and gives all back as CSV and JSON
    lines. JSON lines hold no histograms; statistics that `teleojax measure` wrote do.

    \b
    teleojax measure model-dir/ -o model.stats
    teleojax report model.stats -o page.html
    """
    refuse_without_folder(output)
    require_page()
    if is_statistics(source):
        report = fit(source, families=[f.name for f in families_by_name(families or DEFAULT_FAMILIES)], **options)
        emit(report.html(), output)
        return say_what_was_not_measured(report.measured)
    if families or any(options.values()):
        raise click.BadParameter(
            "families are fitted and tensors selected in statistics, not in results", param_hint=f"'{source}'"
        )
    emit(load_report(source).html(), output)
    return 0
