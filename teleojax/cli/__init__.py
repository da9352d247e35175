"""The command line: results on standard output, progress and messages on standard error, honest exit codes."""

from __future__ import annotations

import sys

import click

from teleojax._errors import TeleojaxError
from teleojax._version import __version__
from teleojax.cli._bench import bench_command
from teleojax.cli._compare import compare_command
from teleojax.cli._fit import fit_command
from teleojax.cli._gradient import gradient_command
from teleojax.cli._measure import measure_command, merge_command
from teleojax.cli._output import abandon
from teleojax.cli._report import report_command
from teleojax.cli._signals import Interrupted, ending
from teleojax.cli._track import track_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="teleojax")
def cli() -> None:
    """Read every parameter of a trained network once and say how far each layer is from arbitrage equilibrium.

    \b
    Exit status: 0 done · 2 usage · 3 input unreadable or corrupt
                 4 done, but some tensors could not be measured
                 5 another process was lost · 130, 143 ended by a signal
    """


for _command in (
    fit_command,
    measure_command,
    merge_command,
    compare_command,
    track_command,
    gradient_command,
    report_command,
    bench_command,
):
    cli.add_command(_command)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; errors become one line on standard error."""
    try:
        with ending():
            return cli.main(arguments, prog_name="teleojax", standalone_mode=False) or 0
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except (click.Abort, KeyboardInterrupt, Interrupted) as e:
        click.echo("teleojax: interrupted", err=True)
        code = e.code if isinstance(e, Interrupted) else 130
    except TeleojaxError as e:
        click.echo(f"teleojax: error: {e}", err=True)
        code = e.exit_code
    abandon(code)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))
