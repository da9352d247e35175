"""RoundedCells: what it gathers is what the cells' definition says, however the values come."""

from __future__ import annotations

import numpy as np
import pytest

from teleojax import CellCounts
from teleojax.stats import RoundedCells
from teleojax.stats import _rounded as module

RNG = np.random.default_rng(0)
CODES = RNG.integers(-8, 8, (500, 32))
SCALES = np.exp(RNG.normal(-4, 0.3, 500)).astype(np.float32)
VALUES = (CODES * SCALES[:, None]).astype(np.float32)


def gathered(values: np.ndarray, spacing: np.ndarray, *, pieces: int = 1) -> RoundedCells:
    sums = RoundedCells()
    for v, s in zip(np.array_split(values, pieces), np.array_split(spacing, pieces), strict=True):
        sums.add(v.reshape(-1), s)
    return sums


def same(a: CellCounts, b: CellCounts, rtol: float = 1e-6) -> None:
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_allclose(a.lower, b.lower, rtol=rtol)
    np.testing.assert_allclose(a.upper, b.upper, rtol=rtol)


def test_one_scale_gives_the_cells_of_its_codes() -> None:
    scale = np.full(500, 0.25, np.float32)
    same(gathered(CODES * np.float32(0.25), scale).cells(), CellCounts.from_codes(CODES, 0.25))


def test_many_scales_give_them_within_their_step() -> None:
    """Each value lies in its cell, and this is as wide as its scale, within half a step of 1%."""
    found = gathered(VALUES, SCALES).cells()
    assert found.n == VALUES.size
    assert len(found.counts) < 2500
    exact = CellCounts.from_codes(CODES, SCALES[:, None].astype(np.float64))
    for name in ("lower", "upper"):
        edges = [np.repeat(getattr(cells, name), cells.counts) for cells in (found, exact)]
        np.testing.assert_allclose(np.sort(edges[0]), np.sort(edges[1]), rtol=0.012, atol=1e-12)


@pytest.mark.parametrize("pieces", [2, 7, 500])
def test_pieces_do_not_matter(pieces: int) -> None:
    same(gathered(VALUES, SCALES, pieces=pieces).cells(), gathered(VALUES, SCALES).cells(), rtol=1e-12)


def test_merging_is_gathering_both() -> None:
    a, b = gathered(VALUES[:200], SCALES[:200]), gathered(VALUES[200:], SCALES[200:])
    same(a.merge(b).cells(), gathered(VALUES, SCALES).cells(), rtol=1e-12)
    same(b.merge(a).cells(), a.merge(b).cells(), rtol=1e-12)
    same(a.merge(RoundedCells()).cells(), a.cells(), rtol=0)
    assert len(a.keys) == len(gathered(VALUES[:200], SCALES[:200]).keys)  # merging leaves both as they were


def test_levels_that_do_not_begin_at_zero() -> None:
    sums = RoundedCells()
    sums.add(np.asarray([0.25, -0.25, 1.25, 7.25], np.float32), np.asarray([1.0], np.float32))
    cells = sums.cells()
    np.testing.assert_allclose(cells.lower, [0, 0.75, 6.75])
    np.testing.assert_allclose(cells.upper, [0.75, 1.75, 7.75])
    assert cells.counts.tolist() == [2, 1, 1]


def test_what_has_no_cell_is_left_out() -> None:
    values = np.asarray([[1, 2], [3, np.nan], [np.inf, 5], [6, 7], [8, 9]], np.float32)
    spacing = np.asarray([1, 1, 1, 0, np.nan], np.float32)
    assert gathered(values, spacing).cells().n == 4
    assert len(gathered(values[3:], spacing[3:]).keys) == 0
    assert len(gathered(values[:0], spacing[:0]).keys) == 0


def test_values_far_from_zero_have_narrow_cells() -> None:
    sums = RoundedCells()
    sums.add(np.asarray([1e6, 1.0, 3e38, -2.0], np.float32), np.asarray([1.0, 1e-30], np.float32))
    cells = sums.cells()
    assert cells.n == 4
    for value, lower, upper in zip([1, 2, 1e6, 3e38], cells.lower, cells.upper, strict=True):
        assert lower < value < upper
        assert upper / lower - 1 < 1.01 or value == 1


def test_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time and in the end; counts stay whole, and scales are means over the wider steps."""
    monkeypatch.setattr(module, "MOST_HELD", 300)
    monkeypatch.setattr(module, "MOST_CELLS", 100)
    sums = gathered(VALUES, SCALES, pieces=10)
    assert len(sums.keys) <= 300
    cells = sums.cells()
    assert len(cells.counts) <= 100
    assert cells.n == VALUES.size
    largest = np.abs(VALUES).max()
    assert 0.5 * largest < cells.upper.max() < 2 * largest
    monkeypatch.undo()
    fine = gathered(VALUES, SCALES)
    same(sums.merge(fine).cells(), fine.merge(sums).cells(), rtol=1e-12)
    assert sums.merge(fine).cells().n == 2 * VALUES.size
