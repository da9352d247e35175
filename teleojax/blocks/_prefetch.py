"""Windows of a storage in memory, one after another: views of mapped memory, or buffers filled ahead by a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from teleojax._errors import InputError
from teleojax.blocks._plan import BUFFERS, GRID_BYTES, Window
from teleojax.sources import Storage
from teleojax.sources._storage import ALIGNMENT

SLACK = 64  # an unaligned tensor reaches past a window's end by less than a value


@dataclass(frozen=True, slots=True)
class LoadedWindow:
    """A window with memory that holds it: `memory[0]` is byte `first_byte` of the storage, a multiple of GRID_BYTES.

    Outside [window.start, window.stop) the memory may hold anything.
    """

    window: Window
    first_byte: int
    memory: np.ndarray

    def bytes_of(self, start: int, stop: int) -> np.ndarray:
        """Storage bytes [start, stop)."""
        return self.memory[start - self.first_byte : stop - self.first_byte]

    def rows(self, dtype: np.dtype, row: int) -> np.ndarray:
        """All whole rows in memory as (rows, row) of an unsigned integer type; row 0 starts at `first_byte`."""
        row_bytes = row * dtype.itemsize
        n_rows = len(self.memory) // row_bytes
        return self.memory[: n_rows * row_bytes].view(dtype).reshape(n_rows, row)


def aligned_buffer(n_bytes: int) -> np.ndarray:
    """Zeroed bytes at an aligned address."""
    raw = np.zeros(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]


def load_windows(storage: Storage, windows: Sequence[Window], length: int, reader: Executor) -> Iterator[LoadedWindow]:
    """The windows in order. Each is valid until the next but one is asked for.

    A mapped storage yields views that reach back from the window's end to `length` bytes where the storage has them,
    so that calls of one size serve the last window too. Either kind is read ahead by the one thread of `reader`: a file
    into the page cache, any other storage into BUFFERS buffers.
    Raises what `Storage.window` raises, after yielding those pieces of the failed window that were read whole.
    """
    if storage.mapped:
        ahead = [reader.submit(storage.prepare, w.start, w.stop) for w in windows[:BUFFERS]]
        for index, window in enumerate(windows):
            if index + BUFFERS < len(windows):
                later = windows[index + BUFFERS]
                ahead.append(reader.submit(storage.prepare, later.start, later.stop))
            ahead.pop(0).result()
            first = min(window.start, max(0, (window.stop - length) // GRID_BYTES * GRID_BYTES))
            yield LoadedWindow(window, first, storage.window(first, window.stop, None))
        return
    longest = windows[0].stop if len(windows) == 1 else length
    buffers = [aligned_buffer(min(longest, length) + SLACK) for _ in range(min(BUFFERS, len(windows)))]

    def fill(index: int) -> tuple[LoadedWindow, InputError | None]:
        window, buffer = windows[index], buffers[index % len(buffers)]
        try:
            storage.window(window.start, window.stop, buffer)
        except InputError as e:
            whole = tuple(p for p in window.pieces if p.stop <= storage.position)
            return LoadedWindow(replace(window, pieces=whole), window.start, buffer), e
        return LoadedWindow(window, window.start, buffer), None

    filling = [reader.submit(fill, i) for i in range(min(BUFFERS - 1, len(windows)))]
    for index in range(len(windows)):
        loaded, error = filling.pop(0).result()
        if loaded.window.pieces:
            yield loaded
        if error is not None:
            raise error
        # the window before this one has been collected by now: its buffer takes the one after the next
        if index + BUFFERS - 1 < len(windows):
            filling.append(reader.submit(fill, index + BUFFERS - 1))
