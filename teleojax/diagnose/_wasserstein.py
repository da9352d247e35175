"""Wasserstein-1 distance in ln x between the values of two histograms, of any types."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from teleojax.diagnose._distances import absolute_area
from teleojax.stats import BitHistogram


def log_wasserstein(a: BitHistogram, b: BitHistogram) -> float:
    """∫|F_a − F_b| d ln x, in units of ln x: how far values must be moved, on average, to turn one law into the other.

    Exact of lossless histograms, whatever their types. Where a cell stands for a range, its F is known exactly at the
    edges and taken as straight in ln x between them. Zeros are in neither law. NaN where one has no values.
    """
    if not len(a.keys) or not len(b.keys):
        return math.nan
    laws = _Steps.of(a), _Steps.of(b)
    grid = np.unique(np.concatenate([law.y for law in laws]))
    start = laws[0].at(grid[:-1], "right") - laws[1].at(grid[:-1], "right")
    end = laws[0].at(grid[1:], "left") - laws[1].at(grid[1:], "left")
    return float(np.sum(absolute_area(start, end, np.diff(grid))))


class _Steps:
    """A distribution function by its nodes in y = ln x: from `left` it jumps to `right`, and runs straight between."""

    def __init__(self, y: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        self.y, self.left, self.right = y, left, right

    @staticmethod
    def of(histogram: BitHistogram) -> _Steps:
        after = np.cumsum(histogram.counts) / histogram.n
        before = np.concatenate([[0.0], after[:-1]])
        if histogram.lossless:
            return _Steps(np.log(histogram.values()), before, after)
        lower, upper = histogram.edges()
        y = np.log(np.stack([np.maximum(lower, histogram.least), upper], axis=1)).reshape(-1)
        share = np.stack([before, after], axis=1).reshape(-1)
        return _Steps(y, share, share)

    def at(self, y: Float[np.ndarray, " m"], side: str) -> Float[np.ndarray, " m"]:
        """The limits of F at y from the left or the right."""
        last = np.searchsorted(self.y, y, "left" if side == "left" else "right") - 1
        i = np.clip(last, 0, len(self.y) - 2) if len(self.y) > 1 else np.zeros_like(last)
        j = np.minimum(i + 1, len(self.y) - 1)
        width = self.y[j] - self.y[i]
        share = (y - self.y[i]) / np.where(width > 0, width, 1)
        inside = self.right[i] + (self.left[j] - self.right[i]) * share
        return np.where(last < 0, 0.0, np.where(last == len(self.y) - 1, 1.0, inside))
