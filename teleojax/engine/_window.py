"""One loaded window -> the accumulators of the tensors that it holds pieces of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from teleojax.blocks import ROW, LoadedWindow, aligned_buffer, plan_frames, split_piece
from teleojax.blocks._plan import FRAME_ROWS, Frame
from teleojax.engine._accumulate import Accumulator, PatternCounts, Rows, RowsAndCounts
from teleojax.engine._compile import compiled_pattern_counts, compiled_row_sums
from teleojax.sources import TensorSpec
from teleojax.stats import RowMoments, row_moments
from teleojax.stats._bithist import pattern_dtype

JOB_ROWS = 512  # rows one thread counts at a time: long enough to hide the call, short enough to share among threads


@dataclass(frozen=True, slots=True)
class _Span:
    """Whole rows [first, stop) of one tensor, numbered from the start of the window's memory."""

    tensor: int
    first: int
    stop: int


def accumulate_window(
    loaded: LoadedWindow,
    specs: Sequence[TensorSpec],
    accumulators: Mapping[int, Accumulator],
    length: int,
    threads: Executor,
) -> Callable[[], None]:
    """Begin adding everything that the window holds to the accumulators; the returned call completes it.

    Device work runs between the two, so whatever the host does in between costs nothing. `length` is the plan's window
    length in bytes.
    """
    spans: dict[str, list[_Span]] = {}
    fragments: list[tuple[Accumulator, int, int, np.dtype]] = []
    for piece in loaded.window.pieces:
        spec, accumulator = specs[piece.tensor], accumulators[piece.tensor]
        dtype = pattern_dtype(spec.dtype)
        row_bytes = ROW * dtype.itemsize
        split = split_piece(spec, piece)
        loose = split.fragments
        if split.stop_row > split.first_row:
            base = loaded.first_byte // row_bytes
            span = _Span(piece.tensor, split.first_row - base, split.stop_row - base)
            if accumulator.n_bits or accumulator.sums:
                spans.setdefault(spec.dtype, []).append(span)
            else:  # nothing for the device: row by row on the host
                rows = (r * row_bytes for r in range(split.first_row, split.stop_row))
                loose = sorted([*loose, *((start, start + row_bytes) for start in rows)])
        fragments += [(accumulator, start, stop, dtype) for start, stop in loose]
    pending = [_begin_rows(loaded, dtype, group, accumulators, length, threads) for dtype, group in spans.items()]

    def complete() -> None:
        for accumulator, start, stop, dtype in fragments:
            bits = loaded.bytes_of(start, stop).copy().view(dtype)  # a copy is aligned whatever the offset
            accumulator.add_values(bits, start // (ROW * dtype.itemsize))
        for finish in pending:
            finish()

    return complete


def _begin_rows(
    loaded: LoadedWindow,
    dtype: str,
    spans: list[_Span],
    accumulators: Mapping[int, Accumulator],
    length: int,
    threads: Executor,
) -> Callable[[], None]:
    """Dispatch the calls for the whole rows of one type; the returned call hands their results over."""
    bits = pattern_dtype(dtype)
    memory = loaded.rows(bits, ROW)
    row_bytes = ROW * bits.itemsize
    begin, base = (loaded.window.start - loaded.first_byte) // row_bytes, loaded.first_byte // row_bytes
    frames = plan_frames([(s.first, s.stop) for s in spans], begin, len(memory), length // row_bytes)
    calls = [(frame, _frame_rows(memory, frame)) for frame in frames]
    summing = any(accumulators[s.tensor].sums for s in spans)
    # the sums start first and run in the device's own threads while these threads count
    sums = [compiled_row_sums()(rows, dtype=dtype) if summing else None for _, rows in calls]
    jobs = []
    for frame, rows in calls:
        for span in spans:
            first, stop = max(span.first, frame.own_first), min(span.stop, frame.own_stop)
            n_bits = accumulators[span.tensor].n_bits
            for a in range(first, stop, JOB_ROWS) if n_bits else ():
                job = threads.submit(_count, rows, a - frame.first, min(a + JOB_ROWS, stop) - frame.first, n_bits)
                jobs.append((span.tensor, job))

    def complete() -> None:
        for tensor, job in jobs:
            accumulator = accumulators[tensor]
            if isinstance(accumulator, PatternCounts | RowsAndCounts):
                accumulator.add_counts(job.result())
        for (frame, rows), summed in zip(calls, sums, strict=True):
            if summed is None:
                continue
            moments = row_moments(summed)
            for span in spans:
                accumulator = accumulators[span.tensor]
                first, stop = max(span.first, frame.own_first), min(span.stop, frame.own_stop)
                if first < stop and isinstance(accumulator, Rows):
                    _add_rows(accumulator, moments, rows, np.arange(first, stop) - frame.first, base + frame.first)

    return complete


def _frame_rows(memory: np.ndarray, frame: Frame) -> np.ndarray:
    """The rows of a frame: a view, or, where the memory has fewer, a copy padded with rows that nobody asks for."""
    rows = memory[frame.first : frame.first + frame.size]
    if len(rows) == frame.size:
        return rows
    padded = aligned_buffer(FRAME_ROWS * rows.shape[1] * rows.itemsize).view(rows.dtype).reshape(FRAME_ROWS, -1)
    padded[: len(rows)] = rows
    return padded


def _count(rows: np.ndarray, first: int, stop: int, n_bits: int) -> np.ndarray:
    """Counts of the leading bits over rows [first, stop) of a frame."""
    return np.asarray(compiled_pattern_counts()(rows, first, stop, n_bits=n_bits))


def _add_rows(accumulator: Rows, moments: RowMoments, rows: np.ndarray, index: np.ndarray, base: int) -> None:
    """Hand the rows at `index` to an accumulator, those that need care recomputed from their values."""
    redo = moments.redo[index]
    accumulator.add_rows(index[~redo] + base, moments.partials.take(index[~redo]))
    for row in index[redo]:
        accumulator.add_careful_row(rows[row], int(row) + base)
