"""LogMoments: exact counts and central moments of ln|w|, a monoid in int and float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Many partial LogMoments side by side, one entry per row or block; every field has the same length.

    `mean`, `m2`, `m3`, `m4` are the mean of y = ln x and the sums of (y − mean)^k over the n values that are finite
    and not zero, x = |w|. Where n = 0 they are 0, `min` is inf and `max` is 0.
    """

    n: Int[np.ndarray, " k"]
    n_zero: Int[np.ndarray, " k"]
    n_nonfinite: Int[np.ndarray, " k"]
    n_negative: Int[np.ndarray, " k"]
    mean: Float[np.ndarray, " k"]
    m2: Float[np.ndarray, " k"]
    m3: Float[np.ndarray, " k"]
    m4: Float[np.ndarray, " k"]
    sum_x: Float[np.ndarray, " k"]
    sum_x2: Float[np.ndarray, " k"]
    min: Float[np.ndarray, " k"]
    max: Float[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.n)

    @staticmethod
    def concatenate(parts: list[Partials]) -> Partials:
        """Partials one after another, in the order given."""
        return Partials(*map(np.concatenate, zip(*map(_columns, parts), strict=True)))

    def take(self, index: np.ndarray | slice) -> Partials:
        """The entries at `index`, in that order; of a slice, views."""
        return Partials(*(column[index] for column in _columns(self)))

    def put(self, index: np.ndarray, other: Partials) -> None:
        """Replace the entries at `index` by those of `other`, in place."""
        for mine, others in zip(_columns(self), _columns(other), strict=True):
            mine[index] = others

    def combine(self, starts: Int[np.ndarray, " g"]) -> Partials:
        """Merge consecutive entries into groups that begin at `starts` (rising, first 0).

        The k-way form of the pairwise update of Pébay (2008): with d_i = mean_i − mean,
        M2 = Σ M2_i + n_i d_i², M3 = Σ M3_i + 3 d_i M2_i + n_i d_i³, M4 = Σ M4_i + 4 d_i M3_i + 6 d_i² M2_i + n_i d_i⁴.
        """
        size = np.diff(np.append(starts, len(self)))

        def total(values: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):  # sums of float64 values past 1e154 are inf
                return np.add.reduceat(values, starts)

        n = total(self.n)
        weight = self.n.astype(np.float64)
        # the deviations from a group's first non-empty mean keep the weighted mean free of cancellation
        occupied = np.where(self.n > 0, np.arange(len(self)), len(self) - 1)
        origin = self.mean[np.minimum.reduceat(occupied, starts)]
        shift = total(weight * (self.mean - np.repeat(origin, size))) / np.maximum(n, 1)
        mean = np.where(n > 0, origin + shift, 0.0)
        d = np.where(self.n > 0, (self.mean - np.repeat(origin, size)) - np.repeat(shift, size), 0.0)
        d2 = d * d
        return Partials(
            n=n,
            n_zero=total(self.n_zero),
            n_nonfinite=total(self.n_nonfinite),
            n_negative=total(self.n_negative),
            mean=mean,
            m2=total(self.m2 + weight * d2),
            m3=total(self.m3 + 3 * d * self.m2 + weight * d2 * d),
            m4=total(self.m4 + 4 * d * self.m3 + 6 * d2 * self.m2 + weight * d2 * d2),
            sum_x=total(self.sum_x),
            sum_x2=total(self.sum_x2),
            min=np.minimum.reduceat(self.min, starts),
            max=np.maximum.reduceat(self.max, starts),
        )

    def each(self) -> list[LogMoments]:
        """Every entry as a LogMoments."""
        columns = [column.tolist() for column in _columns(self)]
        return [LogMoments(*row) for row in zip(*columns, strict=True)]

    def total(self) -> LogMoments:
        """Everything merged into one."""
        return self.combine(np.zeros(1, np.int64)).each()[0] if len(self) else LogMoments.zero()


_columns = attrgetter(*(f.name for f in fields(Partials)))


@dataclass(frozen=True, slots=True)
class LogMoments:
    """Counts and moments of one set of weights; `merge` is associative up to rounding, `zero()` its identity.

    n counts the values that are finite and not zero (n_negative of them below zero), n_zero those equal to ±0,
    n_nonfinite the NaN and ±inf. With y = ln|w| over those n: `mean` = mean(y), `mk` = Σ (y − mean)^k; and of x = |w|:
    Σx, Σx², min, max. For n = 0 the moments are 0, min is inf and max is 0.
    """

    n: int
    n_zero: int
    n_nonfinite: int
    n_negative: int
    mean: float
    m2: float
    m3: float
    m4: float
    sum_x: float
    sum_x2: float
    min: float
    max: float

    @staticmethod
    def zero() -> LogMoments:
        """The statistics of nothing."""
        return LogMoments(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, math.inf, 0.0)

    def as_partials(self) -> Partials:
        """The same numbers as Partials of length one."""
        return Partials(*(np.asarray([getattr(self, f.name)]) for f in fields(LogMoments)))

    def merge(self, other: LogMoments) -> LogMoments:
        """The statistics of both sets together."""
        return Partials.concatenate([self.as_partials(), other.as_partials()]).total()

    @property
    def size(self) -> int:
        """All values seen: n + n_zero + n_nonfinite."""
        return self.n + self.n_zero + self.n_nonfinite

    @property
    def sigma(self) -> float:
        """Maximum-likelihood standard deviation of ln x, √(M2/n); NaN for n = 0."""
        return math.sqrt(self.m2 / self.n) if self.n else math.nan

    @property
    def skew(self) -> float:
        """Skewness of ln x; NaN when sigma is 0 or n = 0."""
        return math.sqrt(self.n) * self.m3 / self.m2**1.5 if self.m2 > 0 else math.nan

    @property
    def excess_kurtosis(self) -> float:
        """Kurtosis of ln x less 3; NaN when sigma is 0 or n = 0."""
        return self.n * self.m4 / self.m2**2 - 3 if self.m2 > 0 else math.nan

    @property
    def rms(self) -> float:
        """Root mean square of x over n; NaN for n = 0."""
        return math.sqrt(self.sum_x2 / self.n) if self.n else math.nan
