"""Groups: a tensor measured as contiguous stretches, each with statistics of its own.

The engine sees a stretch as a tensor. Where the stretches end and which accumulators they get follow from the tensor's
type and size and the number of groups alone, so any split of the work gives the same numbers. A tensor of at most
EXACT_SIZE values is kept whole and cut at its end. Tensors and stretches of at most SHORT values are counted from the
values themselves: the table of every possible count that serves large ones would cost more time and memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import numpy as np

from teleojax.blocks import ROW
from teleojax.blocks._plan import clip
from teleojax.engine._accumulate import (
    SUMMED,
    Accumulator,
    PatternCounts,
    Rows,
    RowsAndCounts,
    WholeTensor,
    accumulator,
)
from teleojax.sources import TensorSpec
from teleojax.stats import BitHistogram, LogMoments, Partials, TensorStats
from teleojax.stats._bithist import COARSE_DROP, EXACT_SIZE, float_dtype, magnitude_mask, pattern_dtype, pattern_values

GRID_ROWS = 32  # rows a stretch from which on it begins and ends at rows: lengths differ by at most one in so many
SHORT = 16 * ROW  # values up to which counting them by themselves is quicker than filling and emptying a dense table


@dataclass(frozen=True, slots=True)
class Part:
    """What the engine accumulates as one: a tensor, or one stretch of it, with the tensor's name in either case.

    The tensor comes in `n_parts` of these and this is number `number`. `n_groups` is how many stretches this one is cut
    into at its end.
    """

    spec: TensorSpec
    number: int = 0
    n_parts: int = 1
    n_groups: int = 1

    def bytes_in(self, span: tuple[int, int | None]) -> tuple[int, int]:
        """First and last of its bytes whose values begin in a span of the storage; none if the last is not above."""
        return clip(self.spec, *span)

    def accumulator(self, *, histogram: bool) -> Accumulator:
        """The accumulator for it, by type and size alone."""
        spec = self.spec
        if self.n_groups > 1:
            return CutAtEnd(spec, self.n_groups)
        if spec.size > SHORT or (self.n_parts == 1 and spec.size <= EXACT_SIZE):
            return accumulator(spec, histogram=histogram)
        if not histogram and spec.dtype in SUMMED | {"float64"}:
            return Rows()
        return ShortRows(spec) if spec.dtype in COARSE_DROP else ShortPatterns(spec)


def group_ends(size: int, groups: int) -> list[int]:
    """Where each of `groups` contiguous stretches of `size` values ends; size ≥ groups.

    As equal as can be; but multiples of ROW from the start, each the nearest to an equal share, where the stretches are
    GRID_ROWS rows long or longer: then most rows lie in one stretch. A function of the two numbers alone.
    """
    grid = ROW if size >= groups * GRID_ROWS * ROW else 1
    return [(2 * i * size // (grid * groups) + 1) // 2 * grid for i in range(1, groups)] + [size]


def parts_of(specs: Iterable[TensorSpec], groups: int | None) -> Iterator[Part]:
    """The parts of each tensor, in the order of the tensors and of their values in the storage.

    A tensor of fewer than 2 · `groups` values, and every tensor without `groups`, stays whole.
    """
    for spec in specs:
        if groups is None or spec.size < 2 * groups:
            yield Part(spec)
        elif spec.size <= EXACT_SIZE:
            yield Part(spec, n_groups=groups)
        else:
            for number, (start, stop) in enumerate(pairwise([0, *group_ends(spec.size, groups)])):
                yield Part(_stretch(spec, start, stop), number, groups)


def _stretch(spec: TensorSpec, start: int, stop: int) -> TensorSpec:
    """Values [start, stop) of a tensor, counted as they lie in the storage."""
    itemsize = spec.nbytes // spec.size
    offset, nbytes = spec.offset + start * itemsize, (stop - start) * itemsize
    return replace(spec, shape=(stop - start,), offset=offset, nbytes=nbytes, order="C")


class CutAtEnd(WholeTensor):
    """A small tensor of any type, kept until it is complete, then cut into groups: all of them at once, in float64."""

    def __init__(self, spec: TensorSpec, groups: int) -> None:
        super().__init__(spec)
        self._scale, self._ends = spec.scale, group_ends(spec.size, groups)

    def finish(self) -> TensorStats:
        """The statistics of all that was added, and of its groups."""
        bits = np.concatenate(self._pieces)
        values = pattern_values(self._dtype, bits) * self._scale
        counted = np.isfinite(values) & (values != 0)
        moments = self._moments(values, counted)
        histograms = self._histograms(bits, counted)
        return TensorStats.from_groups([TensorStats(m, h) for m, h in zip(moments, histograms, strict=True)])

    def _moments(self, values: np.ndarray, counted: np.ndarray) -> list[LogMoments]:
        """Every value is a set of one, with no spread; the exact merge does the rest."""
        x, none = np.where(counted, np.abs(values), 0.0), np.zeros(len(values))
        with np.errstate(over="ignore"):  # squares of float64 values past 1e154 are inf, as in any sum of them
            squares = x * x
        singles = Partials(
            n=counted.astype(np.int64),
            n_zero=(values == 0).astype(np.int64),
            n_nonfinite=(~np.isfinite(values)).astype(np.int64),
            n_negative=(counted & (values < 0)).astype(np.int64),
            mean=np.log(np.where(counted, x, 1.0)),
            m2=none,
            m3=none,
            m4=none,
            sum_x=x,
            sum_x2=squares,
            min=np.where(counted, x, np.inf),
            max=x,
        )
        return singles.combine(np.asarray([0, *self._ends[:-1]])).each()

    def _histograms(self, bits: np.ndarray, counted: np.ndarray) -> list[BitHistogram]:
        if self._dtype == "int8":
            keys = np.abs(bits.view(np.int8).astype(np.int64))
        else:
            keys = bits.astype(np.int64) & magnitude_mask(self._dtype)
        group = np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0))
        order = np.lexsort((keys[counted], group[counted]))
        keys, group = keys[counted][order], group[counted][order]
        first = np.flatnonzero((np.diff(keys, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
        counts = np.diff(first, append=len(keys))
        keys, cuts = keys[first], np.searchsorted(group[first], np.arange(len(self._ends) + 1)).tolist()
        return [BitHistogram(self._dtype, 0, keys[a:b], counts[a:b], self._scale) for a, b in pairwise(cuts)]


class ShortPatterns(WholeTensor):
    """A short 8- or 16-bit tensor or stretch: its values are kept, and counts of their patterns are all there is."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self._scale = spec.scale

    def finish(self) -> TensorStats:
        """The statistics of all that was added."""
        bits = np.concatenate(self._pieces)
        if bits.itemsize == 1:
            return TensorStats.from_pattern_counts(self._dtype, np.bincount(bits, minlength=256), self._scale)
        magnitude = bits & bits.dtype.type(magnitude_mask(self._dtype))
        finite = magnitude < np.asarray(np.inf, float_dtype(self._dtype)).view(bits.dtype)
        return TensorStats.from_lossless(
            _short_histogram(self._dtype, 0, bits),
            n_zero=len(bits) - int(np.count_nonzero(magnitude)),
            n_nonfinite=len(bits) - int(np.count_nonzero(finite)),
            n_negative=int(np.count_nonzero(finite & (bits > magnitude) & (magnitude != 0))),
        )


class ShortRows(Rows):
    """A short float32 or float64 tensor or stretch: moments of its blocks beside counts of its pieces."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self._dtype = spec.dtype
        self._histograms: list[BitHistogram] = []

    def add_piece(self, piece: np.ndarray) -> None:
        """All bytes of the stretch that a window holds."""
        bits = piece.view(pattern_dtype(self._dtype))
        self._histograms.append(_short_histogram(self._dtype, COARSE_DROP[self._dtype], bits))

    def finish(self, moments: LogMoments) -> TensorStats:
        """The statistics of all that was added, `moments` being the partials merged."""
        return TensorStats(moments, reduce(BitHistogram.merge, self._histograms))


def _short_histogram(dtype: str, drop: int, bits: np.ndarray) -> BitHistogram:
    """Counts of the finite non-zero values of an IEEE type, in a table from the lowest key that occurs to the highest.

    `drop` low bits of the magnitude are dropped.
    """
    magnitude = bits & bits.dtype.type(magnitude_mask(dtype))
    keys = magnitude >> bits.dtype.type(drop)
    lowest = int(keys.min())
    counts = np.bincount((keys - bits.dtype.type(lowest)).astype(np.intp))
    if lowest == 0:
        counts[0] -= len(bits) - np.count_nonzero(magnitude)
    infinity = int(np.asarray(np.inf, float_dtype(dtype)).view(bits.dtype)) >> drop
    counts[max(0, infinity - lowest) :] = 0
    found = np.flatnonzero(counts)
    return BitHistogram(dtype, drop, found + lowest, counts[found])


def held_bytes(spec: TensorSpec, held_by: Accumulator) -> int:
    """Memory that the accumulator of a tensor or stretch takes until that is complete.

    Its counts or values, and the rows that what is less than a row at either end is padded to.
    """
    itemsize = pattern_dtype(spec.dtype).itemsize
    ends = 2 * ROW * itemsize if isinstance(held_by, Rows) else 0
    if isinstance(held_by, PatternCounts | RowsAndCounts):
        return ends + (8 << (8 * itemsize - COARSE_DROP.get(spec.dtype, 0)))
    return ends + (spec.nbytes if isinstance(held_by, WholeTensor) else 0)
