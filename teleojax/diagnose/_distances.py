"""Distances between the values of a histogram and a lognormal: sup-CDF, Wasserstein-1 in ln x, probability plot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from teleojax.stats import BitHistogram


@dataclass(frozen=True, slots=True)
class LognormalDistances:
    """`ks` = sup|F_n − F|; `w1_log` = ∫|F_n − F| d ln x, in units of ln x; `r2`, the squared correlation of ln x with
    normal quantiles at the mid-ranks. F_n is the distribution of the stored values, F that of the lognormal.
    """

    ks: float
    w1_log: float
    r2: float


def lognormal_distances(histogram: BitHistogram, mu: float, sigma: float) -> LognormalDistances:
    """The distances for LN(mu, sigma), sigma > 0, of a histogram that is not empty.

    Of a lossless histogram they are exact, steps and ties included. Where a cell stands for a range, F_n is known
    exactly at its edges and taken as straight in ln x between them: `ks` is then the largest gap at an edge.
    """
    n = histogram.n
    after = np.cumsum(histogram.counts) / n
    before = np.concatenate([[0.0], after[:-1]])
    y = np.log(histogram.values())
    if histogram.lossless:
        low = high = (y - mu) / sigma
    else:
        with np.errstate(divide="ignore"):  # the cell that begins at zero begins at −inf
            low, high = ((np.log(edge) - mu) / sigma for edge in histogram.edges())
        low = np.maximum(low, -1e3)
    below, above = before - ndtr(low), after - ndtr(high)
    ks = float(max(np.abs(below).max(), np.abs(above).max()))
    inside = float(np.sum(absolute_area(below, above, high - low)))
    gaps = float(np.sum(_step_area(after[:-1], high[:-1], low[1:])))
    tails = float(_normal_integral(low[0]) + _normal_integral(-high[-1]))
    q = ndtri((before + after) / 2)
    return LognormalDistances(
        ks, float(sigma * (inside + gaps + tails)), squared_correlation(q, y, histogram.counts / n)
    )


def absolute_area(a: np.ndarray, b: np.ndarray, width: np.ndarray) -> Float[np.ndarray, " k"]:
    """∫|D| over intervals on which D runs straight from a to b."""
    size = np.abs(a) + np.abs(b)
    crossing = (a * a + b * b) / np.where(size > 0, size, 1)
    return width / 2 * np.where(a * b < 0, crossing, size)


def _normal_integral(z: np.ndarray | float) -> Any:
    """∫_{−∞}^z Φ = zΦ(z) + φ(z)."""
    z = np.asarray(z, np.float64)
    return z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _step_area(level: np.ndarray, a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, " k"]:
    """∫_a^b |level − Φ|: exact, with the one crossing where Φ = level."""
    cross = np.clip(ndtri(level), a, b)
    rise = _normal_integral(cross)
    return level * (cross - a) - (rise - _normal_integral(a)) + (_normal_integral(b) - rise) - level * (b - cross)


def squared_correlation(u: np.ndarray, v: np.ndarray, weight: np.ndarray) -> float:
    u, v = u - weight @ u, v - weight @ v
    spread = (weight @ u**2) * (weight @ v**2)
    return float((weight @ (u * v)) ** 2 / spread) if spread > 0 else math.nan
