"""One loaded window -> the accumulators of the tensors that it holds pieces of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from teleojax.blocks import BLOCK_ROWS, ROW, LoadedWindow, aligned_buffer, plan_frames, split_piece
from teleojax.blocks._plan import FRAME_ROWS
from teleojax.engine import _compile
from teleojax.engine._accumulate import SUMMED, Accumulator, PatternCounts, Rows, RowsAndCounts, WholeTensor
from teleojax.engine._compile import compiled_row_sums
from teleojax.engine._counting import begin_counting
from teleojax.kernels import RowSums
from teleojax.sources import TensorSpec
from teleojax.stats import Partials, careful_rows, row_moments
from teleojax.stats._bithist import float_dtype, pattern_dtype

CAREFUL_ROWS = 32  # rows done at once in float64: they and their temporaries stay in cache

Device = Any  # a jax.Device, whose class type checkers cannot see


@dataclass(frozen=True, slots=True)
class _Span:
    """Whole rows [first, stop) of one tensor, numbered from the start of the window's memory."""

    tensor: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Fragment:
    """Storage bytes [start, stop) of one tensor, less than a row or not aligned."""

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Called:
    """Rows that the device was asked to sum, and for each, which tensor it is of, where it begins in the storage and
    how many zeros pad it. `wanted` are the rows that count, in the order of these arrays. `rows[index]` are bit
    patterns on the host.
    """

    rows: Any
    sums: RowSums
    wanted: np.ndarray
    tensors: np.ndarray
    starts: np.ndarray
    padding: np.ndarray | int = 0


@dataclass(slots=True)
class _Moments:
    """Moments of rows and fragments, in any order."""

    tensors: list[np.ndarray] = field(default_factory=list)
    starts: list[np.ndarray] = field(default_factory=list)
    partials: list[Partials] = field(default_factory=list)

    def add(self, tensors: np.ndarray, starts: np.ndarray, partials: Partials) -> None:
        self.tensors.append(tensors)
        self.starts.append(starts)
        self.partials.append(partials)

    def by_block(self, block_bytes: int) -> Iterator[tuple[int, Partials]]:
        """Of each tensor the partials of its blocks, in rising order."""
        if not self.partials:
            return
        tensors, starts = np.concatenate(self.tensors), np.concatenate(self.starts)
        order = np.lexsort((starts, tensors))
        tensors, blocks = tensors[order], starts[order] // block_bytes
        first = np.flatnonzero((np.diff(tensors, prepend=-1) != 0) | (np.diff(blocks, prepend=-1) != 0))
        merged = Partials.concatenate(self.partials).take(order).combine(first)
        owners, begins = np.unique(tensors[first], return_index=True)
        for owner, begin, end in zip(owners, begins, [*begins[1:], len(merged)], strict=True):
            yield int(owner), merged.take(slice(begin, end))


def accumulate_window(
    loaded: LoadedWindow,
    specs: Sequence[TensorSpec],
    accumulators: Mapping[int, Accumulator],
    length: int,
    threads: Executor,
    device: Device | None = None,
) -> Callable[[], None]:
    """Begin adding everything that the window holds to the accumulators; the returned call completes it.

    Device work runs between the two, so whatever the host does in between costs nothing. `length` is the plan's window
    length in bytes. `device` is where the whole rows are worked on, by default JAX's default device; the numbers do not
    depend on it.
    """
    spans: dict[str, list[_Span]] = {}
    fragments: dict[str, list[_Fragment]] = {}
    for piece in loaded.window.pieces:
        spec = specs[piece.tensor]
        row_bytes = ROW * pattern_dtype(spec.dtype).itemsize
        split = split_piece(spec, piece)
        if split.stop_row > split.first_row:
            base = loaded.first_byte // row_bytes
            span = _Span(piece.tensor, split.first_row - base, split.stop_row - base)
            spans.setdefault(spec.dtype, []).append(span)
        fragments.setdefault(spec.dtype, []).extend(_Fragment(piece.tensor, *ends) for ends in split.fragments)
    pending = [
        _begin(loaded, dtype, spans.get(dtype, []), fragments[dtype], accumulators, length, threads, device)
        for dtype in fragments
    ]

    def complete() -> None:
        for finish in pending:
            finish()

    return complete


def _begin(
    loaded: LoadedWindow,
    dtype: str,
    spans: list[_Span],
    fragments: list[_Fragment],
    accumulators: Mapping[int, Accumulator],
    length: int,
    threads: Executor,
    device: Device | None,
) -> Callable[[], None]:
    """Dispatch the device's calls for the tensors of one type; the returned call hands their results over."""
    bits = pattern_dtype(dtype)
    row_bytes = ROW * bits.itemsize
    by_rows = {s.tensor for s in (*spans, *fragments) if isinstance(accumulators[s.tensor], Rows)}
    on_device = dtype in SUMMED
    # the sums start first and run in the device's own threads while these threads count
    called: list[_Called] = []
    jobs: list[tuple[int, Callable[[], np.ndarray]]] = []
    loose = [f for f in fragments if f.tensor in by_rows]
    if spans:
        memory, first_row = loaded.rows(bits, ROW), loaded.first_byte // row_bytes
        begin = (loaded.window.start - loaded.first_byte) // row_bytes
        wanted = [s for s in spans if accumulators[s.tensor].n_bits or (s.tensor in by_rows and on_device)]
        for frame in plan_frames([(s.first, s.stop) for s in wanted], begin, len(memory), length // row_bytes):
            rows = _padded(memory[frame.first : frame.first + frame.size])
            own = [
                _Span(s.tensor, max(s.first, frame.own_first) - frame.first, min(s.stop, frame.own_stop) - frame.first)
                for s in wanted
            ]
            own = [s for s in own if s.first < s.stop]
            placed = _on_device(rows, device)
            if summed := [s for s in own if s.tensor in by_rows]:
                index = np.concatenate([np.arange(s.first, s.stop) for s in summed])
                owners = np.repeat([s.tensor for s in summed], [s.stop - s.first for s in summed])
                starts = (index + frame.first + first_row) * row_bytes
                called.append(_Called(rows, compiled_row_sums()(placed, dtype=dtype), index, owners, starts))
            for s in own:
                if n_bits := accumulators[s.tensor].n_bits:
                    jobs += [(s.tensor, job) for job in begin_counting(placed, s.first, s.stop, n_bits, threads)]
    if loose and on_device:
        called += _stage(loaded, dtype, loose)

    def complete() -> None:
        moments = _Moments()
        for fragment in fragments:
            accumulators[fragment.tensor].add_values(_bits_of(loaded, fragment, bits))
        for span in spans:
            if isinstance(whole := accumulators[span.tensor], WholeTensor):
                whole.add_values(loaded.rows(bits, ROW)[span.first : span.stop].reshape(-1))
        if not on_device:
            _add_with_care(loaded, dtype, spans, fragments, accumulators, moments)
        for tensor, job in jobs:
            accumulator = accumulators[tensor]
            if isinstance(accumulator, PatternCounts | RowsAndCounts):
                accumulator.add_counts(job())
        for call in called:
            moments.add(call.tensors, call.starts, _moments_of(call, dtype))
        for tensor, partials in moments.by_block(BLOCK_ROWS * row_bytes):
            accumulator = accumulators[tensor]
            if isinstance(accumulator, Rows):
                accumulator.partials.append(partials)

    return complete


def _padded(rows: np.ndarray) -> np.ndarray:
    """The rows themselves, or, where the memory has fewer than a frame, a copy with rows that nobody asks for."""
    if len(rows) >= FRAME_ROWS:
        return rows
    padded = aligned_buffer(FRAME_ROWS * rows.shape[1] * rows.itemsize).view(rows.dtype).reshape(FRAME_ROWS, -1)
    padded[: len(rows)] = rows
    return padded


def _stage(loaded: LoadedWindow, dtype: str, fragments: list[_Fragment]) -> Iterator[_Called]:
    """Sum fragments as rows of their own: each is copied to aligned memory and padded with zeros, counted apart."""
    bits = pattern_dtype(dtype)
    for a in range(0, len(fragments), FRAME_ROWS):
        group = fragments[a : a + FRAME_ROWS]
        stage = aligned_buffer(FRAME_ROWS * ROW * bits.itemsize).reshape(FRAME_ROWS, -1)
        for row, fragment in zip(stage, group, strict=False):
            row[: fragment.stop - fragment.start] = loaded.bytes_of(fragment.start, fragment.stop)
        rows = stage.view(bits)
        starts, stops = np.asarray([f.start for f in group]), np.asarray([f.stop for f in group])
        tensors, padding = np.asarray([f.tensor for f in group]), ROW - (stops - starts) // bits.itemsize
        sums = compiled_row_sums()(rows, dtype=dtype)
        yield _Called(rows, sums, np.arange(len(group)), tensors, starts, padding)


def _moments_of(call: _Called, dtype: str) -> Partials:
    """Moments of the rows wanted of a call, those that need care recomputed from their values."""
    moments = row_moments(call.sums)
    partials = moments.partials.take(call.wanted)
    redo = np.flatnonzero(moments.redo[call.wanted])
    for a in range(0, len(redo), CAREFUL_ROWS):
        index = redo[a : a + CAREFUL_ROWS]
        partials.put(index, careful_rows(call.rows[call.wanted[index]].view(float_dtype(dtype))))
    np.subtract(partials.n_zero, call.padding, out=partials.n_zero)
    return partials


def _add_with_care(
    loaded: LoadedWindow,
    dtype: str,
    spans: list[_Span],
    fragments: list[_Fragment],
    accumulators: Mapping[int, Accumulator],
    moments: _Moments,
) -> None:
    """Rows and fragments of a type that the device has no kernel for, in float64 on the host."""
    bits, values = pattern_dtype(dtype), float_dtype(dtype)
    memory, first_row = loaded.rows(bits, ROW), loaded.first_byte // (ROW * bits.itemsize)
    for span in spans:
        accumulator = accumulators[span.tensor]
        for a in range(span.first, span.stop, CAREFUL_ROWS) if isinstance(accumulator, Rows) else ():
            rows = memory[a : min(a + CAREFUL_ROWS, span.stop)]
            accumulator.add_values(rows.reshape(-1))
            starts = (np.arange(a, a + len(rows)) + first_row) * ROW * bits.itemsize
            moments.add(np.full(len(rows), span.tensor), starts, careful_rows(rows.view(values)))
    for f in fragments:
        if isinstance(accumulators[f.tensor], Rows):
            partials = careful_rows(_bits_of(loaded, f, bits).view(values).reshape(1, -1))
            moments.add(np.asarray([f.tensor]), np.asarray([f.start]), partials)


def _bits_of(loaded: LoadedWindow, fragment: _Fragment, bits: np.dtype) -> np.ndarray:
    """The fragment's bit patterns; a copy, which is aligned whatever the offset."""
    return loaded.bytes_of(fragment.start, fragment.stop).copy().view(bits)


def working_devices() -> tuple[Device | None, ...]:
    """The devices that windows go to in turn: all local ones.

    None alone, which is JAX's default device, where there is only one or the caller has chosen a default. A program is
    compiled for a device when the first window goes there, and so for no more devices than windows.
    """
    devices = jax.local_devices()
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(devices) if len(devices) > 1 and chosen is None else (None,)


def _on_device(rows: np.ndarray, device: Device | None) -> np.ndarray | jax.Array:
    """The rows where the device reads them: a CPU in place, any other in a copy that arrives while others are in work.

    One copy serves every call on the frame.
    """
    return rows if device is None and _compile.on_cpu() else jax.device_put(rows, device)
