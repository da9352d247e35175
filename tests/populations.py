"""Statistics of a law itself, or of very many values of it, without drawing them one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from teleojax import FAMILIES, BitHistogram, LogMoments, TensorStats

DROP = 16  # float32 cells of 1/128 octave
EXACT = 10**15  # values that stand for the law: counts are probabilities to 15 digits
PANELS, POINTS = 4000, 8


def exact_stats(name: str, params: dict[str, Any]) -> TensorStats:
    """The law without noise: counts of float32 cells in proportion to their probability, moments by quadrature."""
    keys, share = _cells(name, params)
    counts = np.round(EXACT * share).astype(np.int64)
    histogram = BitHistogram("float32", DROP, keys[counts > 0], counts[counts > 0])
    return TensorStats(_exact_moments(name, params, histogram), histogram)


def drawn_stats(name: str, params: dict[str, Any], n: int, seed: int) -> TensorStats:
    """n values drawn as counts of float32 cells; their moments are those of the middles of the cells."""
    keys, share = _cells(name, params)
    counts = np.random.default_rng(seed).multinomial(n, share / share.sum())
    return TensorStats.from_lossless(
        BitHistogram("float32", DROP, keys[counts > 0], counts[counts > 0]), n_zero=0, n_nonfinite=0, n_negative=0
    )


def _cells(name: str, params: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Keys of all cells that have a probability worth mentioning, and the probabilities."""
    family = FAMILIES[name]
    ends = family.ppf(np.asarray([1e-16, 1 - 1e-16]), params).astype(np.float32)
    first, last = (int(key) for key in ends.view(np.uint32) >> DROP)
    keys = np.arange(first, last + 1)
    lower, upper = BitHistogram("float32", DROP, keys, np.ones_like(keys)).edges()
    low = lower < family.ppf(np.asarray([0.5]), params)
    by_cdf, by_sf = (np.abs(np.diff(f(np.append(lower, upper[-1:]), params))) for f in (family.cdf, family.sf))
    return keys, np.where(low, by_cdf, by_sf)


def _exact_moments(name: str, params: dict[str, Any], histogram: BitHistogram) -> LogMoments:
    """Gauss–Legendre in ln x, from quantile 1e-16 to 1 − 1e-16."""
    family, n = FAMILIES[name], histogram.n
    low, high = np.log(family.ppf(np.asarray([1e-16, 1 - 1e-16]), params))
    node, weight = np.polynomial.legendre.leggauss(POINTS)
    edges = np.linspace(low, high, PANELS + 1)
    half = (edges[1] - edges[0]) / 2
    y = ((edges[:-1] + edges[1:])[:, None] / 2 + half * node).reshape(-1)
    mass = np.tile(half * weight, PANELS) * np.exp(family.logpdf(np.exp(y), params) + y)
    mass = mass / mass.sum()
    mean = float(mass @ y)
    m2, m3, m4 = (float(n * (mass @ (y - mean) ** k)) for k in (2, 3, 4))
    x = np.exp(y)
    sums = (float(n * (mass @ x)), float(n * (mass @ x**2)))
    return LogMoments(n, 0, 0, 0, mean, m2, m3, m4, *sums, float(x[0]), float(x[-1]))
