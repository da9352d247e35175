"""What one process finds in its shards of an array, to be merged with what the others find: plain arrays throughout."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Int, UInt8

from teleojax.stats import LogMoments, Partials


def _numbers() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ShardState:
    """What the shards that one process answers for add to the statistics of an array; plain arrays throughout.

    `partials` are of whole blocks and, where other processes hold the rest of a block, of single rows; each is of part
    `part` (of 0 to G − 1 groups), its first value at `position`. `count` values of part `counted_part` have the leading
    bits `key`, the sign among them. Of an array of at most EXACT_SIZE values there is nothing but `bits`, the bytes of
    shards number `shard` one after another.
    """

    part: Int[np.ndarray, " k"] = field(default_factory=_numbers)
    position: Int[np.ndarray, " k"] = field(default_factory=_numbers)
    partials: Partials = field(default_factory=lambda: LogMoments.zero().as_partials().take(_numbers()))
    counted_part: Int[np.ndarray, " m"] = field(default_factory=_numbers)
    key: Int[np.ndarray, " m"] = field(default_factory=_numbers)
    count: Int[np.ndarray, " m"] = field(default_factory=_numbers)
    shard: Int[np.ndarray, " s"] = field(default_factory=_numbers)
    bits: UInt8[np.ndarray, " b"] = field(default_factory=lambda: np.empty(0, np.uint8))

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as one-dimensional arrays by name, to be sent or stored."""
        own = {f.name: getattr(self, f.name) for f in fields(ShardState) if f.name != "partials"}
        return own | {f"partials.{f.name}": getattr(self.partials, f.name) for f in fields(Partials)}

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> ShardState:
        """The state that `arrays` was made of."""
        partials = Partials(*(arrays[f"partials.{f.name}"] for f in fields(Partials)))
        own = {f.name: arrays[f.name] for f in fields(ShardState) if f.name != "partials"}
        return ShardState(**own, partials=partials)

    def to_bytes(self) -> bytes:
        """All of it in one message."""
        archive = io.BytesIO()
        np.savez(archive, **self.arrays())  # pyright: ignore[reportArgumentType]
        return archive.getvalue()

    @staticmethod
    def of_bytes(message: bytes) -> ShardState:
        """The state that `to_bytes` was called on."""
        with np.load(io.BytesIO(message), allow_pickle=False) as arrays:
            return ShardState.of(dict(arrays))

    @staticmethod
    def concatenate(states: Sequence[ShardState]) -> ShardState:
        """One state after another."""
        whole = [state.arrays() for state in (ShardState(), *states)]
        return ShardState.of({name: np.concatenate([arrays[name] for arrays in whole]) for name in whole[0]})
