"""A storage whose bytes are fetched or made range by range, in any order; and ranges of an array as boxes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from teleojax._errors import CorruptInputError


@dataclass(frozen=True, slots=True)
class Box:
    """Indices [start, start + count) along every axis; in C order they are values [first, first + size) of a range."""

    first: int
    start: tuple[int, ...]
    count: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.count)


def boxes(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    """Values [start, stop) of an array, counted in C order, as boxes that follow one another in that order.

    At most two boxes an axis and one more. `Box.first` counts from `start`.
    """
    return list(_boxes(shape, start, stop, start, ()))


def _boxes(shape: tuple[int, ...], start: int, stop: int, origin: int, index: tuple[int, ...]) -> Iterator[Box]:
    if start >= stop:
        return
    if not shape:
        yield Box(start - origin, index, (1,) * len(index))
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        yield from _row(shape, start, stop, origin, index, last)
        return
    yield from _row(shape, start, first * row, origin, index, first - 1)
    if first < last:
        counts = (*(1 for _ in index), last - first, *shape[1:])
        yield Box(first * row - origin, (*index, first, *(0 for _ in shape[1:])), counts)
    yield from _row(shape, last * row, stop, origin, index, last)


def _row(
    shape: tuple[int, ...], start: int, stop: int, origin: int, index: tuple[int, ...], number: int
) -> Iterator[Box]:
    base = number * math.prod(shape[1:])
    yield from _boxes(shape[1:], start - base, stop - base, origin - base, (*index, number))


class Ranges:
    """Bytes that `read(start, stop, out)` puts into `out`, a uint8 array of that length; `close` ends the reading.

    Windows may come in any order. `read` raises InputError.
    """

    mapped: bool = False
    size: int | None
    position: int = 0

    def __init__(
        self,
        name: str,
        size: int,
        read: Callable[[int, int, np.ndarray], None],
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self._name, self._size, self._read, self._close = name, size, read, close
        self.size = size

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        """End the reading."""
        self._close()

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: a range is read when its window is."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop), in the front of `buffer`."""
        if buffer is None:
            raise TypeError("ranges need a buffer to be read into")
        if stop > self._size:
            raise CorruptInputError(
                self._name,
                found=f"{self._size} bytes",
                needed=f"{stop} bytes",
                remedy="The input is truncated: copy or download it again.",
            )
        out = buffer[: stop - start]
        if start < stop:
            self._read(start, stop, out)
        self.position = max(self.position, stop)
        return out
