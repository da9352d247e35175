"""The exception tree: each class carries the exit code of the command line, each message a remedy."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, control characters written as escapes: names in files may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class TeleojaxError(Exception):
    """Base of every error teleojax raises on purpose.

    The message is one line: where, what was found, what is needed, and what to do about it.
    """

    exit_code = 1

    def __init__(self, where: object, *, found: str, needed: str, remedy: str) -> None:
        self.where, self.found, self.needed, self.remedy = str(where), found, needed, remedy
        super().__init__(printable(f"{self.where}: found {found}; needed {needed}. {remedy}"))


class UsageError(TeleojaxError):
    """The caller asked for something that cannot be: an unknown family, a bad pattern, a wrong type."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A format needs an optional package that is not installed."""

    def __init__(self, where: object, *, package: str, extra: str) -> None:
        super().__init__(
            where,
            found=f"no module {package!r}",
            needed=f"the optional extra {extra!r}",
            remedy=f"Run: pip install 'teleojax[{extra}]'",
        )


class InputError(TeleojaxError):
    """An input cannot be read: it does not exist, may not be opened, or holds no format that is known."""

    exit_code = 3


class CorruptInputError(InputError):
    """An input was opened and is not what its own header says: truncated, overlapping, out of bounds."""


class OutputError(TeleojaxError):
    """Results cannot be written: the disk is full, the place may not be written."""

    exit_code = 3


class OutputClosedError(OutputError):
    """Whoever was reading the results stopped before all were written."""


class ProcessLostError(TeleojaxError):
    """Another of the processes that work together has ended before its time."""

    exit_code = 5
