"""One loaded window -> the accumulators of the tensors that it holds pieces of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from teleojax.blocks import ROW, LoadedWindow, aligned_buffer, plan_frames, split_piece
from teleojax.blocks._plan import FRAME_ROWS, Frame
from teleojax.engine._accumulate import Accumulator, RowsAndCounts, WholeTensor
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
) -> None:
    """Add everything that the window holds to the accumulators. `length` is the plan's window length in bytes."""
    spans: dict[np.dtype, list[_Span]] = {}
    for piece in loaded.window.pieces:
        spec, accumulator = specs[piece.tensor], accumulators[piece.tensor]
        dtype = pattern_dtype(spec.dtype)
        row_bytes = ROW * dtype.itemsize
        split = split_piece(spec, piece)
        fragments = split.fragments
        if split.stop_row > split.first_row:
            base = loaded.first_byte // row_bytes
            span = _Span(piece.tensor, split.first_row - base, split.stop_row - base)
            if accumulator.n_bits:
                spans.setdefault(dtype, []).append(span)
            else:  # nothing for the device: row by row on the host
                rows = (r * row_bytes for r in range(split.first_row, split.stop_row))
                fragments = sorted([*fragments, *((start, start + row_bytes) for start in rows)])
        for start, stop in fragments:
            bits = loaded.bytes_of(start, stop).copy().view(dtype)  # a copy is aligned whatever the offset
            accumulator.add_values(bits, start // row_bytes)
    for dtype, group in spans.items():
        _accumulate_rows(loaded, dtype, group, accumulators, length, threads)


def _accumulate_rows(
    loaded: LoadedWindow,
    dtype: np.dtype,
    spans: list[_Span],
    accumulators: Mapping[int, Accumulator],
    length: int,
    threads: Executor,
) -> None:
    memory = loaded.rows(dtype, ROW)
    row_bytes = ROW * dtype.itemsize
    begin = (loaded.window.start - loaded.first_byte) // row_bytes
    frames = plan_frames([(s.first, s.stop) for s in spans], begin, len(memory), length // row_bytes)
    calls = [(frame, _frame_rows(memory, frame)) for frame in frames]
    summing = any(isinstance(accumulators[s.tensor], RowsAndCounts) for s in spans)
    # the sums start first and run in the device's own threads while these threads count
    sums = [compiled_row_sums()(rows.view(np.int32)) if summing else None for _, rows in calls]
    jobs = []
    for frame, rows in calls:
        for span in spans:
            first, stop = max(span.first, frame.own_first), min(span.stop, frame.own_stop)
            n_bits = accumulators[span.tensor].n_bits
            jobs += [
                (
                    span.tensor,
                    threads.submit(_count, rows, a - frame.first, min(a + JOB_ROWS, stop) - frame.first, n_bits),
                )
                for a in range(first, stop, JOB_ROWS)
            ]
    for tensor, job in jobs:
        accumulator = accumulators[tensor]
        if not isinstance(accumulator, WholeTensor):  # which has no n_bits, and so no job
            accumulator.add_counts(job.result())
    base = loaded.first_byte // row_bytes
    for (frame, rows), summed in zip(calls, sums, strict=True):
        if summed is None:
            continue
        moments = row_moments(summed)
        for span in spans:
            accumulator = accumulators[span.tensor]
            first, stop = max(span.first, frame.own_first), min(span.stop, frame.own_stop)
            if first < stop and isinstance(accumulator, RowsAndCounts):
                _add_rows(accumulator, moments, rows, np.arange(first, stop) - frame.first, base + frame.first)


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


def _add_rows(accumulator: RowsAndCounts, moments: RowMoments, rows: np.ndarray, index: np.ndarray, base: int) -> None:
    """Hand the rows at `index` to an accumulator, those that need care recomputed from their values."""
    redo = moments.redo[index]
    accumulator.add_rows(index[~redo] + base, moments.partials.take(index[~redo]))
    for row in index[redo]:
        accumulator.add_careful_row(rows[row], int(row) + base)
