"""The distinct shards of an array, their order, and how their values are numbered: a function of the sharding alone.

Shards come in the order of their global positions, the first axis first; replicas count once. Each shard is cut into
rows of ROW values in its own order, the last of which may be short, and the rows of all shards are numbered one after
another. Every process that knows the sharding finds the same numbers. Where shards are contiguous stretches of the
array that begin at whole rows, the rows are those of the array in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from teleojax.blocks import ROW
from teleojax.engine._groups import Part, parts_of
from teleojax.sources import TensorSpec
from teleojax.sources._array_memory import Corner, corner_of


@dataclass(frozen=True, slots=True)
class Place:
    """One distinct shard: where it lies in the array, and how many values and rows the shards before it have."""

    corner: Corner
    values_before: int
    rows_before: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shard's shape."""
        return tuple(stop - start for start, stop in self.corner)

    @property
    def size(self) -> int:
        """Its number of values."""
        return math.prod(self.shape)

    @property
    def index(self) -> tuple[slice, ...]:
        """The shard in the array: array[index]."""
        return tuple(slice(start, stop) for start, stop in self.corner)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The values of one part of the array that lie in one shard, cut at the shard's rows.

    Entry i holds the shard's values [starts[i], stops[i]), in its own order: a whole row or a fragment of one.
    `positions` number the entries: where they would begin if every shard before were padded to whole rows.
    """

    place: int
    starts: np.ndarray
    stops: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What is to be measured of an array: the shards there are, the parts they are measured as, and what is counted."""

    spec: TensorSpec
    places: tuple[Place, ...]
    parts: tuple[Part, ...]
    histogram: bool

    @staticmethod
    def of(spec: TensorSpec, sharding: jax.sharding.Sharding, *, groups: int | None, histogram: bool) -> ShardPlan:
        """The plan for an array of that type, shape and sharding."""
        return ShardPlan(spec, places_of(spec.shape, sharding), tuple(parts_of([spec], groups)), histogram)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return self.spec.nbytes // self.spec.size

    def runs(self, part: int) -> list[Run]:
        """The runs of a part, a stretch of the values in the order of the shards, in that order."""
        spec = self.parts[part].spec
        return _runs(spec.offset // self.itemsize, spec.size, self.places)


def places_of(shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> tuple[Place, ...]:
    """The distinct shards in the order of their global positions, those of other processes too."""
    places: list[Place] = []
    values = rows = 0
    for corner in sorted({corner_of(index or (), shape) for index in sharding.devices_indices_map(shape).values()}):
        place = Place(corner, values, rows)
        places.append(place)
        values, rows = values + place.size, rows - (-place.size // ROW)
    return tuple(places)


def in_order(shape: tuple[int, ...], places: Sequence[Place]) -> bool:
    """Whether the shards are contiguous stretches of the array that begin at its whole rows."""
    for place in places:
        long = next((axis for axis, n in enumerate(place.shape) if n > 1), len(shape))
        if place.shape[long + 1 :] != shape[long + 1 :] or place.values_before % ROW:
            return False
    return True


def _runs(first: int, size: int, places: Sequence[Place]) -> list[Run]:
    runs = []
    for number, place in enumerate(places):
        start = max(0, first - place.values_before)
        stop = min(place.size, first + size - place.values_before)
        if start < stop:
            starts = np.append(start, np.arange((start // ROW + 1) * ROW, stop, ROW))
            positions = starts + place.rows_before * ROW
            runs.append(Run(number, starts, np.append(starts[1:], stop), positions))
    return runs
