"""TensorStats: both statistics of one tensor, or of any set of tensors merged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce
from typing import NamedTuple

import numpy as np

from teleojax.stats._bithist import BitHistogram, pattern_dtype, pattern_values
from teleojax.stats._logmoments import LogMoments, Partials


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


def _by_magnitude(dtype: str, counts: np.ndarray) -> np.ndarray:
    """Counts of bit patterns with both signs together, by key."""
    positive, negative = counts.reshape(2, -1)
    if dtype == "int8":  # two's complement: the negative half runs backwards, from −128 up
        return np.append(positive, 0) + np.append(0, negative[::-1])
    return positive + negative


@dataclass(frozen=True, slots=True)
class TensorStats:
    """The sufficient statistics that every later step works on; parameters are never read twice.

    `histogram` is None where only the moments were taken.
    """

    moments: LogMoments
    histogram: BitHistogram | None

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
        histogram = BitHistogram.from_dense(dtype, 0, _by_magnitude(dtype, counts * kinds.counted), scale)
        x, c = histogram.values(), histogram.counts.astype(np.float64)
        n = histogram.n
        y = np.log(x)
        mean = float(y @ c / n) if n else 0.0
        d = y - mean if len(x) > 1 else np.zeros_like(y)
        d2 = d * d
        moments = LogMoments(
            n=n,
            n_zero=int(counts[kinds.zeros].sum()),
            n_nonfinite=int(counts[kinds.nonfinite].sum()),
            n_negative=int(counts @ kinds.negative),
            mean=mean,
            m2=float(c @ d2),
            m3=float(c @ (d2 * d)),
            m4=float(c @ (d2 * d2)),
            sum_x=float(c @ x),
            sum_x2=float(c @ (x * x)),
            min=float(x[0]) if n else np.inf,
            max=float(x[-1]) if n else 0.0,
        )
        return TensorStats(moments, histogram)

    def merge(self, other: TensorStats) -> TensorStats:
        """The statistics of both sets of weights together; associative up to rounding, counts exactly."""
        return merge(self, other)


def merge(*stats: TensorStats) -> TensorStats:
    """Merge any number of TensorStats, in the order given. Without any: the statistics of nothing.

    The merged histogram is None when one of them is.
    """
    if not stats:
        return TensorStats.zero()
    moments = Partials.concatenate([s.moments.as_partials() for s in stats]).total()
    histograms = [s.histogram for s in stats if s.histogram is not None]
    if len(histograms) < len(stats):
        return TensorStats(moments, None)
    return TensorStats(moments, reduce(BitHistogram.merge, histograms).resized(moments.size))
