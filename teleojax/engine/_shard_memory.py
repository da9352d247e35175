"""A shard's values as rows for the kernels: in memory that the host reads in place, or on the device that holds them.

Both offer the same: `frame` names some rows for the calls that follow, `sums` and `counts` begin work on them,
`rows_at` and `bits` bring a few to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from teleojax.blocks import ROW
from teleojax.blocks._plan import FRAME_ROWS, WINDOW_BYTES
from teleojax.engine import _compile
from teleojax.engine._counting import begin_counting
from teleojax.engine._window import _on_device
from teleojax.kernels import RowSums
from teleojax.stats._bithist import pattern_dtype

SUM_VALUES = 1 << 24  # values a call that only sums: the rows are read where they are
COUNT_VALUES = 1 << 22  # values a call that counts: what the fastest way needs for sorted keys is a few times that


@runtime_checkable
class ShardMemory(Protocol):
    """What the engine needs of a shard. `least_rows` is from how many rows on they are worth a call of their own."""

    n_rows: int
    least_rows: int

    def call_rows(self, wanted: int, left: int) -> int:
        """Rows of the next call, at most all there are, when `left` of `wanted` rows in sequence are still to do."""
        ...

    def frame(self, first: int, size: int) -> Any:
        """Rows [first, first + size), all of which there are, for the calls below."""
        ...

    def sums(self, frame: Any) -> RowSums:
        """Begin summing the rows of a frame."""
        ...

    def counts(self, frame: Any, own: int, stop: int) -> list[Callable[[], np.ndarray]]:
        """Begin counting the leading `n_bits` of rows [own, stop) of a frame; each call returned waits for a part."""
        ...

    def rows_at(self, frame: Any) -> Any:
        """What gives bit patterns of a frame's rows on the host: `rows_at(frame)[index]`, index rising."""
        ...

    def bits(self, start: int, stop: int) -> np.ndarray:
        """Bit patterns of values [start, stop) on the host: of whole rows, FRAME_ROWS at most, or within one row."""
        ...


class HostMemory:
    """Bit patterns in the host's memory, read where they are by a CPU and copied frame by frame to any other device."""

    least_rows = FRAME_ROWS  # fewer are gathered in frames with those of other shards

    def __init__(self, bits: np.ndarray, dtype: str, n_bits: int, threads: Executor) -> None:
        self._bits, self._dtype, self._n_bits, self._threads = bits, dtype, n_bits, threads
        self.n_rows = len(bits) // ROW
        self._rows = bits[: self.n_rows * ROW].reshape(self.n_rows, ROW)

    def call_rows(self, wanted: int, left: int) -> int:  # noqa: ARG002
        """As many as a call has on a window of a file: the programs are the same, whatever the shape of the shard."""
        large = WINDOW_BYTES // (ROW * self._bits.itemsize)
        return large if self.n_rows >= large and 2 * left >= large else FRAME_ROWS

    def frame(self, first: int, size: int) -> tuple[np.ndarray, Any]:
        """The rows, and the same where the device reads them."""
        rows = self._rows[first : first + size]
        return rows, _on_device(rows, None)

    def sums(self, frame: tuple[np.ndarray, Any]) -> RowSums:
        """Begin summing the rows of a frame."""
        return _compile.compiled_row_sums()(frame[1], dtype=self._dtype)

    def counts(self, frame: tuple[np.ndarray, Any], own: int, stop: int) -> list[Callable[[], np.ndarray]]:
        """Begin counting rows [own, stop) of a frame."""
        return begin_counting(frame[1], own, stop, self._n_bits, self._threads)

    def rows_at(self, frame: tuple[np.ndarray, Any]) -> np.ndarray:
        """The rows themselves."""
        return frame[0]

    def bits(self, start: int, stop: int) -> np.ndarray:
        """A view."""
        return self._bits[start:stop]


@dataclass(frozen=True, slots=True)
class _DeviceRows:
    """Rows of a shard on a device, from row `first` on, of which some are wanted on the host."""

    memory: DeviceMemory
    first: int

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The rows at rising indices: in one go where they lie close together."""
        low, high = int(index[0]), int(index[-1]) + 1
        if high - low <= FRAME_ROWS:
            return self._fetch(low, high)[index - low]
        return np.concatenate([self._fetch(i, i + 1) for i in index.tolist()])

    def _fetch(self, low: int, high: int) -> np.ndarray:
        return self.memory.bits((self.first + low) * ROW, (self.first + high) * ROW).reshape(-1, ROW)


class DeviceMemory:
    """A shard on the device that holds it: programs take the whole of it and read their rows where they are."""

    least_rows = 1

    def __init__(self, array: jax.Array, n_bits: int) -> None:
        self._array = array
        self._dtype = pattern_dtype(array.dtype.name)
        self.n_rows = array.size // ROW
        # made here, before there are threads: which way of counting is fastest is found out once
        self._sum = _compile.compiled_shard_sums()
        self._count = _compile.compiled_shard_counts(self._dtype.itemsize, n_bits) if n_bits else None

    def call_rows(self, wanted: int, left: int) -> int:  # noqa: ARG002
        """As many as keep what a call takes beside the shard below 64 MiB; one number, and so one program, a shard."""
        large = min(self.n_rows, (COUNT_VALUES if self._count else SUM_VALUES) // ROW)
        return large if 2 * wanted >= large else min(self.n_rows, FRAME_ROWS)

    def frame(self, first: int, size: int) -> tuple[int, int]:
        """The numbers of the rows."""
        return first, size

    def sums(self, frame: tuple[int, int]) -> RowSums:
        """Begin summing the rows of a frame."""
        return self._sum(self._array, np.int32(frame[0]), n_rows=frame[1])

    def counts(self, frame: tuple[int, int], own: int, stop: int) -> list[Callable[[], np.ndarray]]:
        """Begin counting rows [own, stop) of a frame."""
        if self._count is None:
            return []
        counts = self._count(self._array, np.int32(frame[0]), np.int32(own), np.int32(stop), n_rows=frame[1])
        counts.copy_to_host_async()
        return [partial(np.asarray, counts)]

    def rows_at(self, frame: tuple[int, int]) -> _DeviceRows:
        """The rows, fetched when they are asked for."""
        return _DeviceRows(self, frame[0])

    def bits(self, start: int, stop: int) -> np.ndarray:
        """A copy, of no more than FRAME_ROWS rows."""
        whole = self.n_rows * ROW
        with _all_types(self._dtype):
            if start >= whole:
                base, values = whole, _compile.compiled_shard_tail()(self._array)
            else:
                first, n_rows = start // ROW, -(-stop // ROW) - start // ROW
                size = 1 if n_rows == 1 else min(FRAME_ROWS, self.n_rows)
                first = min(first, self.n_rows - size)
                base, values = first * ROW, _compile.compiled_shard_rows()(self._array, np.int32(first), n_rows=size)
            return np.asarray(values).reshape(-1)[start - base : stop - base].view(self._dtype)


def _all_types(dtype: np.dtype) -> AbstractContextManager[Any]:
    """Where 64-bit values may be handled; the setting is the thread's own and ends with the block."""
    return jax.enable_x64(True) if dtype.itemsize == 8 else nullcontext()
