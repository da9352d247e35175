"""Counts of the leading bits in rows: begun in parts that the cores of a CPU share, in one call on an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import cache, partial
from typing import Any

import numpy as np

from teleojax.blocks import aligned_buffer
from teleojax.engine import _compile
from teleojax.engine._compile import compiled_pattern_counts, compiled_whole_counts

JOB_KEYS = 1 << 22  # one thread counts at a time: long enough to hide the call, short enough to share among threads


def begin_counting(rows: Any, first: int, stop: int, n_bits: int, threads: Executor) -> list[Callable[[], np.ndarray]]:
    """Begin counting the leading `n_bits` bits in rows [first, stop); each call returned waits for part of the counts.

    `rows` are bit patterns, those of a CPU a NumPy array. An accelerator counts in one call, and sends the counts as
    they are done. A CPU counts patterns of 8 bits in pairs, two for the price of one.
    """
    if not _compile.on_cpu():
        counts = compiled_pattern_counts(rows.dtype.itemsize, n_bits)(rows, first, stop, n_bits=n_bits)
        counts.copy_to_host_async()
        return [partial(np.asarray, counts)]
    paired = rows.dtype.itemsize == 1 and n_bits == 8
    keys = rows.view(np.uint16) if paired else rows
    step = max(1, JOB_KEYS // keys.shape[1])
    job = partial(_counted, keys, 16 if paired else n_bits, step)

    def part(start: int) -> np.ndarray:
        counts = job(start, min(start + step, stop))
        return _of_either(counts) if paired else counts

    return [threads.submit(part, start).result for start in range(first, stop, step)]


def _counted(keys: np.ndarray, n_bits: int, step: int, first: int, stop: int) -> np.ndarray:
    """Counts in rows [first, stop): whole jobs of 16-bit patterns where they lie, whatever else row by row."""
    if keys.itemsize == 2 and n_bits == 16 and stop - first == step:
        whole = keys[first:stop].reshape(-1)
        return np.asarray(compiled_whole_counts()(whole, _ones(whole.size)))
    return np.asarray(compiled_pattern_counts()(keys, first, stop, n_bits=n_bits))


def _of_either(pairs: np.ndarray) -> np.ndarray:
    """Counts of pairs of 8-bit patterns -> of the patterns."""
    table = pairs.reshape(256, 256)
    return table.sum(axis=0) + table.sum(axis=1)


@cache
def _ones(n: int) -> np.ndarray:
    """What a scatter is given to add, and does not read."""
    ones = aligned_buffer(4 * n).view(np.int32)
    ones[:] = 1
    return ones
