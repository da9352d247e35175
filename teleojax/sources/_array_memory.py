"""The memory of JAX arrays as the host sees it: whether it can be read in place, and sharded arrays read in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

HOST_KINDS = frozenset({"pinned_host", "unpinned_host"})  # of memory, as JAX names it

Corner = tuple[tuple[int, int], ...]  # of each axis where a part of an array begins and ends


def on_host(array: Any) -> bool:
    """Whether the host reads a JAX array's memory in place: a CPU's, or the host's own that serves a device."""
    cpu = next(iter(array.sharding.device_set)).platform == "cpu"
    return cpu or array.sharding.memory_kind in HOST_KINDS


def host_bits(array: Any) -> np.ndarray:
    """The bit patterns of a JAX array of one device, in its shape; a view where the host reads its memory."""
    values = np.ascontiguousarray(np.asarray(array)).reshape(array.shape)
    return values.view(f"u{values.dtype.itemsize}")


def corner_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> Corner:
    """Where a shard with that index lies in an array of that shape."""
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def boxes(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Corner]:
    """Values [start, stop) of an array of that shape in C order as boxes: each contiguous, one after the other."""
    inner = math.prod(shape[1:])
    while start < stop:
        row, rest = divmod(start, inner)
        end = stop // inner
        if rest == 0 and row < end:
            yield ((row, end), *((0, n) for n in shape[1:])) if shape else ()
            start = max(end * inner, 1)
        else:
            last = min(stop - row * inner, inner)
            for box in boxes(rest, last, shape[1:]):
                yield (row, row + 1), *box
            start = row * inner + last


class ShardedMemory:
    """A sharded JAX array in the host's memory, its windows put together in the array's own order from the shards."""

    mapped = False

    def __init__(self, array: Any) -> None:
        found = {corner_of(s.index, array.shape): s.data for s in array.addressable_shards}
        self._shards = [(corner, host_bits(data)) for corner, data in found.items()]
        self._shape, self._dtype = array.shape, np.dtype(f"u{array.dtype.itemsize}")
        self.size: int | None = array.size * array.dtype.itemsize
        self.position = array.size * array.dtype.itemsize

    def __enter__(self) -> ShardedMemory:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: the bytes are there."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop), of whole values, copied to `buffer` or to memory of their own."""
        out = np.empty(stop - start, np.uint8) if buffer is None else buffer[: stop - start]
        values = out.view(self._dtype)
        at = 0
        for box in boxes(start // self._dtype.itemsize, stop // self._dtype.itemsize, self._shape):
            extent = tuple(b - a for a, b in box)
            into = values[at : at + math.prod(extent)].reshape(extent)
            for corner, shard in self._shards:
                common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, corner, strict=True)]
                if all(a < b for a, b in common):
                    target = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(common, box, strict=True))
                    origin = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(common, corner, strict=True))
                    np.copyto(into[target], shard[origin])
            at += into.size
        return out
