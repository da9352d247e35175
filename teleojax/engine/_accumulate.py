"""Accumulators: the partial statistics of one tensor while its pieces go by, and what they become at its end.

Which one a tensor gets depends on its type and size alone, so any split of the work gives the same numbers:
up to EXACT_SIZE values are kept whole; 8- and 16-bit types are counted pattern by pattern, and everything follows from
the counts; larger float32 tensors sum rows in the fast kernel beside coarse counts; larger float64 ones go with care.
Without histograms, 16-bit types sum rows too, since that is faster than counting.

All take `add_values(bits, row)`: values as bit patterns that begin in grid row `row`. Whole rows come instead from the
device where it `counts` their `n_bits` leading bits (`add_counts`) or `sums` them (`add_rows`).
"""

from __future__ import annotations

import numpy as np

from teleojax.blocks import BLOCK_ROWS
from teleojax.sources import TensorSpec
from teleojax.stats import BitHistogram, Partials, TensorStats, careful_moments, careful_rows
from teleojax.stats._bithist import COARSE_DROP, EXACT_SIZE, float_dtype, magnitude_mask, pattern_dtype

SUMMED = ("float32", "bfloat16", "float16")  # the types whose rows the fast kernel sums


class WholeTensor:
    """A small tensor, kept until it is complete: every bit of it enters the histogram."""

    n_bits, sums = 0, False

    def __init__(self, spec: TensorSpec) -> None:
        self._dtype = spec.dtype
        self._pieces: list[np.ndarray] = []

    def add_values(self, bits: np.ndarray, row: int) -> None:  # noqa: ARG002
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

    sums = False

    def __init__(self, spec: TensorSpec) -> None:
        self._dtype, self._scale = spec.dtype, spec.scale
        self.n_bits = 8 * pattern_dtype(spec.dtype).itemsize
        self._counts = np.zeros(1 << self.n_bits, np.int64)

    def add_values(self, bits: np.ndarray, row: int) -> None:  # noqa: ARG002
        """Values of the tensor, as bit patterns."""
        np.add.at(self._counts, bits, 1)

    def add_counts(self, counts: np.ndarray) -> None:
        """Counts of the leading `n_bits` bits of some whole rows."""
        self._counts += counts

    def finish(self) -> TensorStats:
        """The statistics of all that was added."""
        return TensorStats.from_pattern_counts(self._dtype, self._counts, self._scale)


class Rows:
    """A large tensor: row partials, merged block by block; no counts."""

    n_bits = 0

    def __init__(self, spec: TensorSpec) -> None:
        self._dtype = spec.dtype
        self.sums = spec.dtype in SUMMED
        self._rows: list[np.ndarray] = []
        self._partials: list[Partials] = []

    def add_values(self, bits: np.ndarray, row: int) -> None:
        """Values of the tensor, as bit patterns."""
        self.add_careful_row(bits, row)

    def add_careful_row(self, bits: np.ndarray, row: int) -> None:
        """The moments alone of values in grid row `row`, in float64 on the host."""
        self.add_rows(np.asarray([row]), careful_rows(bits.view(float_dtype(self._dtype)).reshape(1, -1)))

    def add_rows(self, rows: np.ndarray, partials: Partials) -> None:
        """Moments of whole rows, with the rows' numbers on the grid."""
        self._rows.append(rows)
        self._partials.append(partials)

    def finish(self) -> TensorStats:
        """The statistics of all that was added."""
        rows = np.concatenate(self._rows)
        order = np.argsort(rows, kind="stable")  # fragments of one row were added in rising order
        partials, blocks = Partials.concatenate(self._partials).take(order), rows[order] // BLOCK_ROWS
        return TensorStats(partials.combine(np.flatnonzero(np.diff(blocks, prepend=-1))).total(), None)


class RowsAndCounts(Rows):
    """A large float32 or float64 tensor: row partials beside counts of the leading bits."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self._drop = COARSE_DROP[spec.dtype]
        width = 8 * pattern_dtype(spec.dtype).itemsize
        self.n_bits = width - self._drop if self.sums else 0
        self._counts = np.zeros(1 << (width - self._drop), np.int64)

    def add_values(self, bits: np.ndarray, row: int) -> None:
        """Values of the tensor, as bit patterns."""
        np.add.at(self._counts, bits >> bits.dtype.type(self._drop), 1)
        self.add_careful_row(bits, row)

    def add_counts(self, counts: np.ndarray) -> None:
        """Counts of the leading `n_bits` bits of some whole rows."""
        self._counts += counts

    def finish(self) -> TensorStats:
        """The statistics of all that was added."""
        moments = super().finish().moments
        counts = self._counts.reshape(2, -1).sum(axis=0)  # both signs
        counts[0] -= moments.n_zero
        counts[self._first_nonfinite :] = 0
        return TensorStats(moments, BitHistogram.from_dense(self._dtype, self._drop, counts))

    @property
    def _first_nonfinite(self) -> int:
        infinity = np.asarray(np.inf, self._dtype).view(pattern_dtype(self._dtype))
        return int(infinity) >> self._drop


Accumulator = WholeTensor | PatternCounts | Rows | RowsAndCounts


def accumulator(spec: TensorSpec, *, histogram: bool) -> Accumulator:
    """The accumulator for a tensor of this type and size."""
    if spec.size <= EXACT_SIZE and spec.dtype in COARSE_DROP:
        return WholeTensor(spec)
    if histogram or spec.dtype not in (*SUMMED, "float64"):
        return RowsAndCounts(spec) if spec.dtype in COARSE_DROP else PatternCounts(spec)
    return Rows(spec)
