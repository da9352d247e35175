"""A source whose tensors are those of another cut, joined or computed: its own specifications, the other's bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from teleojax.sources._index import Source, Storage, TensorSpec, files_of

Opener = Callable[[Source], AbstractContextManager[Storage]]


class DerivedSource:
    """Specifications in place of those of `base`. A storage that is not the base's has an opener in `openers`."""

    def __init__(self, base: Source, specs: Iterable[TensorSpec], openers: Mapping[str, Opener] | None = None) -> None:
        self.base, self.name, self.specs = base, base.name, tuple(specs)
        self._openers = dict(openers or {})
        self.storages = (*base.storages, *self._openers)
        self.files = files_of(base)

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """Open a storage of the base, or a derived one."""
        opener = self._openers.get(storage)
        return self.base.open(storage) if opener is None else opener(self.base)


class Gathered:
    """Stretches of another storage, in rising order, as one storage without gaps."""

    mapped = False

    def __init__(self, inner: Storage, stretches: Sequence[tuple[int, int]]) -> None:
        self._inner, self._begins = inner, np.array([a for a, _ in stretches])
        self._ends = np.cumsum([b - a for a, b in stretches])  # of each stretch, in this storage
        self.size: int | None = int(self._ends[-1])
        self.position = 0

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: stretches are read when their window is."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop), in `buffer`; what lies before the present position is left as it was."""
        out = np.empty(stop - start, np.uint8) if buffer is None else buffer[: stop - start]
        at = start if buffer is None or self._inner.mapped else max(start, self.position)
        number = int(np.searchsorted(self._ends, at, side="right"))
        while at < stop:
            end = int(self._ends[number])
            into = out[at - start : min(stop, end) - start]
            length = end - (int(self._ends[number - 1]) if number else 0)
            begin = int(self._begins[number]) + at - (end - length)
            found = self._inner.window(begin, begin + len(into), into)
            if found is not into and not np.shares_memory(found, into):
                np.copyto(into, found)
            at, number = at + len(into), number + 1
        self.position = max(self.position, stop)
        return out


def gathered(storage: str, stretches: Sequence[tuple[int, int]]) -> Opener:
    """An opener of the stretches of one of the base's storages."""

    @contextmanager
    def opened(base: Source) -> Iterator[Storage]:
        with base.open(storage) as inner:
            yield Gathered(inner, stretches)

    return opened
