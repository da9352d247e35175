"""TensorStats: both statistics of one tensor, or of any set of tensors merged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from teleojax.stats._bithist import BitHistogram, magnitude_mask, pattern_values
from teleojax.stats._logmoments import LogMoments, Partials


@dataclass(frozen=True, slots=True)
class TensorStats:
    """The sufficient statistics that every later step works on; parameters are never read twice."""

    moments: LogMoments
    histogram: BitHistogram

    @staticmethod
    def zero(dtype: str = "float32") -> TensorStats:
        """The statistics of nothing."""
        return TensorStats(LogMoments.zero(), BitHistogram.zero(dtype))

    @staticmethod
    def from_pattern_counts(dtype: str, counts: np.ndarray) -> TensorStats:
        """From counts of all bit patterns (sign included) of an 8- or 16-bit type: lossless, so exact moments too."""
        values = pattern_values(dtype, np.arange(len(counts)))
        finite = np.isfinite(values)
        counted = np.where(finite & (values != 0), counts, 0)
        keys = np.arange(len(counts)) & magnitude_mask(dtype)
        by_magnitude = np.zeros(magnitude_mask(dtype) + 1, np.int64)
        np.add.at(by_magnitude, keys, counted)
        histogram = BitHistogram.from_dense(dtype, 0, by_magnitude)
        x, c = histogram.values(), histogram.counts.astype(np.float64)
        n = histogram.n
        y = np.log(x)
        mean = float(y @ c / n) if n else 0.0
        d = y - mean
        moments = LogMoments(
            n=n,
            n_zero=int(counts[values == 0].sum()),
            n_nonfinite=int(counts[~finite].sum()),
            n_negative=int(counted[values < 0].sum()),
            mean=mean,
            m2=float(c @ d**2) if len(x) > 1 else 0.0,
            m3=float(c @ d**3) if len(x) > 1 else 0.0,
            m4=float(c @ d**4) if len(x) > 1 else 0.0,
            sum_x=float(c @ x),
            sum_x2=float(c @ x**2),
            min=float(x[0]) if n else np.inf,
            max=float(x[-1]) if n else 0.0,
        )
        return TensorStats(moments, histogram)

    def merge(self, other: TensorStats) -> TensorStats:
        """The statistics of both sets of weights together; associative up to rounding, counts exactly."""
        moments = self.moments.merge(other.moments)
        return TensorStats(moments, self.histogram.merge(other.histogram).resized(moments.size))


def merge(*stats: TensorStats) -> TensorStats:
    """Merge any number of TensorStats, in the order given. Without any: the statistics of nothing."""
    if not stats:
        return TensorStats.zero()
    if len(stats) < 3:
        return reduce(TensorStats.merge, stats)
    moments = Partials.concatenate([s.moments.as_partials() for s in stats]).total()
    histogram = reduce(BitHistogram.merge, (s.histogram for s in stats))
    return TensorStats(moments, histogram.resized(moments.size))
