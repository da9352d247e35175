"""The rows of an array's shards -> a ShardState: on the devices that hold the shards, or in the host's memory.

What a shard holds besides whole rows, and the rows of shards in the host's memory that have but a few, are gathered
into frames of their own, each piece padded to a row with zeros.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from teleojax.blocks import BLOCK_ROWS, ROW, aligned_buffer
from teleojax.blocks._plan import FRAME_ROWS
from teleojax.engine._accumulate import SUMMED
from teleojax.engine._shard_memory import HostMemory, ShardMemory
from teleojax.engine._shard_state import ShardState
from teleojax.engine._shards import Run, ShardPlan
from teleojax.engine._window import CAREFUL_ROWS, _Called, _Moments, _moments_of
from teleojax.stats import Partials, careful_rows
from teleojax.stats._bithist import COARSE_DROP, float_dtype, pattern_dtype

IN_FLIGHT = 2  # calls begun on a shard before the first of them is collected
BLOCK_VALUES = BLOCK_ROWS * ROW

_Map = Callable[..., Iterable[Any]]  # as `map` is


@dataclass(slots=True)
class Found:
    """What was found in some rows of a part: their moments, counts of their leading bits."""

    counts: np.ndarray
    moments: _Moments = field(default_factory=_Moments)


@dataclass(frozen=True, slots=True)
class Task:
    """What the rows of a part are asked for: their moments, counts of their `n_bits` leading bits (none for 0)."""

    part: int
    dtype: str
    moments: bool
    n_bits: int

    @staticmethod
    def of(plan: ShardPlan, part: int) -> Task:
        dtype = plan.spec.dtype
        n_bits = 8 * pattern_dtype(dtype).itemsize - COARSE_DROP.get(dtype, 0)
        return Task(part, dtype, dtype in COARSE_DROP or not plan.histogram, n_bits if plan.histogram else 0)

    def nothing(self) -> Found:
        """What is found in no rows."""
        return Found(np.zeros(1 << self.n_bits if self.n_bits else 0, np.int64))


def measure_shards(plan: ShardPlan, memories: Mapping[int, ShardMemory], threads: Executor, each: _Map) -> ShardState:
    """Measure what these shards hold of every part."""
    states = []
    for number in range(len(plan.parts)):
        task, runs = Task.of(plan, number), plan.runs(number)
        own = [(memories[run.place], run) for run in runs if run.place in memories]
        if task.dtype in SUMMED:
            found = list(each(partial(_measure_rows, task), *zip(*own, strict=True))) if own else []
            loose = [(memory, run, entry) for memory, run in own for entry in _loose(memory, run)]
            frames = (loose[a : a + FRAME_ROWS] for a in range(0, len(loose), FRAME_ROWS))
            found += [_measure_loose(task, frame, threads) for frame in frames]
        else:
            found = [_measure_with_care(task, memory, run) for memory, run in own]
        states.append(_settled(task, found, runs))
    return ShardState.concatenate(states)


def _loose(memory: ShardMemory, run: Run) -> list[int]:
    """Entries of a run that no call on the shard itself takes: fragments, and rows where the shard has but a few."""
    loose = (run.stops - run.starts < ROW) | (memory.n_rows < memory.least_rows)
    return np.flatnonzero(loose).tolist()


def _measure_rows(task: Task, memory: ShardMemory, run: Run) -> Found:
    """The whole rows of a run, call by call."""
    found = task.nothing()
    first, stop = -(-int(run.starts[0]) // ROW), int(run.stops[-1]) // ROW
    base = int(run.positions[0] - run.starts[0])
    begun: deque[Callable[[], None]] = deque()
    at = first if memory.n_rows >= memory.least_rows else stop
    while at < stop:
        size = memory.call_rows(stop - first, stop - at)
        begin = min(at, memory.n_rows - size)  # the last call may reach back over rows already done
        wanted = np.arange(at, min(at + size, stop))
        begun.append(_begin(task, found, memory, (begin, size), wanted - begin, base + wanted * ROW))
        at += len(wanted)
        while len(begun) > IN_FLIGHT:
            begun.popleft()()
    for finish in begun:
        finish()
    return found


def _begin(
    task: Task,
    found: Found,
    memory: ShardMemory,
    rows: tuple[int, int],
    wanted: np.ndarray,
    positions: np.ndarray,
    padding: np.ndarray | int = 0,
) -> Callable[[], None]:
    """Begin the calls on rows (first, how many) of a shard, of which `wanted` count; the call returned collects."""
    frame = memory.frame(*rows)
    sums = memory.sums(frame) if task.moments else None
    jobs = memory.counts(frame, int(wanted[0]), int(wanted[-1]) + 1) if task.n_bits else []

    def collect() -> None:
        for job in jobs:
            found.counts += job()
        if jobs:
            found.counts[0] -= np.sum(padding)
        if sums is not None:
            owners = np.full(len(wanted), task.part)
            called = _Called(memory.rows_at(frame), sums, wanted, owners, positions, padding)
            found.moments.add(owners, positions, _moments_of(called, task.dtype))

    return collect


def _measure_loose(task: Task, loose: list[tuple[ShardMemory, Run, int]], threads: Executor) -> Found:
    """Fragments and rows of any shards as rows of one frame, padded with zeros, which are taken off again."""
    bits = pattern_dtype(task.dtype)
    stage = aligned_buffer(FRAME_ROWS * ROW * bits.itemsize).view(bits)
    lengths = np.asarray([run.stops[entry] - run.starts[entry] for _, run, entry in loose])
    for row, (memory, run, entry) in enumerate(loose):
        values = memory.bits(int(run.starts[entry]), int(run.stops[entry]))
        stage[row * ROW : row * ROW + len(values)] = values
    found = task.nothing()
    positions = np.asarray([run.positions[entry] for _, run, entry in loose])
    staged = HostMemory(stage, task.dtype, task.n_bits, threads)
    _begin(task, found, staged, (0, FRAME_ROWS), np.arange(len(loose)), positions, ROW - lengths)()
    return found


def _measure_with_care(task: Task, memory: ShardMemory, run: Run) -> Found:
    """Rows and fragments of a type that the device has no kernel for, in float64 on the host, a few rows at a time."""
    found = task.nothing()
    shift = 8 * pattern_dtype(task.dtype).itemsize - task.n_bits
    fragment = run.stops - run.starts < ROW
    cut = fragment | np.append(True, fragment[:-1]) | (np.arange(len(fragment)) % CAREFUL_ROWS == 0)
    cuts = np.flatnonzero(cut).tolist()
    for a, b in zip(cuts, [*cuts[1:], len(cut)], strict=True):
        bits = memory.bits(int(run.starts[a]), int(run.stops[b - 1]))
        if task.n_bits:
            np.add.at(found.counts, bits >> bits.dtype.type(shift), 1)
        partials = careful_rows(bits.view(float_dtype(task.dtype)).reshape(b - a, -1))
        found.moments.add(np.full(b - a, task.part), run.positions[a:b], partials)
    return found


def _settled(task: Task, found: list[Found], runs: list[Run]) -> ShardState:
    """What was found, the rows of every block that is complete merged: what a block holds follows from the runs."""
    counts = sum((one.counts for one in found), task.nothing().counts)
    key = np.flatnonzero(counts)
    state = ShardState(counted_part=np.full(len(key), task.part), key=key, count=counts[key])
    rows = [(starts, p) for one in found for starts, p in zip(one.moments.starts, one.moments.partials, strict=True)]
    if not rows:
        return state
    position, partials = np.concatenate([starts for starts, _ in rows]), Partials.concatenate([p for _, p in rows])
    order = np.argsort(position)
    position, partials = position[order], partials.take(order)
    block = position // BLOCK_VALUES
    _, inside, present = np.unique(block, return_inverse=True, return_counts=True)
    blocks, expected = np.unique(np.concatenate([run.positions for run in runs]) // BLOCK_VALUES, return_counts=True)
    complete = present[inside] == expected[np.searchsorted(blocks, block)]
    first = np.flatnonzero((np.diff(block, prepend=-1) != 0) | ~complete)
    merged = partials.combine(first)
    return replace(state, part=np.full(len(first), task.part), position=position[first], partials=merged)
