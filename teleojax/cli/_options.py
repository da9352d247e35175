"""What the commands share of their options: types of values, and the options that say what is read and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from teleojax.engine import initialize

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


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


Command = Callable[..., Any]


def selects(command: Command) -> Command:
    """`include`, `exclude` and `min_size`: which tensors."""
    for option in (
        click.option(
            "--min-size", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out smaller tensors."
        ),
        click.option("--exclude", metavar="RE", help="Leave out tensors whose name this regular expression matches."),
        click.option("--include", metavar="RE", help="Only tensors whose name this regular expression matches."),
    ):
        command = option(command)
    return command


def spreads(command: Command) -> Command:
    """`resume` and `multiprocess`: whether work is kept, and shared. The others say which process this is."""

    @wraps(command)
    def joined(
        *arguments: Any,
        multiprocess: bool,
        coordinator: str | None,
        processes: int | None,
        process_id: int | None,
        **options: Any,
    ) -> Any:
        if multiprocess:
            initialize(coordinator, processes, process_id)
        return command(*arguments, multiprocess=multiprocess, **options)

    for option in (
        click.option("--process-id", type=click.IntRange(min=0), metavar="K", help="The number of this one."),
        click.option("--processes", type=click.IntRange(min=1), metavar="N", help="How many there are."),
        click.option("--coordinator", metavar="HOST:PORT", help="Where process 0 is; default: as Slurm or others say."),
        click.option("--multiprocess", is_flag=True, help="Share the reading with others that run the same command."),
        click.option("--resume", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     help="Keep finished tensors here, and go on from those that are there."),
    ):  # fmt: skip
        joined = option(joined)
    return joined


def structures(command: Command) -> Command:
    """`split` and `rules`: which tensors are several, and what they are."""
    for option in (
        click.option("--rules", type=click.Path(path_type=Path), metavar="FILE",
                     help="A TOML file of your own rules: roles, depths, what to skip, what to split."),
        click.option("--split/--no-split", default=True, help="Measure fused queries, keys, values, ... apart.",
                     show_default=True),
    ):  # fmt: skip
        command = option(command)
    return command


reads = click.option("--budget", "budget_bytes", type=Bytes(), metavar="BYTES",
                     help="Memory to hold for reading, such as 256MiB.")  # fmt: skip
paths = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
writes_statistics = click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="STATS",
                                 help="The statistics file, written whole or not at all.")  # fmt: skip


def target_of(given: Sequence[str]) -> str | list[str]:
    """What `open_source` takes for the paths of a command line."""
    return given[0] if len(given) == 1 else list(given)


def refuse_without_folder(output: Path | None, option: str = "-o") -> None:
    """Before anything is read: results that could not be written would be lost."""
    if output is not None and not output.parent.is_dir():
        raise click.BadParameter(f"no directory {str(output.parent)!r}", param_hint=f"'{option}'")
