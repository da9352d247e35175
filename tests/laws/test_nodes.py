"""Nodes stand for the values: total, moments, likelihoods; and powers of two move scales alone."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import teleojax as tj
from teleojax import FAMILIES, BitHistogram, TensorStats
from teleojax.fits import maximum_likelihood
from teleojax.fits._nodes import NODES_MULTIPLE, WIDTH, bin_starts, cells_of, nodes_of, tail_nodes
from teleojax.fits._tail import find_tail

VALUES = hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(2.0**-20, 2.0**20, width=32))
LAWS = {
    "lognormal": {"mu": -4.0, "sigma": 1.1},
    "halfnormal": {"scale": 0.02},
    "weibull": {"shape": 0.8, "scale": 0.02},
    "gamma": {"shape": 0.6, "scale": 0.02},
    "half_t": {"df": 4.0, "scale": 0.02},
    "loglogistic": {"shape": 1.6, "scale": 0.02},
}
LOG_DENSITIES = {  # of ln x, up to constants, at z = ln x − ln 0.02
    "lognormal": lambda z: -0.4 * z * z,
    "halfnormal": lambda z: z - 0.5 * np.exp(2 * z),
    "weibull": lambda z: 0.8 * z - np.exp(0.8 * z),
    "half_t": lambda z: z - 2.5 * np.logaddexp(2 * z - math.log(4), 0),
    "loglogistic": lambda z: 1.6 * z - 2 * np.logaddexp(1.6 * z, 0),
}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def stats_of(values: np.ndarray) -> TensorStats:
    return tj.measure({"w": values})["w"]


def lossless(values: np.ndarray) -> TensorStats:
    """Of float32 values, without a program for every number of them."""
    histogram = BitHistogram.from_keys("float32", 0, values.view(np.uint32))
    return TensorStats.from_lossless(histogram, n_zero=0, n_nonfinite=0, n_negative=0)


def nodes(stats: TensorStats) -> tuple[np.ndarray, np.ndarray]:
    """y and weights, padding left out."""
    points = nodes_of([stats])
    assert points.y.shape[1] % NODES_MULTIPLE == 0
    kept = points.weight[0] != 0
    return points.y[0][kept] + stats.moments.mean, points.weight[0][kept]


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_nodes_of_any_values(values: np.ndarray) -> None:
    """Weights are positive and sum to 1; lossless, the first three moments of ln x are those of the values."""
    y = np.log(values.astype(np.float64))
    assume(np.ptp(y) > 1e-3)
    node, weight = nodes(lossless(values))
    assert weight.min() > 0
    assert weight.sum() == pytest.approx(1, abs=1e-12)
    assert len(node) <= len(np.unique(values))  # no bin has more nodes than values
    assert y.min() - WIDTH * y.std() <= node.min() <= node.max() <= y.max() + WIDTH * y.std()
    for k in (1, 2, 3):
        of_values, spread = np.mean((y - y.mean()) ** k), y.std() ** k
        assert weight @ (node - y.mean()) ** k == pytest.approx(of_values, abs=1e-8 * spread), k


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=30).filter(lambda powers: len(set(powers)) > 1))
def test_values_that_lie_apart_are_their_own_nodes(powers: list[int]) -> None:
    """An octave is more than a bin as long as the values spread over fewer than twenty standard deviations."""
    values = 2.0 ** np.asarray(powers, np.float32)
    node, weight = nodes(lossless(values))
    places, counts = np.unique(values.astype(np.float64), return_counts=True)
    assume(len(bin_starts((np.log(places) - np.log(values).mean()) / np.log(values).std())) == len(places))
    np.testing.assert_allclose(np.exp(node), places, rtol=1e-12)
    np.testing.assert_allclose(weight, counts / len(values), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAWS)
def test_likelihoods_and_moments_are_those_of_the_values(name: str, dtype: type) -> None:
    """Of a smooth law: Σy … Σy⁴, Σx, Σx² exactly; its mean log-density to 1e-7, coarse cells to 1e-5."""
    for n in (500, 100_000):
        values = FAMILIES[name].sample(np.random.default_rng(0), LAWS[name], n).astype(dtype)
        stats = stats_of(values[values > 0])
        node, weight = nodes(stats)
        moments, d = stats.moments, node - stats.moments.mean
        assert weight @ d == pytest.approx(0, abs=1e-10 * moments.sigma)
        for k, total in ((2, moments.m2), (3, moments.m3), (4, moments.m4)):
            assert weight @ d**k == pytest.approx(total / moments.n, rel=1e-8, abs=1e-9 * moments.sigma**k), k
        assert weight @ np.exp(node) == pytest.approx(moments.sum_x / moments.n, rel=1e-8)
        assert weight @ np.exp(2 * node) == pytest.approx(moments.sum_x2 / moments.n, rel=1e-8)
        within = 1e-7 if stats.histogram.lossless else 1e-5
        z, of_nodes = np.log(values[values > 0].astype(np.float64) / 0.02), node - math.log(0.02)
        for other, log_density in LOG_DENSITIES.items():
            full = float(np.mean(log_density(z)))
            assert weight @ log_density(of_nodes) == pytest.approx(full, abs=within * max(1, abs(full))), (n, other)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=400, unique=True), st.integers(0, 100))
def test_tail_nodes_sum_to_one_and_keep_the_mean(counts: list[int], first: int) -> None:
    values = np.sort(np.asarray(counts, np.float32))
    stats = lossless(values)
    cells = cells_of(stats.histogram).from_cell(min(first, len(values) - 2))
    origin = float(cells.mean[0]) - 0.01
    points = tail_nodes([cells], np.asarray([origin]))
    assert points.weight.sum() == pytest.approx(1, abs=1e-12)
    assert (points.weight * points.y).sum() == pytest.approx(np.mean(cells.mean) - origin, rel=1e-12)
    assert find_tail(stats, float(values[0])).n in (len(values), len(values) - 1)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e6, 1e6)))
def test_bins_are_narrow_in_the_middle_and_few_outside(z: np.ndarray) -> None:
    z = np.unique(z)
    start = bin_starts(z)
    assert start[0] == 0
    assert (np.diff(start) > 0).all()
    for part in np.split(z, start[1:]):
        middle = np.abs(part).max() <= 8
        assert np.ptp(part) <= (WIDTH * (1 + 1e-9) if middle else 0.25 * np.abs(part).max())


SCALED: dict[str, dict[str, Any]] = {  # families whose parameters are scales and shapes, or locations of ln x
    "weibull": {"shape": 0.8, "scale": 0.02},
    "half_t": {"df": 4.0, "scale": 0.02},
    "pareto": {"alpha": 1.7, "xmin": 0.02},
    "lognormal": {"mu": -4.0, "sigma": 1.1},
    "exponential": {"scale": 0.02},
}
SCALES, LOCATIONS = ("scale", "xmin"), ("mu",)
POWERS = (2.0**-20, 0.5, 2.0**7, 2.0**40)
OTHERS = (0.0137, 300.3)


@pytest.mark.parametrize("name", SCALED)
def test_a_factor_moves_scales_alone(name: str) -> None:
    """A power of two keeps every value in its cell: scales move by exactly that factor, shapes by nothing, the density
    by −ln c. Any other factor rounds lossless values anew, and moves coarse ones into other cells.
    """
    family = FAMILIES[name]
    arrays = {}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        for n in (3000, 20_000):
            x = family.sample(np.random.default_rng(1), SCALED[name], n).astype(dtype).astype(np.float64)
            factors = (1.0, *POWERS, *(OTHERS if dtype is np.float32 else ()))
            arrays |= {f"{np.dtype(dtype)} {n} {c}": (c * x).astype(dtype) for c in factors}
    measured = tj.measure(arrays)
    found = dict(zip(measured, maximum_likelihood([family], list(measured.stats.values())), strict=True))
    for label, fits in found.items():
        dtype, n, factor = label.split()
        c, fit, base = float(factor), fits[name], found[f"{dtype} {n} 1.0"][name]
        near = 1e-9 if c in (1.0, *POWERS) else 1e-6 if n == "3000" else 1e-3
        if near > 1e-9 and family.tail:
            continue  # the tail may begin one cell further on
        for key, value in fit.params.items():
            want = base.params[key] * c if key in SCALES else base.params[key] + math.log(c) * (key in LOCATIONS)
            assert value == pytest.approx(want, rel=near), (label, key)
        assert fit.loglik_per_value + math.log(c) == pytest.approx(base.loglik_per_value, abs=near), label
        assert (fit.status, fit.n) == (base.status, base.n), label
        for key, value in fit.se.items():
            assert value == pytest.approx(base.se[key] * (c if key in SCALES else 1), rel=1e3 * near), (label, key)
