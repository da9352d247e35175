"""CellCounts: values of which only the rounding cell is known, as storage in few bits leaves them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from teleojax._errors import UsageError
from teleojax.stats._bithist import BitHistogram

SCALE_STEP = 0.01  # scales within 1% of each other share their cells, at their geometric mean
FEW_BITS = 8  # a type of at most so many bits rounds small values to zero: its zeros are a cell like any other


@dataclass(frozen=True, slots=True, eq=False)
class CellCounts:
    """Counts (int64, positive) of values of which |w| lies in [lower, upper). A cell with lower = 0 holds those that
    were rounded to zero.
    """

    lower: Float[np.ndarray, " k"]
    upper: Float[np.ndarray, " k"]
    counts: Int[np.ndarray, " k"]

    @property
    def n(self) -> int:
        """Number of values, those rounded to zero included."""
        return int(self.counts.sum())

    def merge(self, other: CellCounts) -> CellCounts:
        """The counts of both; cells need not agree."""
        return gathered(*(np.concatenate([getattr(c, f) for c in (self, other)]) for f in ("lower", "upper", "counts")))

    @staticmethod
    def from_histogram(histogram: BitHistogram, n_zero: int) -> CellCounts:
        """The rounding cells of a histogram; zeros are one of them where the type has at most FEW_BITS bits.

        Elsewhere exact zeros are no result of rounding (a pruned weight, a bias not yet trained) and stay apart.
        """
        lower, upper = histogram.edges()
        counts = histogram.counts
        if histogram.bits <= FEW_BITS and n_zero:
            below = histogram.least
            lower, upper = np.insert(np.maximum(lower, below), 0, 0.0), np.insert(upper, 0, below)
            counts = np.insert(counts, 0, n_zero)
        kept = (lower > 0) | (np.arange(len(lower)) == 0)
        lower = np.where(kept, lower, histogram.least)
        return CellCounts(lower, np.maximum(upper, np.nextafter(lower, np.inf)), counts)  # subnormals of float64

    @staticmethod
    def from_codes(codes: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | float = 0) -> CellCounts:
        """Of integers that stand for (code − zero_point) · scale, rounded to nearest; `scale` and `zero_point`
        broadcast against `codes` (one a tensor, a channel, or a group along an axis of its own).

        Raises UsageError where a scale is not positive and finite, or shapes do not agree.
        """
        try:
            steps, scale = np.broadcast_arrays(np.abs(np.asarray(codes) - np.asarray(zero_point, np.float64)), scale)
        except ValueError as e:
            raise UsageError(
                "scale",
                found=f"shape {np.shape(scale)} for codes of shape {np.shape(codes)}",
                needed="shapes that broadcast against the codes",
                remedy="Give scale and zero_point an axis of length 1 where they are shared.",
            ) from e
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise UsageError(
                "scale", found="a scale that is 0, negative or not finite", needed="positive finite scales",
                remedy="Leave such groups out.",
            )  # fmt: skip
        number = np.round(np.log(scale) / SCALE_STEP).astype(np.int64)
        keys, cell, counts = np.unique(
            np.stack([number.reshape(-1), np.round(2 * steps.reshape(-1)).astype(np.int64)]),
            axis=1, return_inverse=True, return_counts=True,
        )  # fmt: skip
        shared = np.exp(np.bincount(cell.reshape(-1), np.log(scale.reshape(-1))) / counts)
        half = keys[1] / 2
        return gathered(np.maximum(half - 0.5, 0) * shared, (half + 0.5) * shared, counts)


def gathered(lower: np.ndarray, upper: np.ndarray, counts: np.ndarray) -> CellCounts:
    """Cells in rising order, equal ones together."""
    cells, where = np.unique(np.stack([lower, upper]), axis=1, return_inverse=True)
    total = np.zeros(cells.shape[1], np.int64)
    np.add.at(total, where.reshape(-1), counts)
    return CellCounts(cells[0], cells[1], total)
