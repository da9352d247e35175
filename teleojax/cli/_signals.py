"""SIGINT and SIGTERM: reading ends after the block at hand, and what is finished is written; all else ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal that ends the command, `code` being its exit code; not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


class Stop:
    """Whether a signal has asked to stop: what `measure` calls between blocks."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def code(self) -> int | None:
        """The exit code that the signal asks for; None without one."""
        return None if self.signal is None else 128 + self.signal

    def __call__(self) -> str | None:
        """The reason to stop, or None."""
        return None if self.signal is None else f"not read: {self.signal.name} came before"

    def heard(self, signum: int, _: FrameType | None) -> None:
        """Handle a signal: the first one waits for the block at hand, the second ends the command."""
        if self.signal is not None:
            raise Interrupted(signum)
        self.signal = signal.Signals(signum)
        click.echo(f"teleojax: {self.signal.name}: finishing the block at hand; once more ends at once", err=True)


def _end(signum: int, _: FrameType | None) -> None:
    raise Interrupted(signum)


@contextmanager
def ending() -> Iterator[None]:
    """Signals raise Interrupted, so that temporary files are removed; one that the shell has ignored stays ignored."""
    before = {s: signal.getsignal(s) for s in HANDLED}
    taken = [s for s in HANDLED if before[s] != signal.SIG_IGN]
    for s in taken:
        signal.signal(s, _end)
    try:
        yield
    finally:
        for s in taken:
            signal.signal(s, before[s])


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within `ending`, while parameters are read: a signal is asked for by Stop instead."""
    stop = Stop()
    before = {s: signal.getsignal(s) for s in HANDLED}
    for s, handler in before.items():
        if handler is _end:
            signal.signal(s, stop.heard)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            if handler is _end:
                signal.signal(s, handler)
