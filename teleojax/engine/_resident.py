"""JAX arrays measured where they lie: every distinct shard on the device that holds it, replicas once.

Nothing the size of a parameter is brought to the host or copied on a device: a few MiB at a time are. On a CPU, and
where shards are kept in the host's memory, the kernels read them in place.

Rows of all shards are numbered in the order of the shards (`_shards`), and BLOCK_ROWS rows in sequence merge first, as
in a file. So, against the same values in one piece: where shards are contiguous stretches that begin at whole rows, no
bit differs (axis 0 sharded, usual shapes); of 8- and 16-bit types with histogram none does whatever the sharding, since
every pattern is counted; arrays of at most EXACT_SIZE values are put together on the host, so none does either.
Of other shardings the counts, extremes and histogram are equal and the moments as close as float32 sums over other rows
are: 1e-7 of the spread. A process that holds all of such an array in memory the host reads takes it in the array's own
order instead, a window at a time (`sources._array_memory`): there no bit depends on the sharding.

With groups, an array is cut into stretches along the order of the shards: the same stretches as of the array in one
piece where shards are contiguous stretches of it, other ones elsewhere.

Of an array of which several processes hold parts each makes the `shard_state` of the shards it answers for, and
`merge_states` takes all of them, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np

from teleojax._errors import InputError, UsageError
from teleojax.engine._accumulate import SUMMED, PatternCounts, RowsAndCounts, WholeTensor
from teleojax.engine._pass import _moments_alone, cores
from teleojax.engine._processes import gather
from teleojax.engine._shard_memory import DeviceMemory, HostMemory
from teleojax.engine._shard_rows import BLOCK_VALUES, Task, measure_shards
from teleojax.engine._shard_state import ShardState
from teleojax.engine._shards import Place, ShardPlan, in_order, places_of
from teleojax.engine._window import _Moments
from teleojax.sources import PytreeSource, Source, TensorSpec
from teleojax.sources._array_memory import corner_of, host_bits, on_host
from teleojax.stats import LogMoments, Partials, TensorStats
from teleojax.stats._bithist import COARSE_DROP, EXACT_SIZE, pattern_dtype


def resident_leaves(source: Source, specs: Iterable[TensorSpec]) -> dict[str, jax.Array]:
    """The arrays behind tensors, by name, where they are to be measured by their shards.

    Neither what is no JAX array, or a deleted one, nor an array that the host reads better in the array's own order: in
    one piece, or in shards that are not whole rows in sequence.
    """
    return {s.name: leaf for s in specs if (leaf := _leaf(source, s)) is not None}


def _leaf(source: Source, spec: TensorSpec) -> jax.Array | None:
    leaf = source.leaf(spec.storage) if isinstance(source, PytreeSource) else None
    if not isinstance(leaf, jax.Array) or leaf.is_deleted():
        return None
    if leaf.is_fully_addressable and on_host(leaf):
        places = places_of(leaf.shape, leaf.sharding)
        return leaf if len(places) > 1 and in_order(leaf.shape, places) else None
    return leaf


def measure_resident(
    leaves: Mapping[str, jax.Array],
    specs: Mapping[str, TensorSpec],
    *,
    groups: int | None,
    histogram: bool,
    multiprocess: bool,
) -> Iterator[tuple[TensorSpec, TensorStats]]:
    """The statistics of each array, by the specification of that name.

    With `multiprocess` every process makes the same call, and an array of which each holds a part is measured by all of
    them together. Raises InputError, before anything is measured, for such an array without it, and ProcessLostError
    when another process has ended.
    """
    for name, array in leaves.items():
        if not (multiprocess or array.is_fully_addressable):
            raise InputError(
                f"leaf {name!r}",
                found="an array of which this process holds only a part",
                needed="an array that this process can read in full, or all processes at work",
                remedy="Call with multiprocess=True in every process.",
            )
    with ThreadPoolExecutor(cores(), thread_name_prefix="teleojax-count") as threads:
        for name, array in leaves.items():
            plan = ShardPlan.of(specs[name], array.sharding, groups=groups, histogram=histogram)
            states = [shard_state(plan, array, threads)]
            if not array.is_fully_addressable:
                states = [ShardState.of_bytes(message) for message in gather(states[0].to_bytes())]
            yield specs[name], merge_states(plan, states)


def shard_state(plan: ShardPlan, array: jax.Array, threads: Executor, *, in_place: bool = True) -> ShardState:
    """Measure the shards that this process answers for: of those it holds, the first replicas.

    With `in_place` False shards in a CPU's memory are worked on through their device too: the same numbers.
    """
    numbers = {place.corner: number for number, place in enumerate(plan.places)}
    own = {numbers[corner_of(s.index, array.shape)]: s.data for s in array.addressable_shards if s.replica_id == 0}
    if plan.spec.size <= EXACT_SIZE:
        bits = [host_bits(data).reshape(-1).view(np.uint8) for data in own.values()]
        return ShardState(shard=np.asarray(list(own), np.int64), bits=np.concatenate([*bits, ShardState().bits]))
    dtype, n_bits = plan.spec.dtype, Task.of(plan, 0).n_bits if plan.spec.dtype in SUMMED else 0
    if in_place and on_host(array):
        in_host = {
            number: HostMemory(host_bits(data).reshape(-1), dtype, n_bits, threads) for number, data in own.items()
        }
        return measure_shards(plan, in_host, threads, map)
    on_devices = {number: DeviceMemory(data, n_bits) for number, data in own.items()}
    # a thread a shard, so that programs are compiled and calls begun for all devices at once
    with ThreadPoolExecutor(max(1, len(own)), thread_name_prefix="teleojax-shard") as drivers:
        return measure_shards(plan, on_devices, threads, drivers.map)


def merge_states(plan: ShardPlan, states: Sequence[ShardState]) -> TensorStats:
    """The statistics of an array from the states of all processes, in any order.

    Raises UsageError when a state is missing or there twice.
    """
    state = ShardState.concatenate(states)
    if plan.spec.size <= EXACT_SIZE:
        _check(plan.spec, len(state.bits) // plan.itemsize)
        return _put_together(plan, state)
    return _finish(plan, state)


def _check(spec: TensorSpec, n_values: int) -> None:
    if n_values != spec.size:
        raise UsageError(
            f"shards of {spec.name!r}",
            found=f"{n_values} values",
            needed=f"all {spec.size}, each once",
            remedy="Merge the state of every process, once.",
        )


def _finish(plan: ShardPlan, state: ShardState) -> TensorStats:
    """The statistics of an array whose parts are complete."""
    merged = _moments_by_part(state)
    parts: list[TensorStats] = []
    for number, part in enumerate(plan.parts):
        moments, counts = merged.get(number, LogMoments.zero()), Task.of(plan, number).nothing().counts
        mine = state.counted_part == number
        np.add.at(counts, state.key[mine], state.count[mine])
        _check(part.spec, int(counts.sum()) if plan.histogram else moments.size)
        if not plan.histogram:
            parts.append(TensorStats(moments, None))
        elif part.spec.dtype in COARSE_DROP:
            _check(part.spec, moments.size)
            table = RowsAndCounts(part.spec)
            table.add_counts(counts)
            parts.append(table.finish(moments))
        else:
            patterns = PatternCounts(part.spec)
            patterns.add_counts(counts)
            parts.append(patterns.finish())
    return parts[0] if len(parts) == 1 else TensorStats.from_groups(parts)


def _moments_by_part(state: ShardState) -> dict[int, LogMoments]:
    """All entries of each part merged: those of a block first, in rising order, then the blocks."""
    if not len(state.partials):
        return {}
    moments = _Moments()
    moments.add(state.part, state.position, state.partials)
    blocks = dict(moments.by_block(BLOCK_VALUES))
    starts = np.cumsum([0, *map(len, blocks.values())])[:-1]
    return dict(zip(blocks, Partials.concatenate(list(blocks.values())).combine(starts).each(), strict=True))


def _put_together(plan: ShardPlan, state: ShardState) -> TensorStats:
    """The statistics of a small array, from all of its values in the array's own order."""
    spec, dtype = plan.spec, pattern_dtype(plan.spec.dtype)
    values = np.empty(spec.shape, dtype)
    stop = 0
    for place in (plan.places[number] for number in state.shard.tolist()):
        start, stop = stop, stop + place.size * dtype.itemsize
        values[place.index] = state.bits[start:stop].view(dtype).reshape(place.shape)
    bits = values.reshape(-1)
    whole = plan.parts[0].accumulator(histogram=plan.histogram)
    if isinstance(whole, WholeTensor):
        whole.add_values(bits)
        stats = whole.finish()
        return stats if plan.histogram else _moments_alone(stats)
    one = replace(plan, places=(Place(tuple((0, n) for n in spec.shape), 0, 0),))
    with ThreadPoolExecutor(1) as threads:
        memory = HostMemory(bits, spec.dtype, Task.of(plan, 0).n_bits, threads)
        return _finish(one, measure_shards(one, {0: memory}, threads, map))
