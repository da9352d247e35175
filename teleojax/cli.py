"""The command line: results on standard output, progress and messages on standard error, honest exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from teleojax._errors import OutputClosedError, TeleojaxError, printable
from teleojax._version import __version__
from teleojax.diagnose import DENSITIES, LARGE
from teleojax.engine import Measured, load_statistics, measure, merge_measured
from teleojax.families import FAMILIES
from teleojax.kernels import WRT
from teleojax.report import (
    DEFAULT_FAMILIES,
    GROUPINGS,
    METHODS,
    SHARD_BYTES,
    Report,
    finding,
    fit,
    gradient_summary,
    report_table,
    save_statistics,
    universality_table,
    wins_table,
    write_atomically,
    write_gradient,
)

PARTIAL = 4  # exit code: done, but some tensors could not be measured
PIPED_WIDTH = 250  # columns a table may take that is not shown on a terminal
TEXT_WIDTH = 120  # columns of running text
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
FORMATS = {"table": ".txt", "jsonl": ".jsonl", "csv": ".csv"}


class Bytes(click.ParamType):
    """A number of bytes: 268435456, 256MiB, 1.5GB."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes as an int; a usage error names what is accepted."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
        if match is None or match[2] not in UNITS:
            self.fail(f"{value!r} is not a number of bytes such as 268435456, 256MiB or 1.5GB", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Names(click.ParamType):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ARG002
        """The names, blanks removed."""
        return value if isinstance(value, tuple) else tuple(n.strip() for n in str(value).split(",") if n.strip())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="teleojax")
def cli() -> None:
    """Read every parameter of a trained network once and say how far each layer is from arbitrage equilibrium.

    \b
    Exit status: 0 done · 2 usage · 3 input unreadable or corrupt
                 4 done, but some tensors could not be measured
    """


@cli.command("fit")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--families", type=Names(), default=",".join(DEFAULT_FAMILIES), show_default=True, metavar="A,B",
              help=f"Families to compare with the lognormal: {', '.join(FAMILIES)}; or all.")  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="mle", show_default=True,
              help="Maximum likelihood of values or of their rounding cells, or a published protocol.")  # fmt: skip
@click.option("--group-by", type=click.Choice(GROUPINGS), default="tensor", show_default=True,
              help="Merge the statistics of tensors before fitting; nothing is read twice.")  # fmt: skip
@click.option("--include", metavar="RE", help="Measure only tensors whose name this regular expression matches.")
@click.option("--exclude", metavar="RE", help="Leave out tensors whose name this regular expression matches.")
@click.option("--min-size", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out smaller tensors.")
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
@click.option("--budget", type=Bytes(), metavar="BYTES", help="Memory to hold for reading, such as 256MiB.")
def fit_command(
    paths: tuple[str, ...],
    families: tuple[str, ...],
    method: str,
    group_by: str,
    include: str | None,
    exclude: str | None,
    min_size: int,
    axis: tuple[int, ...],
    moments_only: bool,
    bins: int,
    grid: str | None,
    xmin: float | None,
    groups: int | None,
    bootstrap: int,
    vuong: bool,
    level: float,
    universality: bool,
    form: str | None,
    output: Path | None,
    budget: int | None,
) -> int:
    """Fit every tensor of PATH...: lognormal, distance from equilibrium, rival families.

    PATH is a .safetensors, .npz, .npy or .tflite file, a directory of them (a Hugging Face sharded checkpoint is read
    by its index), statistics that `teleojax measure` wrote, or - for a safetensors stream on standard input.

    \b
    teleojax fit model.safetensors
    teleojax fit model-dir/ --group-by role
    cat model.safetensors | teleojax fit - --format jsonl > model.jsonl

    In the table, best is the family of lowest BIC and gain what it gains over the lognormal, in nats per value; kl nats
    is the distance from arbitrage equilibrium in nats per connection (0 at equilibrium, 0.163 for an untrained Gaussian
    layer), ks the largest gap between the distribution functions. With more families than two, a second table counts by
    role the tensors that each family wins.
    """
    _refuse_without_folder(output)
    target = paths[0] if len(paths) == 1 else list(paths)
    if axis:
        return _fit_axis(target, axis, {"include": include, "exclude": exclude, "min_size": min_size}, form, output)
    with _progress() as progress:
        report = fit(
            target,
            families=families,
            method=method,
            bins=bins,
            grid=grid,
            xmin=xmin,
            bootstrap=bootstrap,
            vuong=vuong,
            level=level,
            groups=groups,
            include=include,
            exclude=exclude,
            min_size=min_size,
            histogram=not moments_only,
            budget_bytes=budget,
            progress=progress,
        )
    if bootstrap and any(s.moments.n > LARGE for s in report.measured.values()):
        click.echo(f"teleojax: above {LARGE:,} values any p-value is small: read gain and ks first", err=True)
    form = form or _format_of(output)
    more = []
    by = "depth" if group_by == "depth" else "role"
    if len(report.options.families) > len(DEFAULT_FAMILIES):
        more.append(wins_table(report.wins(by), by))
    if universality:
        more.append(universality_table(report.universality(by), by))
    _write(report, report.group_by(group_by), form, output, more)
    return _say_what_was_not_measured(report.measured)


@cli.command("measure")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--include", metavar="RE", help="Measure only tensors whose name this regular expression matches.")
@click.option("--exclude", metavar="RE", help="Leave out tensors whose name this regular expression matches.")
@click.option("--min-size", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out smaller tensors.")
@click.option("--groups", type=click.IntRange(min=2), metavar="G",
              help="Keep the statistics of G contiguous blocks of each tensor as well, for a jackknife.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="STATS",
              help="The statistics file, written whole or not at all.")  # fmt: skip
@click.option("--budget", type=Bytes(), metavar="BYTES", help="Memory to hold for reading, such as 256MiB.")
def measure_command(
    paths: tuple[str, ...],
    include: str | None,
    exclude: str | None,
    min_size: int,
    groups: int | None,
    output: Path,
    budget: int | None,
) -> int:
    """Measure PATH... once and keep the statistics: `fit`, `merge` and comparisons need no weights after that.

    \b
    teleojax measure model-00001-of-00002.safetensors -o s1.stats
    zstd -dc shard.safetensors.zst | teleojax measure - -o s2.stats
    teleojax merge s1.stats s2.stats -o all.stats
    teleojax fit all.stats
    """
    _refuse_without_folder(output)
    target = paths[0] if len(paths) == 1 else list(paths)
    with _progress() as progress:
        measured = measure(
            target,
            include=include,
            exclude=exclude,
            min_size=min_size,
            groups=groups,
            budget_bytes=budget,
            progress=progress,
        )
    save_statistics(measured, output)
    return _say_what_was_not_measured(measured)


@cli.command("merge")
@click.argument("files", nargs=-1, required=True, metavar="STATS...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="STATS",
              help="The statistics file, written whole or not at all.")  # fmt: skip
def merge_command(files: tuple[str, ...], output: Path) -> int:
    """Merge statistics files: of shards to a whole, of a tensor's parts, of models.

    Tensors of one name become one, as if their values had been measured together.
    """
    _refuse_without_folder(output)
    merged = merge_measured(*(load_statistics(file) for file in files))
    save_statistics(merged, output)
    return _say_what_was_not_measured(merged)


@cli.command("gradient")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
              help="A directory for the gradients, written whole or not at all; default: only a summary.")  # fmt: skip
@click.option("--density", type=click.Choice(DENSITIES), default="empirical", show_default=True,
              help="The law of the weights: as they lie, or their maximum-likelihood lognormal.")  # fmt: skip
@click.option("--wrt", type=click.Choice(WRT), default="log", show_default=True,
              help="The gradient by ln|w| or by w.")  # fmt: skip
@click.option("--target", type=Names(), metavar="ALPHA,BETA",
              help="Of the equilibrium aimed at, in the measure dx; default: each tensor's own.")  # fmt: skip
@click.option("--include", metavar="RE", help="Only tensors whose name this regular expression matches.")
@click.option("--exclude", metavar="RE", help="Leave out tensors whose name this regular expression matches.")
@click.option("--min-size", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out smaller tensors.")
@click.option("--shard-size", type=Bytes(), default=SHARD_BYTES, metavar="BYTES", help="Largest file of OUT; 5 GB.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there and not empty.")
@click.option("--budget", type=Bytes(), metavar="BYTES", help="Memory to hold for reading, such as 256MiB.")
def gradient_command(
    paths: tuple[str, ...],
    output: Path | None,
    density: str,
    wrt: str,
    target: tuple[str, ...] | None,
    include: str | None,
    exclude: str | None,
    min_size: int,
    shard_size: int,
    force: bool,
    budget: int | None,
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
    choices = {"density": density, "wrt": wrt, "target": goal}
    options = {"include": include, "exclude": exclude, "min_size": min_size, "budget_bytes": budget}
    path = paths[0] if len(paths) == 1 else list(paths)
    with _progress() as progress:
        if output is not None:
            written = write_gradient(
                path, output, **choices, **options, shard_bytes=shard_size, force=force, progress=progress
            )
            report = written.report
            click.echo(f"teleojax: {written.nbytes:,} bytes in {len(written.files)} files: {output}", err=True)
        else:
            report = gradient_summary(path, **choices, **options, progress=progress)
    _emit(report.jsonl(), None)
    return _say_what_was_not_measured(report.measured)


@cli.command("bench")
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

    _refuse_without_folder(output, "--json")
    messages = Console(stderr=True)
    with messages.status("measuring") as status:
        results = run_suite(size, quick=quick, say=status.update)
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width).print(results_table(results.records, limits_line(results)))
    if output is not None:
        write_atomically(output, results_json(results))
    return 0


def _refuse_without_folder(output: Path | None, option: str = "-o") -> None:
    """Before anything is read: results that could not be written would be lost."""
    if output is not None and not output.parent.is_dir():
        raise click.BadParameter(f"no directory {str(output.parent)!r}", param_hint=f"'{option}'")


def _format_of(output: Path | None) -> str:
    by_ending = {ending: form for form, ending in FORMATS.items()}
    return by_ending.get(output.suffix, "table") if output else "table"


def _fit_axis(
    target: object, axis: tuple[int, ...], select: dict[str, Any], form: str | None, output: Path | None
) -> int:
    form = form or (_format_of(output) if output else "jsonl")
    if form == "table":
        raise click.BadParameter("fits along an axis are written as jsonl or csv", param_hint="'--format'")
    report = fit(target, axis=axis, **select)
    _emit(report.jsonl() if form == "jsonl" else report.csv(), output)
    skipped = Counter(reason.split(":")[0] for reason in report.skipped.values())
    _say_skipped(skipped)
    return 0


def _write(whole: Report, shown: Report, form: str, output: Path | None, more: Sequence[Table]) -> None:
    if form == "table":
        with Path(os.devnull).open("w") as nowhere:  # printed to a string first: a file or a pipe gets it whole
            terminal = sys.stdout.isatty() and output is None
            console = Console(
                file=nowhere, record=True, width=None if terminal else PIPED_WIDTH, force_terminal=terminal
            )
            totals = whole.summary
            rate = f"{totals['bytes'] / 1e6:,.1f} MB in {totals['seconds']:.2f} s"
            title = f"{totals['source']}: {totals['values']:,} values, {rate}"
            console.print(report_table(shown, title, console.width))
            for table in more:
                console.print(table)
            console.print(finding(whole), markup=False, highlight=False, width=min(console.width, TEXT_WIDTH))
            text = console.export_text(styles=terminal)
        if not terminal:
            text = "".join(line.rstrip() + "\n" for line in text.splitlines())
    else:
        text = shown.jsonl() if form == "jsonl" else shown.csv()
    _emit(text, output)


def _emit(text: str, output: Path | None) -> None:
    """Results to a file, whole or not at all, or to standard output."""
    if output is not None:
        write_atomically(output, text)
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be written: let exit be quiet
        raise OutputClosedError(
            "standard output",
            found="a closed pipe",
            needed="a reader until all results are written",
            remedy="Write to a file with -o, or let the reader read to the end.",
        ) from e


def _say_what_was_not_measured(measured: Measured) -> int:
    """Skipped tensors by reason and failed ones by name, on standard error; the exit code."""
    _say_skipped(Counter(reason.split(":")[0] for reason in measured.skipped.values()))
    for name, reason in measured.failed.items():
        click.echo(printable(f"teleojax: {name}: not measured: {reason}"), err=True)
    return PARTIAL if measured.failed else 0


def _say_skipped(skipped: Counter[str]) -> None:
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        click.echo(printable(f"teleojax: tensors skipped: {skipped.total()} ({reasons})"), err=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Bytes, bytes per second and time left on standard error, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("measuring"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; errors become one line on standard error."""
    try:
        return cli.main(arguments, prog_name="teleojax", standalone_mode=False) or 0
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("teleojax: interrupted", err=True)
        return 130
    except TeleojaxError as e:
        click.echo(f"teleojax: error: {e}", err=True)
        return e.exit_code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
