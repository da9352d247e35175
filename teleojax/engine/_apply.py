"""A table of a function applied to every parameter: to arrays, shard by shard, or to a source, block by block.

On a CPU values go in chunks through one compiled program for every size of tensor, in threads. Each thread donates the
result of one chunk to the next: the memory it writes to is paged in once, where a fresh result a tensor spends four
fifths of its time in page faults.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from teleojax.blocks import ALIGNMENT, ROW, LoadedWindow, aligned_buffer, load_windows, plan_windows, window_bytes
from teleojax.engine import _compile
from teleojax.engine._pass import cores
from teleojax.kernels import ValueTable
from teleojax.sources import Source, TensorSpec
from teleojax.sources._index import by_storage
from teleojax.stats._bithist import float_dtype, pattern_dtype

CHUNK_BYTES = 8 << 20  # read by a call: two threads' chunks and results fill a last-level cache of 32 MiB
MEDIUM_ROWS, SMALL_ROWS = 64, 8  # rows of the other calls, for what is less than a chunk
IN_FLIGHT = 1  # windows whose chunks may be at work while the next is cut up: a buffer is filled again after that

_Begun = tuple[list[Future[None]], int]  # the chunks of a window, and its bytes
_WritePart = Callable[[int, np.ndarray], None]  # where these bytes begin in a stretch of memory's results, the bytes
Write = Callable[[TensorSpec, int, np.ndarray], None]  # a tensor, where in its results these bytes begin, the bytes


@dataclass(frozen=True, slots=True)
class _Placed:
    """A table whose entries are where the device reads them."""

    entries: Any
    dtype: np.dtype  # of a bit pattern
    out_dtype: np.dtype  # of a result

    @staticmethod
    def of(table: ValueTable) -> _Placed:
        dtype, out = pattern_dtype(table.dtype), float_dtype(table.out_dtype)
        with _precision(dtype):
            return _Placed(jax.device_put(table.entries), dtype, pattern_dtype(out.name))

    @property
    def rows(self) -> int:
        """Rows of a whole chunk."""
        return CHUNK_BYTES // (ROW * self.dtype.itemsize)


def _precision(dtype: np.dtype) -> AbstractContextManager[Any]:
    """Where 64-bit values may be computed with; the setting is the thread's own and ends with the block."""
    return jax.enable_x64(True) if dtype.itemsize == 8 else nullcontext()


class _Chunks:
    """Threads that apply tables to stretches of memory; each keeps its scratch memory as long as it lives."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor, self._local = executor, threading.local()

    def submit(self, memory: np.ndarray, table: _Placed, write: _WritePart) -> list[Future[None]]:
        """Begin applying the table to bit patterns (as bytes); `write` gets byte offsets and bytes of results.

        It is called in the threads, in any order, and must not keep what it gets.
        """
        n = len(memory) // table.dtype.itemsize
        cuts = _cuts(memory.ctypes.data, n, table.dtype.itemsize, table.rows * ROW)
        return [self._executor.submit(self._apply, memory, table, a, b, write) for a, b in pairwise(cuts)]

    def _apply(self, memory: np.ndarray, table: _Placed, first: int, stop: int, write: _WritePart) -> None:
        itemsize, n = table.dtype.itemsize, stop - first
        shape = (next(r for r in (SMALL_ROWS, MEDIUM_ROWS, table.rows) if n <= r * ROW), ROW)
        values = memory[first * itemsize : stop * itemsize]
        if n < shape[0] * ROW or values.ctypes.data % ALIGNMENT:
            stage = self._kept("stage", shape, table.dtype)
            stage[: len(values)] = values
            values = stage
        with _precision(table.dtype):
            scratch = self._kept("scratch", shape, table.out_dtype)
            bits = values[: shape[0] * ROW * itemsize].view(table.dtype).reshape(shape)
            result = _compile.compiled_table()(scratch, bits, table.entries)
            write(first * table.out_dtype.itemsize, np.asarray(result).reshape(-1)[:n].view(np.uint8))
        self._local.kept["scratch", shape, table.out_dtype] = result

    def _kept(self, kind: str, shape: tuple[int, int], dtype: np.dtype) -> Any:
        kept = self._local.__dict__.setdefault("kept", {})
        key = (kind, shape, dtype)
        if kind == "scratch":  # it is given away, and comes back as the result
            return kept.pop(key) if key in kept else jnp.zeros(shape, dtype)
        if key not in kept:
            kept[key] = aligned_buffer(shape[0] * shape[1] * dtype.itemsize)
        return kept[key]


@contextmanager
def _chunks() -> Iterator[_Chunks]:
    with ThreadPoolExecutor(cores(), thread_name_prefix="teleojax-apply") as executor:
        yield _Chunks(executor)


def _cuts(address: int, n: int, itemsize: int, chunk: int) -> list[int]:
    """Where to cut n values at an address, for calls of three sizes; all but the first begin at aligned memory."""
    lead = (address // itemsize) % (ALIGNMENT // itemsize) if address % itemsize == 0 else 0
    cuts = [0]
    while (left := n - cuts[-1]) > 0:
        size = chunk if left >= chunk else (MEDIUM_ROWS if left > 2 * SMALL_ROWS * ROW else SMALL_ROWS) * ROW
        cuts.append(cuts[-1] + min(left, size - (lead if cuts == [0] else 0)))
    return cuts


def apply_to_leaves(leaves: Sequence[Any], tables: Iterable[ValueTable], *, donate: bool = False) -> Iterator[Any]:
    """Each array with its table's function of every value: same kind, shape, dtype, layout in memory and sharding.

    A NumPy array gives a NumPy array. Of a JAX array every shard this process holds is computed where it is, nothing
    is moved. With `donate` a JAX array is deleted once its result is there; an accelerator overwrites it.
    """
    with _chunks() as chunks:
        for leaf, table in zip(leaves, tables, strict=True):
            if isinstance(leaf, jax.Array):
                with _precision(leaf.dtype):
                    done = _on_jax(leaf, table, donate, chunks)
                yield done
            else:
                yield _on_numpy(leaf, table, chunks)


def _on_numpy(leaf: Any, table: ValueTable, chunks: _Chunks) -> Any:
    array = np.asarray(leaf)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    fortran = native.ndim > 1 and native.flags.f_contiguous and not native.flags.c_contiguous
    flat = np.ascontiguousarray(native.T if fortran else native)
    result = _flat(flat, table, chunks).view(flat.dtype).reshape(flat.shape)
    result = (result.T if fortran else result).astype(array.dtype, copy=False)
    return result if isinstance(leaf, np.ndarray) else result.reshape(())[()]


def _flat(array: np.ndarray, table: ValueTable, chunks: _Chunks) -> np.ndarray:
    """The results for a contiguous array, as bytes at an aligned address."""
    placed = _Placed.of(table)
    out = _aligned_empty(array.nbytes)

    def write(offset: int, piece: np.ndarray) -> None:
        out[offset : offset + len(piece)] = piece

    for done in chunks.submit(array.reshape(-1).view(np.uint8), placed, write):
        done.result()
    return out


def _aligned_empty(n_bytes: int) -> np.ndarray:
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]


def _on_jax(leaf: jax.Array, table: ValueTable, donate: bool, chunks: _Chunks) -> jax.Array:
    if _compile.on_cpu():
        parts = _on_shards(leaf, table, chunks)
    else:
        run = _compile.compiled_table_of_array(donate=donate)
        parts = [run(shard.data, table.entries) for shard in leaf.addressable_shards]
    if donate:
        leaf.delete()
    if len(parts) == 1 and not leaf.committed:
        return parts[0]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def _on_shards(leaf: jax.Array, table: ValueTable, chunks: _Chunks) -> list[jax.Array]:
    """The shards' results on CPU devices; the memory they were computed in becomes that of the arrays."""
    computed: dict[str, np.ndarray] = {}  # replicas of a shard share one result
    parts = []
    for shard in leaf.addressable_shards:
        where = str(shard.index)
        if where not in computed:
            values = np.ascontiguousarray(np.asarray(shard.data))
            computed[where] = _flat(values, table, chunks).view(values.dtype).reshape(values.shape)
        parts.append(jax.device_put(computed[where], shard.data.sharding if leaf.committed else None))
    return parts


def apply_to_source(
    source: Source,
    specs: Sequence[TensorSpec],
    table: Callable[[TensorSpec], ValueTable],
    write: Write,
    *,
    budget_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Read tensors of a source block by block, look every value up, and hand the results to `write`, in any order.

    `write` is called in several threads at once, with a tensor, the place of the bytes in its results (in the order of
    the storage) and the bytes, which it must not keep. `table` is called once a tensor, before its first block.
    `progress(done, total)` counts bytes read. Raises what `Storage.window` raises, and whatever `write` raises.
    """
    length = window_bytes(budget_bytes)
    total, done = sum(s.nbytes for s in specs), 0
    groups = by_storage(specs)
    with ThreadPoolExecutor(1, thread_name_prefix="teleojax-read") as reader, _chunks() as chunks:
        begun: deque[_Begun] = deque()
        active: dict[str, _Placed] = {}

        def collect(most: int) -> None:
            """Wait for begun windows, oldest first, until at most so many are left."""
            nonlocal done
            while len(begun) > most:
                futures, n_bytes = begun.popleft()
                for future in futures:
                    future.result()
                done += n_bytes
                if progress is not None:
                    progress(done, total)

        try:
            for storage in (s for s in source.storages if s in groups):
                mine = groups[storage]
                with source.open(storage) as opened:
                    for loaded in load_windows(opened, plan_windows(mine, length), length, reader):
                        begun.append(_begin_window(loaded, mine, active, table, write, chunks))
                        collect(IN_FLIGHT)
                    collect(0)
        except BaseException:
            for future in (f for futures, _ in begun for f in futures):
                future.cancel()
            raise


def _begin_window(
    loaded: LoadedWindow,
    specs: Sequence[TensorSpec],
    active: dict[str, _Placed],
    table: Callable[[TensorSpec], ValueTable],
    write: Write,
    chunks: _Chunks,
) -> _Begun:
    """Begin all pieces of a window; `active` holds the tables of tensors that reach over its ends."""
    futures: list[Future[None]] = []
    for piece in loaded.window.pieces:
        spec = specs[piece.tensor]
        placed = active.pop(spec.name, None) or _Placed.of(table(spec))
        base = (piece.start - spec.offset) // placed.dtype.itemsize * placed.out_dtype.itemsize
        futures += chunks.submit(loaded.bytes_of(piece.start, piece.stop), placed, _from(base, partial(write, spec)))
        if piece.stop < spec.offset + spec.nbytes:
            active[spec.name] = placed
    return futures, sum(p.stop - p.start for p in loaded.window.pieces)


def _from(base: int, write: _WritePart) -> _WritePart:
    return lambda offset, piece: write(base + offset, piece)
