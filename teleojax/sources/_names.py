"""A bound on the names of one file: containers in containers make long ones out of few bytes, and repeat them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from teleojax._errors import CorruptInputError

MOST_CHARACTERS = 1 << 26  # of all names of a file: a million of 67
T = TypeVar("T")


def bounded(found: Iterable[T], name: Callable[[T], str], where: object) -> Iterator[T]:
    """What is found, one after another. Raises CorruptInputError when the names have more than MOST_CHARACTERS."""
    total = 0
    for item in found:
        total += len(name(item))
        if total > MOST_CHARACTERS:
            raise CorruptInputError(
                where,
                found="names without end",
                needed=f"at most {MOST_CHARACTERS} characters of names",
                remedy="The file is damaged, or made to fill memory: copy or write it again.",
            )
        yield item
