"""Rounding cells -> quadrature points: the interval-censored likelihood of values stored in few bits.

The probability of a cell is ∫ p dx over it, by Gauss–Legendre points in y = ln x, so that every family is fitted by its
density alone. The cell that begins at zero reaches down to y = −∞: its points lie ever farther apart, down to
e^(−128) of its edge, where no density that can be normalised has anything left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from teleojax.fits._solve import Cells, Intervals
from teleojax.stats import CellCounts

POINTS = 6  # a cell: within 1e-7 of its probability where it spans a factor of 3, as the first of an integer does
PANELS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # of ln edge − y in a cell at zero
PANEL_POINTS = 8
INSIDE_MULTIPLE, ZERO_MULTIPLE = 128, 8  # cells that a tensor is padded to a multiple of


def intervals_of(counts: Sequence[CellCounts], centre: Float[np.ndarray, " tensors"]) -> Intervals:
    """Quadrature points of the cells of every tensor, y less its centre."""
    nodes, node_weights = np.polynomial.legendre.leggauss(POINTS)
    below, below_weights = _panels()
    inside, at_zero = [], []
    for c, origin in zip(counts, centre, strict=True):
        whole, share, high = c.lower > 0, c.counts / c.n, np.log(c.upper) - origin
        low = np.log(c.lower[whole]) - origin
        half = np.log1p((c.upper - c.lower)[whole] / c.lower[whole])[:, None] / 2  # also of a last bit's width
        inside.append((low[:, None] + half + half * nodes, np.log(half * node_weights), share[whole]))
        edge = high[~whole][:, None]
        at_zero.append((edge - below, np.broadcast_to(np.log(below_weights), (len(edge), len(below))), share[~whole]))
    return Intervals(_stacked(inside, INSIDE_MULTIPLE), _stacked(at_zero, ZERO_MULTIPLE))


def _stacked(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], multiple: int) -> Cells:
    longest = max((len(weight) for *_, weight in rows), default=0)
    length = -(-max(longest, 1) // multiple) * multiple
    points = rows[0][0].shape[1] if rows else 1
    y, volume = np.zeros((len(rows), length, points)), np.zeros((len(rows), length, points))
    weight = np.zeros((len(rows), length))
    for i, (row_y, row_volume, row_weight) in enumerate(rows):
        n = len(row_weight)
        y[i, :n], volume[i, :n], weight[i, :n] = row_y, row_volume, row_weight
    return Cells(y, volume, weight)


def _panels() -> tuple[np.ndarray, np.ndarray]:
    """Points and weights over [0, 128], close together at 0."""
    nodes, weights = np.polynomial.legendre.leggauss(PANEL_POINTS)
    start, stop = np.asarray(PANELS[:-1]), np.asarray(PANELS[1:])
    half = (stop - start)[:, None] / 2
    return ((start + stop)[:, None] / 2 + half * nodes).reshape(-1), (half * weights).reshape(-1)


def mean_log_width(cells: CellCounts) -> float:
    """Mean ln(width of the cell) over all values, which turns the likelihood of cells into a mean density in x."""
    return float(np.log(cells.upper - cells.lower) @ cells.counts / cells.n)
