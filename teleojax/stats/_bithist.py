"""BitHistogram: counts of |w| in cells that are the leading bits of the number itself."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

EXACT_SIZE = 8192  # up to this many values a float32/float64 histogram keeps every bit: narrow layers stay resolved
COARSE_DROP = {"float32": 16, "float64": 45}  # low bits dropped above EXACT_SIZE: cells of 1/128 of an octave


def pattern_dtype(dtype: str) -> np.dtype:
    """The unsigned integer type that holds the bits of a floating-point type."""
    return np.dtype(f"u{float_dtype(dtype).itemsize}")


def float_dtype(dtype: str) -> np.dtype:
    """The NumPy or ml_dtypes type of that name (int8 too, where integers stand for numbers on a scale)."""
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def magnitude_mask(dtype: str) -> int:
    """All bits but the sign."""
    return (1 << (8 * float_dtype(dtype).itemsize - 1)) - 1


def pattern_values(dtype: str, patterns: np.ndarray) -> np.ndarray:
    """Bit patterns read as numbers of `dtype`, in float64 (exact)."""
    with np.errstate(invalid="ignore"):  # converting a signalling NaN raises the flag; it stays a NaN
        return patterns.astype(pattern_dtype(dtype)).view(float_dtype(dtype)).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class BitHistogram:
    """Exact counts of the finite non-zero |w|, by the leading bits of the magnitude; a monoid under `merge`.

    `keys` (rising int64) are the bit patterns of |w| in `dtype` shifted right by `drop`; `counts` (int64) are positive.
    With drop = 0 it is lossless: each key is one value. Otherwise a cell holds the magnitudes from pattern
    key << drop up to, not including, (key + 1) << drop. Every float has a cell: no range is chosen, nothing is clipped.
    Quantised integers ("int8") have their absolute values as keys; a key stands for key · `scale`.
    """

    dtype: str
    drop: int
    keys: Int[np.ndarray, " k"]
    counts: Int[np.ndarray, " k"]
    scale: float = 1.0

    def __eq__(self, other: object) -> bool:
        """Same type, cells and counts."""
        if not isinstance(other, BitHistogram):
            return NotImplemented
        same = (self.dtype, self.drop, self.scale) == (other.dtype, other.drop, other.scale)
        return same and np.array_equal(self.keys, other.keys) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def zero(dtype: str, drop: int = 0) -> BitHistogram:
        """The histogram of nothing."""
        return BitHistogram(dtype, drop, np.empty(0, np.int64), np.empty(0, np.int64))

    @staticmethod
    def from_dense(dtype: str, drop: int, counts: Int[np.ndarray, " bins"], scale: float = 1.0) -> BitHistogram:
        """From one count per key, most of them zero."""
        keys = np.flatnonzero(counts)
        return BitHistogram(dtype, drop, keys, counts[keys].astype(np.int64), scale)

    @staticmethod
    def from_keys(
        dtype: str, drop: int, keys: np.ndarray, counts: np.ndarray | None = None, scale: float = 1.0
    ) -> BitHistogram:
        """From keys in any order, repeats allowed; each counts 1 unless `counts` says otherwise."""
        found, where = np.unique(keys.astype(np.int64), return_inverse=True)
        total = np.zeros(len(found), np.int64)
        np.add.at(total, where, 1 if counts is None else counts)
        return BitHistogram(dtype, drop, found, total, scale)

    @property
    def n(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    @property
    def bits(self) -> int:
        """Bits of a stored value."""
        return 8 * float_dtype(self.dtype).itemsize

    @property
    def lossless(self) -> bool:
        """True when a cell holds a single value."""
        return self.drop == 0

    def edges(self, keys: np.ndarray | None = None) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Lower and upper edge of each cell, as |w|.

        Of a lossless cell: half-way to the neighbouring numbers of the type (what rounding to nearest sends there).
        """
        keys = self.keys if keys is None else keys
        if not self.lossless:
            upper = pattern_values(self.dtype, (keys + 1) << self.drop)
            lower = pattern_values(self.dtype, keys << self.drop)
            with np.errstate(over="ignore"):  # twice a number near the largest float64
                last = np.minimum(2 * lower, np.finfo(np.float64).max)
            return lower, np.where(np.isfinite(upper), upper, last)
        if self.dtype == "int8":
            return (keys - 0.5) * self.scale, (keys + 0.5) * self.scale
        value, below, above = (pattern_values(self.dtype, np.maximum(keys + i, 0)) for i in (0, -1, 1))
        # past the largest finite number the next pattern is inf or NaN: that cell is as wide above as it is below
        step = np.where(np.isfinite(above), above - value, value - below)
        return below + (value - below) / 2, value + step / 2

    def values(self) -> Float[np.ndarray, " k"]:
        """One |w| per cell: the value itself when lossless, else the middle of the cell."""
        if self.dtype == "int8":
            return self.keys * self.scale
        if self.lossless:
            return pattern_values(self.dtype, self.keys)
        lower, upper = self.edges()
        return lower + (upper - lower) / 2

    @property
    def least(self) -> float:
        """Where the cell that begins at zero is taken to begin: half the smallest magnitude, or that itself where half
        of it is no number (float64).
        """
        return self.smallest / 2 or self.smallest

    @property
    def smallest(self) -> float:
        """The smallest magnitude that the type can hold, other than zero."""
        return self.scale if self.dtype == "int8" else float(pattern_values(self.dtype, np.ones(1, np.int64))[0])

    def coarsen(self, drop: int) -> BitHistogram:
        """The same counts in cells with `drop` low bits dropped, drop ≥ self.drop."""
        if drop == self.drop:
            return self
        return BitHistogram.from_keys(self.dtype, drop, self.keys >> (drop - self.drop), self.counts)

    def astype(self, dtype: str, drop: int) -> BitHistogram:
        """The same counts by the bits of a wider type; cells stand for their `values`."""
        if dtype == self.dtype:
            return self.coarsen(drop)
        patterns = self.values().astype(float_dtype(dtype)).view(pattern_dtype(dtype)).astype(np.int64)
        return BitHistogram.from_keys(dtype, drop, patterns >> drop, self.counts)

    def resized(self, size: int) -> BitHistogram:
        """At the resolution that a set of `size` values is kept at: a function of type and size alone."""
        drop = COARSE_DROP.get(self.dtype, 0) if size > EXACT_SIZE else 0
        return self.coarsen(max(drop, self.drop))

    def merge(self, other: BitHistogram) -> BitHistogram:
        """Counts of both.

        Histograms of unlike types meet in float32 (float64 if either is) at the coarse resolution.
        """
        a, b = self, other
        if (a.dtype, a.scale) != (b.dtype, b.scale):
            if not len(b.keys) or not len(a.keys):
                return a if len(a.keys) else b
            wide = "float64" if "float64" in (a.dtype, b.dtype) else "float32"
            a, b = (h.astype(wide, COARSE_DROP[wide]) for h in (a, b))
        drop = max(a.drop, b.drop)
        a, b = a.coarsen(drop), b.coarsen(drop)
        keys, counts = np.concatenate([a.keys, b.keys]), np.concatenate([a.counts, b.counts])
        return BitHistogram.from_keys(a.dtype, drop, keys, counts, a.scale)
