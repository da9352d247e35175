"""BitHistogram -> a few hundred weighted nodes of y = ln x on which every family's likelihood is summed.

Cells are gathered in bins a twentieth of a standard deviation wide, and each bin becomes the two-point Gauss rule that
has its mass, mean, variance and third moment: the sum of a smooth log-density over the nodes differs from that over the
values by 1e-8 nats a value and less. The weights are then moved by the least amount that makes Σy … Σy⁴, Σx and Σx²
agree with the exact log-moments, which takes away what the width of a coarse cell did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from teleojax.fits._solve import Points
from teleojax.stats import BitHistogram, LogMoments, TensorStats

WIDTH = 0.05  # of a bin, in standard deviations of y
CENTRE = 8.0  # standard deviations either side of the mean in bins of that width; beyond, each is GROWTH times wider
GROWTH = 1.25
CORRECTED_MOST = 0.1  # relative change of a weight; where more would be needed, the nodes are left as they are
AGREES = 1e-9  # relative: how near corrected nodes must come to the exact moments
NODES_MULTIPLE = 256  # nodes a tensor is padded to a multiple of, so that few shapes are compiled


@dataclass(frozen=True, slots=True, eq=False)
class CellMoments:
    """CellMoments of a histogram by their first two moments: y = ln x inside, rising, and the share of the values."""

    mean: Float[np.ndarray, " cells"]
    variance: Float[np.ndarray, " cells"]
    share: Float[np.ndarray, " cells"]

    def from_cell(self, first: int) -> CellMoments:
        """The cells from that one up."""
        return CellMoments(self.mean[first:], self.variance[first:], self.share[first:])


def cells_of(histogram: BitHistogram) -> CellMoments:
    """A lossless cell is one value; inside a coarse one the density of y runs straight, as its neighbours say."""
    share = histogram.counts / histogram.n
    if histogram.lossless:
        y = np.log(histogram.values())
        return CellMoments(y, np.zeros_like(y), share)
    lower, upper = histogram.edges()
    low, high = np.log(np.maximum(lower, histogram.least)), np.log(upper)
    width, middle = high - low, (low + high) / 2
    # the mean of a density with slope p′ over a cell of width h lies p′h³/12 / mass from its middle
    height = share / width
    touching = np.diff(histogram.keys) == 1
    below, above = np.zeros_like(height), np.zeros_like(height)
    below[1:][touching], above[:-1][touching] = height[:-1][touching], height[1:][touching]
    slope = (above - below) / (2 * width)
    shift = np.clip(slope * width**3 / (12 * share), -width / 4, width / 4)
    return CellMoments(middle + shift, width**2 / 12 - shift**2, share)


def nodes_of(stats: Sequence[TensorStats]) -> Points:
    """Nodes of many tensors, each with a histogram, more than one value and a spread; y less its mean."""
    rows = []
    for s in stats:
        if s.histogram is None:
            raise TypeError("statistics without a histogram have no nodes")
        y, weight = _two_point(cells_of(s.histogram), s.moments.mean, s.moments.sigma)
        rows.append((y, _calibrated(y, weight, s.moments)))
    return _stack(rows)


def tail_nodes(cells: Sequence[CellMoments], log_xmin: Float[np.ndarray, " tails"]) -> Points:
    """Nodes of the cells that lie above each tail's xmin, y less ln xmin."""
    rows = []
    for tail, origin in zip(cells, log_xmin, strict=True):
        excess = tail.share @ (tail.mean - origin) / tail.share.sum()
        y, weight = _two_point(tail, origin, max(float(excess), 1e-12))
        rows.append((y, weight / weight.sum()))
    return _stack(rows)


def _stack(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Points:
    longest = max((len(y) for y, _ in rows), default=0)
    length = -(-longest // NODES_MULTIPLE) * NODES_MULTIPLE
    y, weight = np.zeros((len(rows), length)), np.zeros((len(rows), length))
    for i, (row_y, row_weight) in enumerate(rows):
        y[i, : len(row_y)], weight[i, : len(row_y)] = row_y, row_weight
    return Points(y, weight)


def bin_starts(z: Float[np.ndarray, " cells"]) -> np.ndarray:
    """Index of the first cell of every occupied bin, for rising z: bins WIDTH wide within CENTRE, then ever wider."""
    beyond = np.floor(np.log(np.maximum(np.abs(z), CENTRE) / CENTRE) / np.log(GROWTH))
    inner = np.floor(np.clip(z, -CENTRE, CENTRE) / WIDTH)
    number = inner + np.sign(z) * beyond
    return np.flatnonzero(np.diff(number, prepend=number[0] - 1))


def _two_point(cells: CellMoments, centre: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The two-point Gauss rule of every occupied bin, bins even in (y − centre)/scale: nodes less centre, weights."""
    t = cells.mean - centre
    first = bin_starts(t / scale)
    size = np.diff(np.append(first, len(t)))

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, first)

    mass = total(cells.share)
    origin = t[first]
    d = t - np.repeat(origin, size)
    shift = total(cells.share * d) / mass
    d = d - np.repeat(shift, size)
    variance = total(cells.share * (d * d + cells.variance)) / mass
    third = total(cells.share * (d**3 + 3 * d * cells.variance)) / mass
    spread = np.sqrt(variance)
    single = variance == 0
    skew = np.where(single, 0, third / np.where(single, 1, variance * spread))
    # the standardised nodes have product −1 and sum skew; the smaller comes by division, which loses no digits
    root = np.sqrt(skew * skew + 4)
    high = np.where(skew > 0, (root + skew) / 2, 2 / (root - skew))
    low = -1 / high
    middle = origin + shift
    y = np.stack([middle + spread * low, middle + spread * high], axis=1)
    weight = np.stack([np.where(single, 1, high / (high - low)), np.where(single, 0, -low / (high - low))], axis=1)
    kept = weight.reshape(-1) > 0
    return y.reshape(-1)[kept], (weight * mass[:, None]).reshape(-1)[kept]


def _calibrated(y: np.ndarray, weight: np.ndarray, moments: LogMoments) -> np.ndarray:
    """Weights moved by the least amount that reproduces the exact moments (generalised regression)."""
    n, sigma = moments.n, moments.sigma
    with np.errstate(all="ignore"):  # where Σx or Σx² has left the range of floats, nothing is corrected
        log_mean_x = np.log(moments.sum_x / n) - moments.mean
        log_mean_x2 = np.log(moments.sum_x2 / n) - 2 * moments.mean
        z = y / sigma
        basis = np.stack([np.ones_like(z), z, z**2, z**3, z**4, np.exp(y - log_mean_x), np.exp(2 * y - log_mean_x2)])
        exact = np.asarray([1, 0, 1, moments.m3 / n / sigma**3, moments.m4 / n / sigma**4, 1, 1])
        missing = exact - basis @ weight
        gram = (basis * weight) @ basis.T
    if not (np.isfinite(gram).all() and np.isfinite(missing).all()):
        return weight
    correction = np.linalg.lstsq(gram, missing, rcond=1e-12)[0] @ basis
    moved = weight * (1 + correction)
    moved = moved / moved.sum()
    left = exact - basis @ moved  # of fewer nodes than moments, some is: then not even the total would be right
    agrees = np.all(np.abs(left) <= AGREES * (1 + np.abs(exact)))
    return moved if agrees and np.abs(correction).max() < CORRECTED_MOST else weight
