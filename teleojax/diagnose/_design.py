"""Bins to design matrices: one tensor checked and given its knots, many tensors laid end to end.

A batch is ragged and flat. Its cells are the bins from the first to the last occupied one, and a few empty cells on
either side, where the density is known to hold no value as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teleojax.diagnose._bspline import (
    ORDER,
    basis_powers,
    choose_knots,
    extend_knots,
    powers_of,
    quadratic_coefficients,
)

MIN_VALUES, MIN_OCCUPIED = 8, 4
ROUNDING = 64 * np.finfo(np.float64).eps  # of the total: a fractional count this small is a difference's rounding
MARGIN_CELLS = 12  # empty cells on each side, growing outwards
MARGIN_GROWTH = 2.3  # log ratio of the last to the first of them
HALF_WIDTH, MIN_MARGIN = 10.0, 4.0  # the line is modelled to ±10 SD, and 4 SD beyond the last occupied bin
WIDE_BIN = 0.35  # in SD; a tensor with wider bins gets the finer quadrature
NODES = (3, 8, 24, 64)  # Gauss–Legendre points a bin: first, for wide bins, and where the fit turns out steep
PAIRS = [(i, j) for i in range(ORDER) for j in range(i, ORDER)]


@dataclass(frozen=True)
class Prepared:
    """One tensor in units of z, trimmed to its occupied bins: edges, counts, and which edges are knots."""

    z: np.ndarray
    counts: np.ndarray
    knot_index: np.ndarray
    total: float
    order: int


def prepare(where: str, edges: np.ndarray, counts: np.ndarray, mu: float, sigma: float, n_knots: int) -> Prepared | str:
    """Check one tensor's bins and place its knots; a string says why no density can be had."""
    edges, counts = np.asarray(edges, np.float64), np.asarray(counts, np.float64)
    if edges.ndim != 1 or counts.shape != (edges.size - 1,):
        found = f"{edges.shape} edges for {counts.shape} counts"
        raise ValueError(f"{where}: found {found}; needed n + 1 edges for n bins. Pass the edges of every bin.")
    if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(f"{where}: found edges that are not finite and increasing; needed both. Merge empty bins.")
    total = float(counts.sum())
    rounding = ROUNDING * abs(total)
    if (counts < -rounding).any():
        raise ValueError(f"{where}: found a count of {counts.min()}; needed none below 0. Check for overflow.")
    counts = np.where(counts > rounding, counts, 0.0)
    occupied = np.flatnonzero(counts)
    if total < MIN_VALUES:
        return "too few values for a density"
    if occupied.size < MIN_OCCUPIED:
        return "too few distinct values for a density"
    if not (np.isfinite(mu) and np.isfinite(sigma) and sigma > 0):
        return "the mean or standard deviation of ln|w| is not a usable number"
    first, last = occupied[0], occupied[-1] + 1
    z = (edges[first : last + 1] - mu) / sigma
    widths = np.diff(z)
    if not (np.isfinite(z).all() and (widths > 0).all()):
        return "the standard deviation of ln|w| does not fit the bins"
    inner = counts[first:last]
    order = NODES[1] if widths.max() > WIDE_BIN else NODES[0]
    return Prepared(z, inner, choose_knots(z, inner, n_knots), total, order)


@dataclass(frozen=True)
class Batch:
    """The design of a few tensors, cells end to end. N cells, S intervals, K coefficients, T tensors, m nodes a cell.

    knots, reach: per tensor.  coef_start, cell_start: [T], where each tensor begins.  total: [T] values.
    powers: [4, 4, S] local cubics.  base: [S] first coefficient of an interval.  interval_start: [S] its first cell.
    counts: [N].  middle, half, left, width: [N] a cell's centre and half width, its interval's left knot and width.
    log_weight: [m, N] log of the quadrature weight times n.  basis: [m, 4, N] B-splines at the nodes.
    gather: [4, N] coefficients of a cell.  penalty: [4, K] lower band of ∫ B_i‴ B_j‴.  quadratic: [K] the start.
    """

    knots: list[np.ndarray]
    reach: list[tuple[float, float]]
    coef_start: np.ndarray
    cell_start: np.ndarray
    total: np.ndarray
    powers: np.ndarray
    base: np.ndarray
    interval_start: np.ndarray
    interval_of_cell: np.ndarray
    tensor_of_cell: np.ndarray
    tensor_of_coef: np.ndarray
    counts: np.ndarray
    occupied: np.ndarray
    log_counts: np.ndarray
    middle: np.ndarray
    half: np.ndarray
    left: np.ndarray
    width: np.ndarray
    log_weight: np.ndarray
    basis: np.ndarray
    gather: np.ndarray
    penalty: np.ndarray
    quadratic: np.ndarray

    @staticmethod
    def of(tensors: list[Prepared]) -> Batch:
        """Lay the tensors end to end and tabulate the B-splines at the quadrature nodes."""
        growth = np.expm1(np.linspace(0, MARGIN_GROWTH, MARGIN_CELLS + 1)) / np.expm1(MARGIN_GROWTH)
        knots, reach, windows, quadratic, lower, upper, counts, cells_each, per_interval = ([] for _ in range(9))
        for tensor in tensors:
            z, index = tensor.z, tensor.knot_index
            left = max(z[0] + HALF_WIDTH, MIN_MARGIN) * growth
            right = max(HALF_WIDTH - z[-1], MIN_MARGIN) * growth
            cells = np.concatenate((z[0] - left[:0:-1], z, z[-1] + right[1:]))
            knots.append(z[index])
            reach.append((float(cells[0]), float(cells[-1])))
            extended = extend_knots(z[index])
            windows.append(np.lib.stride_tricks.sliding_window_view(extended, 2 * ORDER - 2)[1:-1].T)
            quadratic.append(quadratic_coefficients(extended, -0.5 * np.log(2 * np.pi), 0.0, -0.5))
            lower.append(cells[:-1])
            upper.append(cells[1:])
            counts.append(np.concatenate((np.zeros(MARGIN_CELLS), tensor.counts, np.zeros(MARGIN_CELLS))))
            inside = np.diff(index)
            inside[[0, -1]] += MARGIN_CELLS if inside.size > 1 else 2 * MARGIN_CELLS
            per_interval.append(inside)
            cells_each.append(cells.size - 1)
        intervals_each = np.array([k.size - 1 for k in knots])
        coefs_each = intervals_each + ORDER - 1
        coef_start = np.concatenate(([0], np.cumsum(coefs_each)[:-1]))
        base = np.arange(intervals_each.sum()) + (ORDER - 1) * np.repeat(np.arange(len(tensors)), intervals_each)
        counts_in = np.concatenate(per_interval)
        interval_of_cell = np.repeat(np.arange(base.size), counts_in)
        left, width = np.concatenate([k[:-1] for k in knots]), np.concatenate([np.diff(k) for k in knots])
        powers = basis_powers(np.concatenate(windows, axis=1))
        low, high = np.concatenate(lower), np.concatenate(upper)
        points, weights = np.polynomial.legendre.leggauss(tensors[0].order)
        middle, half = 0.5 * (high + low), 0.5 * (high - low)
        left, width = left[interval_of_cell], width[interval_of_cell]
        tensor_of_cell = np.repeat(np.arange(len(tensors)), cells_each)
        total = np.array([tensor.total for tensor in tensors])
        u = middle - left + points[:, None] * half
        here = powers[:, :, interval_of_cell]
        basis = np.repeat(here[None, :, 0], points.size, axis=0)
        for d, power in enumerate(powers_of(u, width), start=1):
            basis += power[:, None] * here[:, d]
        penalty = np.zeros((ORDER, coefs_each.sum()))
        third = 6 * powers[:, 3]
        length = np.concatenate([np.diff(k) for k in knots])
        for i, j in PAIRS:
            penalty[j - i, base + i] += length * third[i] * third[j]
        counts_flat = np.concatenate(counts)
        occupied = np.flatnonzero(counts_flat)
        return Batch(
            knots=knots,
            reach=reach,
            coef_start=coef_start,
            cell_start=np.concatenate(([0], np.cumsum(cells_each)[:-1])),
            total=total,
            powers=powers,
            base=base,
            interval_start=np.concatenate(([0], np.cumsum(counts_in)[:-1])),
            interval_of_cell=interval_of_cell,
            tensor_of_cell=tensor_of_cell,
            tensor_of_coef=np.repeat(np.arange(len(tensors)), coefs_each),
            counts=counts_flat,
            occupied=occupied,
            log_counts=np.log(counts_flat[occupied]),
            middle=middle,
            half=half,
            left=left,
            width=width,
            log_weight=np.log(weights[:, None] * (half * total[tensor_of_cell])),
            basis=basis,
            gather=base[interval_of_cell] + np.arange(ORDER)[:, None],
            penalty=penalty,
            quadratic=np.concatenate(quadratic),
        )

    def intervals(self, tensor: int) -> slice:
        """The intervals of one tensor."""
        start = int(self.coef_start[tensor]) - (ORDER - 1) * tensor
        return slice(start, start + self.knots[tensor].size - 1)

    def tabulate(self, powers: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """z, quadrature weight, f and f′ at `order` Gauss–Legendre nodes a cell, [m, N], from power coefficients."""
        points, weights = np.polynomial.legendre.leggauss(order)
        p = powers[:, self.interval_of_cell]
        z = self.middle + points[:, None] * self.half
        u = z - self.left
        one, two, three = powers_of(u, self.width)
        inside = np.minimum(np.maximum(u, 0.0), self.width)
        slope = p[1] + 2 * p[2] * u + 3 * p[3] * inside * (2 * u - inside)
        return z, weights[:, None] * self.half, p[0] + p[1] * one + p[2] * two + p[3] * three, slope
