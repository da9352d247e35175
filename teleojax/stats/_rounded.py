"""RoundedCells: the cells of values that were rounded in blocks, each with its own scale, gathered piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from teleojax.stats._cells import SCALE_STEP, CellCounts, gathered

PARTS = 8  # of a spacing, to which the place of a value among the levels is rounded: levels need not begin at zero
FAR = 4096  # spacings from zero beyond which a cell is a point: it is taken as wide as one of that many parts
PLACES = 2 * FAR * PARTS  # a place is at most half of it
MOST_CELLS = 4096  # of a tensor in the end; fits hold a few points of every cell in memory
MOST_HELD = 1 << 18  # meanwhile


@dataclass(slots=True)
class RoundedCells:
    """Counts of values by the spacing of the levels that they were rounded to, and by their place among the levels.

    Spacings within SCALE_STEP · 2^`coarseness` of each other share their cells, at their geometric mean; the coarseness
    rises as long as there are too many cells. `keys` (rising) are PLACES · number of the spacing + place, the place in
    PARTS of the spacing; `numbers` (rising) have the `weights` and `sums` of the logarithms that the means are made of.
    """

    coarseness: int = 0
    keys: Int[np.ndarray, " k"] = field(default_factory=lambda: np.empty(0, np.int64))
    counts: Int[np.ndarray, " k"] = field(default_factory=lambda: np.empty(0, np.int64))
    numbers: Int[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0, np.int64))
    weights: Float[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0, np.float64))
    sums: Float[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0, np.float64))

    def add(self, values: Float[np.ndarray, " n"], spacing: Float[np.ndarray, " parts"]) -> None:
        """Values, and of each of their equal parts how far apart the levels lie.

        Values that are not finite, and those without a spacing (0, NaN or inf: a part of one value), are left out.
        """
        if not len(values):
            return
        known = np.isfinite(spacing) & (spacing > 0)
        x = np.abs(values.reshape(len(spacing), -1))
        if not known.all():
            x, spacing = x[known], spacing[known]
        if not x.size:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            place = x * (np.float32(PARTS) / spacing)[:, None]
            near = place <= FAR * PARTS
        if not near.all():
            far = x[~near & np.isfinite(x)]
            x, spacing, place = (a[near] for a in (x, np.broadcast_to(spacing[:, None], x.shape), place))
            if len(far):
                self.add(far, far / np.float32(FAR))
            place = place[:, None]
        if place.size:
            self._count(np.rint(place).astype(np.int64), np.log(spacing.astype(np.float64)))

    def merge(self, other: RoundedCells) -> RoundedCells:
        """The counts of both."""
        a, b = replace(self), replace(other)
        while a.coarseness != b.coarseness:
            (a if a.coarseness < b.coarseness else b)._coarsen()
        a._absorb(b.keys, b.counts, b.numbers, b.weights, b.sums)
        return a

    def cells(self) -> CellCounts:
        """The cells, at most MOST_CELLS of them."""
        total = replace(self)
        while len(total.keys) > MOST_CELLS:
            total._coarsen()
        number, place = np.divmod(total.keys, PLACES)
        spacing = np.exp(total.sums / total.weights)[np.searchsorted(total.numbers, number)]
        return gathered(np.maximum(place / PARTS - 0.5, 0) * spacing, (place / PARTS + 0.5) * spacing, total.counts)

    def _count(self, place: np.ndarray, log: np.ndarray) -> None:
        """Places (parts, values a part), and the logarithm of the spacing of each part."""
        step = SCALE_STEP * 2.0**self.coarseness
        numbers, row = np.unique(np.rint(log / step).astype(np.int64), return_inverse=True)
        width = int(place.max()) + 1
        keys, counts = _occurring((row * width)[:, None] + place)
        keys = numbers[keys // width] * PLACES + keys % width
        each = place.shape[1]
        self._absorb(keys, counts, numbers, np.bincount(row) * float(each), np.bincount(row, log) * each)

    def _absorb(self, keys: np.ndarray, counts: np.ndarray, numbers: np.ndarray, *means: np.ndarray) -> None:
        self.keys, (self.counts,) = _joined(self.keys, keys, (self.counts, counts))
        pairs = zip((self.weights, self.sums), means, strict=True)
        self.numbers, (self.weights, self.sums) = _joined(self.numbers, numbers, *pairs)
        while len(self.keys) > MOST_HELD:
            self._coarsen()

    def _coarsen(self) -> None:
        """Twice the step between spacings."""
        number, place = np.divmod(self.keys, PLACES)
        old = (number >> 1) * PLACES + place, self.counts, self.numbers >> 1, self.weights, self.sums
        empty = RoundedCells(self.coarseness + 1)
        self.coarseness, self.keys, self.counts = empty.coarseness, empty.keys, empty.counts
        self.numbers, self.weights, self.sums = empty.numbers, empty.weights, empty.sums
        self._absorb(*old)


def _occurring(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys that occur, rising, and how often; in a table unless that would be longer than the keys."""
    flat = keys.reshape(-1)
    if int(flat.max()) > 8 * max(flat.size, PLACES):
        return np.unique(flat, return_counts=True)
    counts = np.bincount(flat)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _joined(a: np.ndarray, b: np.ndarray, *pairs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The keys of both, rising, and the sums over equal ones of each pair."""
    keys, where = np.unique(np.concatenate([a, b]), return_inverse=True)
    totals = []
    for pair in pairs:
        total = np.zeros(len(keys), pair[0].dtype)
        np.add.at(total, where, np.concatenate(pair))
        totals.append(total)
    return keys, totals
