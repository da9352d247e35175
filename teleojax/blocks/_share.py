"""Which bytes each of several processes reads: a function of the tensors and the number of processes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from teleojax.blocks._plan import BLOCK_BYTES
from teleojax.sources import TensorSpec

CUT_BYTES = 2 * BLOCK_BYTES  # a tensor above this may be cut, at block boundaries; others stay with one process

Ranges = dict[str, tuple[int, int]]  # storage -> bytes [start, stop) of it


def shares(stored: Mapping[str, Sequence[TensorSpec]], n: int) -> list[Ranges]:
    """Cut storages, in their order, into `n` runs of nearly equal bytes of tensors.

    `stored` holds the tensors of each storage in order of their offset. The ranges of a storage follow each other and
    cover all its tensors; a run may be empty, where there are few tensors and none is large.
    """
    ends = [max(s.offset + s.nbytes for s in specs) for specs in stored.values()]
    bases = np.cumsum([0, *ends])  # storages laid end to end
    places, before = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    total = 0
    for base, specs in zip(bases, stored.values(), strict=False):
        mine, n_bytes = _cuts(specs)
        places.append(mine + base)
        before.append(n_bytes + total)
        total += sum(s.nbytes for s in specs)
    place, goal = np.concatenate(places), np.concatenate(before)
    nearest = [int(np.argmin(np.abs(goal - total * i // n))) for i in range(1, n)]
    cuts = np.maximum.accumulate([0, *place[nearest].tolist(), int(bases[-1])]).tolist()
    return [
        {
            storage: (max(0, a - base), min(end, b - base))
            for storage, base, end in zip(stored, bases.tolist(), ends, strict=False)
            if max(0, a - base) < min(end, b - base)
        }
        for a, b in pairwise(cuts)
    ]


def _cuts(specs: Sequence[TensorSpec]) -> tuple[np.ndarray, np.ndarray]:
    """Places in a storage where a run may end, rising, and the bytes of tensors that lie before each.

    Where a tensor begins, and at the block boundaries in large tensors, unless one that is not to be cut lies there.
    """
    starts = np.asarray([s.offset for s in specs], np.int64)
    stops = starts + np.asarray([s.nbytes for s in specs], np.int64)
    lines = [
        np.arange((a // BLOCK_BYTES + 1) * BLOCK_BYTES, b, BLOCK_BYTES)
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        if b - a > CUT_BYTES
    ]
    places = np.unique(np.concatenate([starts, *lines]))
    small = stops - starts <= CUT_BYTES
    small_starts, small_stops = starts[small], np.sort(stops[small])
    inside = np.searchsorted(small_starts, places) - np.searchsorted(small_stops, places, side="right")
    places = places[inside == 0]
    return places, _bytes_before(places, starts) - _bytes_before(places, np.sort(stops))


def _bytes_before(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Bytes before each place of stretches that begin at `starts` (rising) and never end."""
    begun = np.searchsorted(starts, places)
    return begun * places - np.append(0, np.cumsum(starts))[begun]
