"""TensorStats: both statistics of one tensor, or of any set of tensors merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, reduce
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from teleojax._errors import UsageError
from teleojax.stats._bithist import BitHistogram, pattern_dtype, pattern_values
from teleojax.stats._careful import careful_moments
from teleojax.stats._cells import FEW_BITS, CellCounts
from teleojax.stats._logmoments import LogMoments, Partials

DENSE_KEYS = 1 << 18  # keys below this are merged in one table: every coarse histogram, and 2 MiB at most


class _PatternKinds(NamedTuple):
    """Which bit patterns of a type are finite and not zero (1, else 0), which of them negative; the others by index."""

    counted: np.ndarray
    negative: np.ndarray
    zeros: np.ndarray
    nonfinite: np.ndarray


@cache
def _pattern_kinds(dtype: str) -> _PatternKinds:
    values = pattern_values(dtype, np.arange(1 << (8 * pattern_dtype(dtype).itemsize)))
    finite = np.isfinite(values)
    counted = finite & (values != 0)
    negative = counted & (values < 0)
    return _PatternKinds(
        counted.astype(np.int64), negative.astype(np.int64), np.flatnonzero(values == 0), np.flatnonzero(~finite)
    )


def _total(a: np.ndarray) -> float:
    """The sum, and not by a product in BLAS: after one of ten thousand values its threads spin for a tenth of a second,
    on a core that the kernels want.
    """
    return float(np.add.reduce(a))


def _by_magnitude(dtype: str, counts: np.ndarray) -> np.ndarray:
    """Counts of bit patterns with both signs together, by key."""
    positive, negative = counts.reshape(2, -1)
    if dtype == "int8":  # two's complement: the negative half runs backwards, from −128 up
        return np.append(positive, 0) + np.append(0, negative[::-1])
    return positive + negative


@dataclass(frozen=True, slots=True)
class TensorStats:
    """The sufficient statistics that every later step works on; parameters are never read twice.

    `histogram` is None where only the moments were taken. `groups` are the statistics of contiguous stretches of one
    tensor, in storage order, where `measure(groups=...)` took them; else (). They have no groups of their own, their
    histograms the cells of the whole. Equal are statistics whose groups are equal too.
    `cells` are the rounding cells where they are not those of the histogram's type: of integers with several scales.
    """

    moments: LogMoments
    histogram: BitHistogram | None
    groups: tuple[TensorStats, ...] = ()
    cells: CellCounts | None = None

    @staticmethod
    def zero(dtype: str = "float32") -> TensorStats:
        """The statistics of nothing."""
        return TensorStats(LogMoments.zero(), BitHistogram.zero(dtype))

    @staticmethod
    def from_pattern_counts(dtype: str, counts: np.ndarray, scale: float = 1.0) -> TensorStats:
        """From counts of all bit patterns (sign included) of an 8- or 16-bit type: lossless, so exact moments too.

        `scale` is what a step of a quantised integer ("int8") stands for.
        """
        kinds = _pattern_kinds(dtype)
        return TensorStats.from_lossless(
            BitHistogram.from_dense(dtype, 0, _by_magnitude(dtype, counts * kinds.counted), scale),
            n_zero=int(counts[kinds.zeros].sum()),
            n_nonfinite=int(counts[kinds.nonfinite].sum()),
            n_negative=int(counts @ kinds.negative),
        )

    @staticmethod
    def from_lossless(histogram: BitHistogram, *, n_zero: int, n_nonfinite: int, n_negative: int) -> TensorStats:
        """From a histogram that holds every value, and the counts that it does not know: exact moments."""
        x, c = histogram.values(), histogram.counts.astype(np.float64)
        n = histogram.n
        y = np.log(x)
        mean = _total(c * y) / n if n else 0.0
        d = y - mean if len(x) > 1 else np.zeros_like(y)
        d2 = d * d
        moments = LogMoments(
            n=n,
            n_zero=n_zero,
            n_nonfinite=n_nonfinite,
            n_negative=n_negative,
            mean=mean,
            m2=_total(c * d2),
            m3=_total(c * (d2 * d)),
            m4=_total(c * (d2 * d2)),
            sum_x=_total(c * x),
            sum_x2=_total(c * (x * x)),
            min=float(x[0]) if n else np.inf,
            max=float(x[-1]) if n else 0.0,
        )
        return TensorStats(moments, histogram)

    @staticmethod
    def from_codes(codes: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | float = 0) -> TensorStats:
        """Of integers that stand for (code − zero_point) · scale, rounded to nearest; scale and zero_point broadcast.

        One scale a tensor, a channel or a group along an axis of its own. Moments and histogram are those of the values
        that the integers stand for, as float32; `cells` keeps what rounding left, for method "interval".
        Raises UsageError for scales that are not positive and finite, or do not broadcast.
        """
        cells = CellCounts.from_codes(codes, scale, zero_point)
        values = ((np.asarray(codes) - np.asarray(zero_point, np.float64)) * scale).astype(np.float32).reshape(-1)
        keys = np.abs(values[values != 0]).view(np.uint32).astype(np.int64)
        histogram = BitHistogram.from_keys("float32", 0, keys).resized(values.size)
        return TensorStats(careful_moments(values), histogram, cells=cells)

    @property
    def rounding_cells(self) -> CellCounts:
        """Cells in which the values before rounding lay. Raises TypeError without a histogram."""
        if self.cells is not None:
            return self.cells
        if self.histogram is None:
            raise TypeError("statistics without a histogram have no cells")
        return CellCounts.from_histogram(self.histogram, self.moments.n_zero)

    @staticmethod
    def from_groups(groups: Sequence[TensorStats]) -> TensorStats:
        """The statistics of a tensor from those of its stretches, in storage order: `merge(*groups)`, and `groups`.

        The stretches' histograms are brought to the resolution of the whole: no difference between the whole and what
        is left without one of them comes from the width of cells. Groups of the stretches are dropped. Of nothing: the
        statistics of nothing.
        """
        size = sum(g.moments.size for g in groups)
        histograms = (None if g.histogram is None else g.histogram.resized(size) for g in groups)
        resized = tuple(TensorStats(g.moments, h) for g, h in zip(groups, histograms, strict=True))
        return replace(merge(*resized), groups=resized)

    def without(self, group: int) -> TensorStats:
        """The delete-one statistics: those of the tensor without its stretch `group`, counted from 0.

        The merge of all other groups, itself without groups; its histogram has the cells of the whole tensor's. Where
        no other group holds a value that is finite and not zero, n = 0, and sigma and the shape are NaN.
        Raises UsageError where there is no such group, and for statistics that have no groups.
        """
        if not 0 <= group < len(self.groups):
            raise UsageError(
                "group",
                found=str(group) if self.groups else "statistics without groups",
                needed=f"0 to {len(self.groups) - 1}" if self.groups else "a tensor measured in groups",
                remedy="Count groups from 0." if self.groups else "Call measure with groups=20, on larger tensors.",
            )
        return merge(*self.groups[:group], *self.groups[group + 1 :])

    def merge(self, other: TensorStats) -> TensorStats:
        """The statistics of both sets of weights together; associative up to rounding, counts exactly. No groups."""
        return merge(self, other)


def merge(*stats: TensorStats) -> TensorStats:
    """Merge any number of TensorStats, in the order given. Without any: the statistics of nothing.

    The merged histogram is None when one of them is. The result has no groups: what is merged is no one tensor.
    """
    if not stats:
        return TensorStats.zero()
    columns = zip(*(_row(s.moments) for s in stats), strict=True)
    moments = Partials(*(np.asarray(c) for c in columns)).total()
    histograms = [s.histogram for s in stats if s.histogram is not None]
    if len(histograms) < len(stats):
        return TensorStats(moments, None)
    histogram = _merge_histograms(histograms, moments.size)
    kinds = {(h.dtype, h.scale) for h in histograms}
    if all(s.cells is None for s in stats) and (len(kinds) == 1 or min(h.bits for h in histograms) > FEW_BITS):
        return TensorStats(moments, histogram)
    # of types with few bits and others, or with unlike scales: the merged histogram's cells are not what rounding left
    return TensorStats(moments, histogram, cells=reduce(CellCounts.merge, (s.rounding_cells for s in stats)))


_row = attrgetter(*(f.name for f in fields(LogMoments)))


def _merge_histograms(histograms: Sequence[BitHistogram], size: int) -> BitHistogram:
    """What `BitHistogram.merge` makes of them one after another, at the resolution of `size` values: in one go."""
    if len({(h.dtype, h.scale) for h in histograms}) > 1:
        return reduce(BitHistogram.merge, histograms).resized(size)
    histograms = [h.resized(size) for h in histograms]
    drop = max(h.drop for h in histograms)
    histograms = [h.coarsen(drop) for h in histograms]
    dtype, scale = histograms[0].dtype, histograms[0].scale
    top = max((int(h.keys[-1]) + 1 for h in histograms if len(h.keys)), default=0)
    if top > DENSE_KEYS:
        keys, counts = (np.concatenate([getattr(h, name) for h in histograms]) for name in ("keys", "counts"))
        return BitHistogram.from_keys(dtype, drop, keys, counts, scale)
    table = np.zeros(top, np.int64)
    for h in histograms:
        table[h.keys] += h.counts  # in one histogram no key repeats
    return BitHistogram.from_dense(dtype, drop, table, scale)
