"""Where results and messages go: results to standard output or a file, messages and progress to standard error."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import jax
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from teleojax._errors import OutputClosedError, printable
from teleojax.cli._signals import Stop
from teleojax.engine import Measured, gather
from teleojax.report import write_atomically

PARTIAL = 4  # exit code: done, but some tensors could not be measured
PIPED_WIDTH = 250  # columns a table may take that is not shown on a terminal


def emit(text: str, output: Path | None) -> None:
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


def _on_terminal(output: Path | None) -> bool:
    return sys.stdout.isatty() and output is None


def table_width(output: Path | None) -> int:
    """Columns that a table may take where it is going."""
    return Console().width if _on_terminal(output) else PIPED_WIDTH


def console_text(renderables: Iterable[RenderableType], output: Path | None) -> str:
    """Tables as text: as wide as the terminal and in colour on one, else plain and as wide as they are.

    They are printed to a string first, so that a file or a pipe gets them whole.
    """
    terminal = _on_terminal(output)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=table_width(output), force_terminal=terminal)
        for renderable in renderables:
            console.print(renderable)
        text = console.export_text(styles=terminal)
    return text if terminal else "".join(line.rstrip() + "\n" for line in text.splitlines())


def say_what_was_not_measured(measured: Measured) -> int:
    """Skipped tensors by reason and failed ones by name, on standard error; the exit code."""
    say_skipped(Counter(reason.split(":")[0] for reason in measured.skipped.values()))
    for name, reason in measured.failed.items():
        click.echo(printable(f"teleojax: {name}: not measured: {reason}"), err=True)
    return PARTIAL if measured.failed else 0


def leads() -> bool:
    """Whether this process writes the results: the first of those that work together, and one alone."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def finish(measured: Measured, stop: Stop) -> int:
    """Say what was not measured, once; wait until the other processes are done too; the exit code."""
    code = say_what_was_not_measured(measured) if leads() else PARTIAL if measured.failed else 0
    if jax.distributed.is_initialized():
        gather(b"")
    return stop.code or code


def abandon(code: int) -> None:
    """Where processes work together, end this one at once: the others, which wait for it, learn of it by that."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def say_skipped(skipped: Counter[str]) -> None:
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        click.echo(printable(f"teleojax: tensors skipped: {skipped.total()} ({reasons})"), err=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None] | None]:
    """Bytes, bytes per second and time left on standard error, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("measuring"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
