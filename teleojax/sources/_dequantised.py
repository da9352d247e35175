"""Quantised values as a storage of float32: level of the code · scale, made tile by tile as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

PIECE_VALUES = 1 << 18  # made at a time: they and what is held meanwhile stay below 8 MiB
LEAST_PART = 256  # values that every question about spacings begins at a multiple of

Index = Callable[[slice], np.ndarray]  # rows or columns -> rows or columns of an array of scales
OfTile = Callable[[slice, slice], np.ndarray]  # rows and columns -> what is known of them, or broadcasts to them


@dataclass(frozen=True, slots=True)
class Levels:
    """The numbers that codes stand for, with the middle and the width of the cell that rounds to each, sign dropped."""

    values: np.ndarray
    middles: np.ndarray
    widths: np.ndarray

    @staticmethod
    def of(table: np.ndarray, *, closed: bool = False) -> Levels:
        """Of a table of levels by code. The outermost cells end at their levels if `closed`, else beyond them as far
        as before them. Levels that are not finite have no cell: its width is NaN.
        """
        values = table.astype(np.float32)
        known = np.isfinite(values)
        levels = np.unique(values[known].astype(np.float64))
        if len(levels) < 2:
            return Levels(values, values, np.full_like(values, np.nan))
        ends = (levels[1:] + levels[:-1]) / 2
        reach = (0.0, 0.0) if closed else (levels[0] - ends[0], levels[-1] - ends[-1])
        ends = np.concatenate([[levels[0] + reach[0]], ends, [levels[-1] + reach[1]]])
        number = np.searchsorted(levels, np.where(known, values, levels[0]))
        middles, widths = (ends[1:] + ends[:-1])[number] / 2, (ends[1:] - ends[:-1])[number]
        with np.errstate(over="ignore"):  # of damaged levels
            cells = [np.where(known, each, np.nan).astype(np.float32) for each in (np.abs(middles), widths)]
        return Levels(values, *cells)


@dataclass(frozen=True, slots=True)
class Grid:
    """rows · columns values in C order. `code` gives codes of a tile, and `scale` float32 that broadcasts against them.

    A code stands for itself, or for one of `levels`; `shared` values in a row one after another have one scale (0: all
    have the same one; otherwise it divides `columns`).
    """

    rows: int
    columns: int
    code: OfTile
    scale: OfTile
    levels: Levels | None = None
    shared: int = 1

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        """Of one tile: float32."""
        code = self.code(rows, columns)
        level = code.astype(np.float32) if self.levels is None else self.levels.values[code]
        return level * self.scale(rows, columns)

    def tiles(self, first: int, last: int) -> Iterator[tuple[slice, slice]]:
        """Tiles of at most PIECE_VALUES that hold values [first, last), each contiguous, in order."""
        at, width = first, self.columns
        while at < last:
            row, column = divmod(at, width)
            if column or last - at < width or width > PIECE_VALUES:
                end = min(width, column + last - at, column + PIECE_VALUES)
                yield slice(row, row + 1), slice(column, end)
                at += end - column
            else:
                n = min((last - at) // width, PIECE_VALUES // width)
                yield slice(row, row + n), slice(0, width)
                at += n * width


class Computed:
    """The values of a grid as a storage. Windows may come in any order, and begin and end at any byte."""

    mapped: bool = False
    size: int | None
    position: int = 0

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.size = 4 * grid.rows * grid.columns

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: codes and scales are read when their window is."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop) of the values, in `buffer`."""
        out = np.empty(stop - start, np.uint8) if buffer is None else buffer[: stop - start]
        at = start // 4 * 4
        for rows, columns in self._grid.tiles(start // 4, -(-stop // 4)):
            with np.errstate(all="ignore"):  # a damaged scale may be inf: its values are not finite, and counted so
                values = self._grid.values(rows, columns)
            found = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            a, b = max(start, at), min(stop, at + len(found))
            out[a - start : b - start] = found[a - at : b - at]
            at += len(found)
        self.position = max(self.position, stop)
        return out

    def spacing(self, start: int, stop: int) -> np.ndarray | None:
        """How far apart the levels lie to which values were rounded: float32, of each equal part of [start, stop).

        Of levels of unequal spacing these are the widths of the values' own cells, a part each.
        """
        grid, first, last = self._grid, start // 4, stop // 4
        if grid.levels is None and not grid.shared:
            with np.errstate(all="ignore"):
                return np.abs(grid.scale(slice(0, 1), slice(0, 1)).reshape(-1))
        each = self._cells(first, last, None if grid.levels is None else grid.levels.widths)
        part = math.gcd(grid.shared, LEAST_PART) if grid.levels is None else 1
        return each[::part]

    def middles(self, start: int, stop: int) -> np.ndarray | None:
        """The middles of the cells of the values in bytes [start, stop), sign dropped; None: the values themselves."""
        return None if self._grid.levels is None else self._cells(start // 4, stop // 4, self._grid.levels.middles)

    def _cells(self, first: int, last: int, by_code: np.ndarray | None) -> np.ndarray:
        """The absolute scale of each value, times what `by_code` has for its code."""
        found = np.empty(last - first, np.float32)
        at = 0
        for rows, columns in self._grid.tiles(first, last):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            n = math.prod(shape)
            with np.errstate(all="ignore"):
                each = np.broadcast_to(np.abs(self._grid.scale(rows, columns)), shape)
                if by_code is not None:
                    each = each * by_code[self._grid.code(rows, columns)]
                found[at : at + n] = each.reshape(-1)
            at += n
        return found


def every(n: int) -> Index:
    """Runs of `n` share an entry."""
    return lambda at: np.arange(at.start, at.stop) // n


def listed(entries: np.ndarray) -> Index:
    """Each has the entry that is listed for it."""
    return lambda at: entries[at]


def every_in(length: int, n: int) -> Index:
    """Runs of `n` share an entry, and begin again after every `length`; the last of them may be shorter."""
    each = -(-length // n)

    def entry(at: slice) -> np.ndarray:
        before, inside = np.divmod(np.arange(at.start, at.stop), length)
        return before * each + inside // n

    return entry


def spread(array: np.ndarray, row: Index, column: Index) -> OfTile:
    """The entries of a two-dimensional array that rows and columns have; an axis of one entry is left to broadcast."""

    def of(rows: slice, columns: slice) -> np.ndarray:
        one = np.zeros(1, np.int64)
        r = row(rows) if array.shape[0] > 1 else one
        c = column(columns) if array.shape[1] > 1 else one
        return array[np.ix_(r, c)]

    return of


def as_float(of: OfTile) -> OfTile:
    """The same as float32."""
    return lambda rows, columns: of(rows, columns).astype(np.float32)
