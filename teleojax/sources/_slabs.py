"""Pure planning: a chunked array in C order, cut into slabs that hold whole chunks wherever memory allows it.

A slab is a contiguous run of the array's values in C order that is also a box: one index on each axis before `axis`,
consecutive indices on `axis`, everything after it. A chunk is decompressed whole for every slab that touches it, so
slabs end where chunks end, and span whole rows of chunks (the chunks side by side that share their first indices)
when such a row fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

Box = tuple[tuple[int, int], ...]  # [start, stop) on every axis


@dataclass(frozen=True, slots=True)
class Slabs:
    """The cut of an array of `shape` in chunks of `chunk` (no longer than the shape; at least one axis, none empty).

    `lines` indices of `axis` make a slab, fewer before the edge of a chunk or of the array.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    axis: int
    lines: int

    @property
    def line_size(self) -> int:
        """Values for one index of the axis: everything after it."""
        return math.prod(self.shape[self.axis + 1 :])

    @property
    def times_read(self) -> int:
        """How many slabs touch a chunk at most: 1 unless a row of chunks is larger than a slab may be."""
        return math.prod(self.chunk[: self.axis]) * -(-self.chunk[self.axis] // self.lines)

    def around(self, value: int) -> tuple[int, int]:
        """The values [start, stop) of the slab that holds one value, counted in C order."""
        length, chunk = self.shape[self.axis], self.chunk[self.axis]
        before, index = divmod(value // self.line_size, length)
        edge = index // chunk * chunk
        first = edge + (index - edge) // self.lines * self.lines
        last = min(first + self.lines, edge + chunk, length)
        return (before * length + first) * self.line_size, (before * length + last) * self.line_size

    def boxes(self, start: int, stop: int) -> Iterator[Box]:
        """The boxes, in C order, of values [start, stop) that begin and end with slabs."""
        length, line, last = self.shape[self.axis], start // self.line_size, stop // self.line_size
        while line < last:
            before, index = divmod(line, length)
            n = min(length - index, last - line)
            ahead: list[tuple[int, int]] = []
            for size in reversed(self.shape[: self.axis]):
                before, at = divmod(before, size)
                ahead.insert(0, (at, at + 1))
            yield (*ahead, (index, index + n), *((0, size) for size in self.shape[self.axis + 1 :]))
            line += n


def plan_slabs(shape: tuple[int, ...], chunk: tuple[int, ...], hold: int) -> Slabs:
    """Slabs of at most `hold` values that touch every chunk as few times as a run in C order of that length can.

    A row of chunks on the first axis makes a slab when it fits, and then every chunk is read once. Otherwise the row
    is cut into equal slabs of fewer lines, and where not even one line fits, along the next axis.
    """
    for axis in range(len(shape)):
        fit = hold // math.prod(shape[axis + 1 :])
        if fit:
            slabs_a_chunk = -(-chunk[axis] // fit)
            return Slabs(shape, chunk, axis, -(-chunk[axis] // slabs_a_chunk))
    return Slabs(shape, chunk, len(shape) - 1, 1)


def split_box(box: Box, chunk: tuple[int, ...], most: int) -> Iterator[Box]:
    """The box in parts that touch at most `most` chunks each (one at least), cut where chunks end, in C order."""
    touched = [-(-stop // c) - start // c for (start, stop), c in zip(box, chunk, strict=True)]
    if math.prod(touched) <= max(1, most):
        yield box
        return
    axis = touched.index(max(touched))
    start, stop = box[axis]
    middle = (start // chunk[axis] + touched[axis] // 2) * chunk[axis]
    for half in ((start, middle), (middle, stop)):
        yield from split_box((*box[:axis], half, *box[axis + 1 :]), chunk, most)
