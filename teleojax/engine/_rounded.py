"""The rounding cells of tensors whose blocks have scales of their own: gathered after the pass, from the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce

import numpy as np

from teleojax._errors import InputError
from teleojax.engine._pass import cores
from teleojax.sources import Source, TensorSpec
from teleojax.sources._index import ROUNDED_BYTES, Rounded, Uneven, by_storage
from teleojax.stats import CellCounts, RoundedCells, TensorStats

PIECE_BYTES = 1 << 18  # of float32 values, looked at at a time: they and what is made of them stay in cache


def with_cells(
    source: Source, specs: Mapping[str, TensorSpec], stats: Mapping[str, TensorStats]
) -> dict[str, TensorStats]:
    """Those statistics whose storage knows to which levels its values were rounded, with cells, and their groups too.

    A tensor that cannot be read a second time stays as it is. The cells do not depend on the number of threads.
    """
    stored = by_storage(s for name, s in specs.items() if s.stored_as is not None and name in stats)

    def of(storage: str) -> dict[str, TensorStats]:
        try:
            with source.open(storage) as opened:
                mine = stored[storage] if isinstance(opened, Rounded) else []
                return {s.name: _with_cells(stats[s.name], opened, s) for s in mine}  # pyright: ignore[reportArgumentType]
        except InputError:
            return {}

    with ThreadPoolExecutor(cores(), thread_name_prefix="teleojax-cells") as threads:
        return {name: found for each in threads.map(of, stored) for name, found in each.items()}


def _with_cells(stats: TensorStats, storage: Rounded, spec: TensorSpec) -> TensorStats:
    start, each = spec.offset, []
    for part in stats.groups or (stats,):
        stop = start + 4 * part.moments.size
        each.append(_gathered(storage, spec, start, stop))
        start = stop
    groups = tuple(replace(g, cells=_cells(sums)) for g, sums in zip(stats.groups, each, strict=False))
    return replace(stats, groups=groups, cells=_cells(reduce(RoundedCells.merge, each)))


def _cells(sums: RoundedCells) -> CellCounts | None:
    return sums.cells() if len(sums.keys) else None


def _gathered(storage: Rounded, spec: TensorSpec, start: int, stop: int) -> RoundedCells:
    """Of the values in storage bytes [start, stop) of a tensor."""
    sums, at, origin = RoundedCells(), start, spec.offset
    while at < stop:
        end = min(stop, at + PIECE_BYTES - (at - origin) % PIECE_BYTES)
        first = at - (at - origin) % ROUNDED_BYTES  # of whole blocks
        last = min(end + (origin - end) % ROUNDED_BYTES, origin + spec.nbytes)
        spacing = storage.spacing(first, last)
        if spacing is None:
            return sums
        if (first, last) != (at, end):
            each = np.repeat(spacing, (last - first) // (4 * len(spacing)))
            spacing = each[(at - first) // 4 : (end - first) // 4]
        middles = storage.middles(at, end) if isinstance(storage, Uneven) else None
        if middles is None:
            middles = storage.window(at, end, np.empty(end - at, np.uint8)).view(np.float32)
        sums.add(middles, spacing)
        at = end
    return sums
