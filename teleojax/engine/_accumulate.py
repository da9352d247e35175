"""Accumulators: the partial statistics of one tensor while its pieces go by, and what they become at its end.

Which one a tensor gets depends on its type and size alone, so any split of the work gives the same numbers:
up to EXACT_SIZE values are kept whole; 8- and 16-bit types are counted pattern by pattern, and everything follows from
the counts; larger float32 tensors sum rows in the fast kernel beside coarse counts; larger float64 ones go with care.
Without histograms, 8- and 16-bit floats sum rows too; of 16 bits that is faster than counting.

Whole rows are counted on the device where `n_bits` is not 0 (`add_counts` of the leading bits); whatever else the
tensor holds comes as bit patterns (`add_values`). An accumulator that has `partials` gets, besides, the moments of all
its rows and fragments, merged block by block, in rising order.

Those of large tensors have a `state`, plain arrays, for a tensor that several processes read: the states, absorbed in
the order of the bytes, make the accumulator that one process would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from teleojax.kernels import LAYOUTS
from teleojax.sources import TensorSpec
from teleojax.stats import BitHistogram, LogMoments, Partials, TensorStats, careful_moments
from teleojax.stats._bithist import COARSE_DROP, EXACT_SIZE, float_dtype, magnitude_mask, pattern_dtype

SUMMED = frozenset({"float32", "bfloat16", *LAYOUTS})  # the types whose rows the fast kernel sums

State = dict[str, np.ndarray]  # of an accumulator


class WholeTensor:
    """A small tensor, kept until it is complete: every bit of it enters the histogram."""

    n_bits = 0

    def __init__(self, spec: TensorSpec) -> None:
        self._dtype = spec.dtype
        self._pieces: list[np.ndarray] = []

    def add_values(self, bits: np.ndarray) -> None:
        """Values of the tensor, as bit patterns."""
        self._pieces.append(bits.copy())

    def finish(self) -> TensorStats:
        """The statistics of all that was added."""
        bits = np.concatenate(self._pieces)
        values = bits.view(float_dtype(self._dtype))
        magnitude = bits[np.isfinite(values) & (values != 0)] & bits.dtype.type(magnitude_mask(self._dtype))
        return TensorStats(careful_moments(values), BitHistogram.from_keys(self._dtype, 0, magnitude))


class PatternCounts:
    """An 8- or 16-bit tensor: counts of every bit pattern are all there is to know."""

    def __init__(self, spec: TensorSpec) -> None:
        self._dtype, self._scale = spec.dtype, spec.scale
        self.n_bits = 8 * pattern_dtype(spec.dtype).itemsize
        self._counts = np.zeros(1 << self.n_bits, np.int64)

    def add_values(self, bits: np.ndarray) -> None:
        """Values of the tensor, as bit patterns."""
        np.add.at(self._counts, bits, 1)

    def add_counts(self, counts: np.ndarray) -> None:
        """Counts of the leading `n_bits` bits of some whole rows."""
        self._counts += counts

    def state(self) -> State:
        """All that was added."""
        return {"counts": self._counts}

    def absorb(self, state: State) -> None:
        """Add what another has, of later bytes."""
        self._counts += state["counts"]

    def finish(self) -> TensorStats:
        """The statistics of all that was added."""
        return TensorStats.from_pattern_counts(self._dtype, self._counts, self._scale)


class Rows:
    """A large tensor by the moments of its blocks alone; no counts."""

    n_bits = 0

    def __init__(self) -> None:
        self.partials: list[Partials] = []

    def add_values(self, bits: np.ndarray) -> None:
        """Nothing: their moments come among the partials."""

    def state(self) -> State:
        """All that was added."""
        merged = Partials.concatenate(self.partials)
        return {f.name: getattr(merged, f.name) for f in fields(Partials)}

    def absorb(self, state: State) -> None:
        """Add what another has, of later bytes."""
        self.partials.append(Partials(*(state[f.name] for f in fields(Partials))))

    def finish(self, moments: LogMoments) -> TensorStats:
        """The statistics of all that was added, `moments` being the partials merged."""
        return TensorStats(moments, None)


class RowsAndCounts(Rows):
    """A large float32 or float64 tensor: moments of its blocks beside counts of the leading bits."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self._dtype = spec.dtype
        self._drop = COARSE_DROP[spec.dtype]
        width = 8 * pattern_dtype(spec.dtype).itemsize
        self.n_bits = width - self._drop if spec.dtype in SUMMED else 0
        self._counts = np.zeros(1 << (width - self._drop), np.int64)

    def add_values(self, bits: np.ndarray) -> None:
        """Values of the tensor, as bit patterns."""
        np.add.at(self._counts, bits >> bits.dtype.type(self._drop), 1)

    def add_counts(self, counts: np.ndarray) -> None:
        """Counts of the leading `n_bits` bits of some whole rows."""
        self._counts += counts

    def state(self) -> State:
        """All that was added."""
        return {**super().state(), "counts": self._counts}

    def absorb(self, state: State) -> None:
        """Add what another has, of later bytes."""
        super().absorb(state)
        self._counts += state["counts"]

    def finish(self, moments: LogMoments) -> TensorStats:
        """The statistics of all that was added, `moments` being the partials merged."""
        counts = self._counts.reshape(2, -1).sum(axis=0)  # both signs
        counts[0] -= moments.n_zero
        infinity = np.asarray(np.inf, self._dtype).view(pattern_dtype(self._dtype))
        counts[int(infinity) >> self._drop :] = 0
        return TensorStats(moments, BitHistogram.from_dense(self._dtype, self._drop, counts))


Accumulator = WholeTensor | PatternCounts | Rows | RowsAndCounts


def accumulator(spec: TensorSpec, *, histogram: bool) -> Accumulator:
    """The accumulator for a tensor of this type and size."""
    if spec.size <= EXACT_SIZE and spec.dtype in COARSE_DROP:
        return WholeTensor(spec)
    if histogram or spec.dtype not in SUMMED | {"float64"}:
        return RowsAndCounts(spec) if spec.dtype in COARSE_DROP else PatternCounts(spec)
    return Rows()


def finish_all(accumulators: Mapping[str, Accumulator]) -> dict[str, TensorStats]:
    """The statistics of complete tensors; the partials of all of them are merged in one go."""
    by_rows = {name: a for name, a in accumulators.items() if isinstance(a, Rows)}
    merged: dict[str, LogMoments] = {}
    if by_rows:
        lengths = [sum(map(len, a.partials)) for a in by_rows.values()]
        everything = Partials.concatenate([p for a in by_rows.values() for p in a.partials])
        moments = everything.combine(np.cumsum([0, *lengths[:-1]])).each()
        merged = dict(zip(by_rows, moments, strict=True))
    return {
        name: a.finish(merged[name]) if isinstance(a, Rows) else a.finish()  # pyright: ignore[reportCallIssue]
        for name, a in accumulators.items()
    }
