"""Pure planning: tensor specifications -> windows of bytes -> rows on a fixed grid. No input or output, no arrays.

The grid is that of the storage: row r of an item size covers bytes [r·ROW·itemsize, (r+1)·ROW·itemsize), and BLOCK_ROWS
rows make a block. Rows that lie in one tensor are read in place; what is left at a tensor's ends are fragments. Both
are functions of the file alone, so that no statistic depends on the memory budget or on where a block was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from teleojax._errors import UsageError
from teleojax.sources import TensorSpec

ROW = 8192  # values a row: float32 sums over more lose the variance (1e-5 at 2^20), over fewer cost time
GRID_BYTES = ROW * 8  # a whole number of rows for every item size
BLOCK_ROWS = 256  # rows whose partials merge first, in order
BLOCK_BYTES = BLOCK_ROWS * GRID_BYTES  # a whole number of blocks for every item size
WINDOW_BYTES = 4 * BLOCK_BYTES  # 64 MiB: a call on fewer values costs up to 3x more a value
FRAME_ROWS = 64  # rows of the small call, for what is too little for a whole window
BUFFERS = 3  # windows in memory at once: one being collected, one in work, one filling


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one tensor (its index in the plan's tensors) that lies in one window: storage bytes [start, stop)."""

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Window:
    """Storage bytes [start, stop) to have in memory at once, and the pieces to take from them.

    `start` is a multiple of GRID_BYTES, and so of every row.
    """

    start: int
    stop: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """A piece cut by the row grid: whole rows [first_row, stop_row) and fragments as byte ranges of the storage."""

    first_row: int
    stop_row: int
    fragments: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows [first, first + size) of a window for one call; it answers for rows [own_first, own_stop) among them."""

    first: int
    size: int
    own_first: int
    own_stop: int


def window_bytes(budget_bytes: int | None) -> int:
    """The window length that keeps BUFFERS windows, and one more for results, within the budget.

    Raises UsageError below the least that a stream can be read with.
    """
    if budget_bytes is None:
        return WINDOW_BYTES
    least = (BUFFERS + 1) * BLOCK_BYTES
    if budget_bytes < least:
        raise UsageError(
            "memory budget",
            found=f"{budget_bytes} bytes",
            needed=f"at least {least} bytes",
            remedy="Allow more, or leave the budget out.",
        )
    return min(WINDOW_BYTES, budget_bytes // least * BLOCK_BYTES)


def _grid_cut(spec: TensorSpec, line: int) -> int:
    """Where a tensor is cut at a grid line: there, or after the value that crosses it when the tensor is unaligned."""
    return line + (spec.offset - line) % (spec.nbytes // spec.size)


def plan_windows(specs: Sequence[TensorSpec], length: int, start: int = 0, stop: int | None = None) -> list[Window]:
    """Cover the tensors of one storage, or bytes [start, stop) of it, with windows of at most `length` bytes.

    `length` is a multiple of BLOCK_BYTES. Windows without a tensor are left out. A tensor's pieces come in rising order
    and add up to what of the tensor lies in the range. An unaligned tensor may reach past a window's end, and past
    `stop`, by less than one value: a value belongs to where it begins.
    """
    pieces: dict[int, list[Piece]] = {}
    for index, spec in enumerate(specs):
        at, end = clip(spec, start, stop)
        while at < end:
            number = at // length
            cut = min(end, _grid_cut(spec, (number + 1) * length))
            pieces.setdefault(number, []).append(Piece(index, at, cut))
            at = cut
    windows = []
    for number in sorted(pieces):
        mine = tuple(sorted(pieces[number], key=lambda p: (p.start, p.tensor)))
        begin = max(number * length, start // GRID_BYTES * GRID_BYTES)
        windows.append(Window(begin, max(p.stop for p in mine), mine))
    return windows


def clip(spec: TensorSpec, start: int, stop: int | None) -> tuple[int, int]:
    """First and last byte of a tensor's values that begin in [start, stop); if there are none the last is not above."""
    first, last = spec.offset, spec.offset + spec.nbytes
    begin = first if first >= start else _grid_cut(spec, start)
    return begin, last if stop is None or last <= stop else max(first, _grid_cut(spec, stop))


def split_piece(spec: TensorSpec, piece: Piece) -> Split:
    """Cut a piece of a tensor by the row grid of its item size.

    An unaligned tensor has no rows that can be read in place: it is all fragments, of a row each.
    """
    itemsize = spec.nbytes // spec.size
    row_bytes = ROW * itemsize
    first, stop = -(-piece.start // row_bytes), piece.stop // row_bytes
    if spec.offset % itemsize == 0 and first < stop:
        ends = ((piece.start, first * row_bytes), (stop * row_bytes, piece.stop))
        return Split(first, stop, tuple((a, b) for a, b in ends if a < b))
    lines = range(first * row_bytes, piece.stop, row_bytes)
    cuts = [piece.start, *(c for c in (_grid_cut(spec, line) for line in lines) if piece.start < c < piece.stop)]
    return Split(0, 0, tuple(zip(cuts, [*cuts[1:], piece.stop], strict=True)))


def plan_frames(spans: Sequence[tuple[int, int]], first: int, n_rows: int, large: int) -> list[Frame]:
    """Calls of two sizes, `large` and FRAME_ROWS, that answer for every row of `spans` (row ranges) once.

    Rows [0, n_rows) are in memory and `first` is where the window begins among them; `large` rows from there on hold
    all spans. One large call when at least half of it is wanted and the memory is there, else small ones where rows
    are wanted. A frame may hold rows that nobody wants; only a memory of fewer than FRAME_ROWS rows is overreached.
    """
    if 2 * sum(stop - start for start, stop in spans) >= large and n_rows >= large:
        return [Frame(min(first, n_rows - large), large, first, n_rows)]
    numbers = sorted({k for start, stop in spans for k in range(start // FRAME_ROWS, -(-stop // FRAME_ROWS))})
    last = max(0, n_rows - FRAME_ROWS)
    return [Frame(min(k * FRAME_ROWS, last), FRAME_ROWS, k * FRAME_ROWS, (k + 1) * FRAME_ROWS) for k in numbers]
