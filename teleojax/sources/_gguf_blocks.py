"""Blocks of quantised values: what they stand for, by the `gguf` package, and how far apart their levels lie.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from teleojax.sources._storage import MappedFile

PIECE_VALUES = 1 << 18  # dequantised at a time: what the package holds meanwhile stays in cache and below 8 MiB


class Dequantised:
    """The values of one quantised tensor as a storage of float32, made as they are asked for.

    The blocks lie in `nbytes` bytes of the file from `offset` on. Windows may come in any order.
    """

    mapped: bool = False
    size: int | None
    position: int = 0

    def __init__(self, file: MappedFile, offset: int, nbytes: int, kind: Any) -> None:
        import gguf

        self._file, self._offset, self._kind = file, offset, kind
        self._values, self._bytes = gguf.GGML_QUANT_SIZES[kind]
        self.size = 4 * (nbytes // self._bytes * self._values)

    def __enter__(self) -> Dequantised:
        self._file.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file."""
        self._file.__exit__(*exc)

    def prepare(self, start: int, stop: int) -> None:
        """Bring the blocks of bytes [start, stop) into the page cache."""
        first, last = self._blocks(start, stop)
        self._file.prepare(self._offset + first * self._bytes, self._offset + last * self._bytes)

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop) of the values, in `buffer`."""
        out = np.empty(stop - start, np.uint8) if buffer is None else buffer[: stop - start]
        step = PIECE_VALUES // self._values
        first, last = self._blocks(start, stop)
        self.prepare(start, stop)
        for block in range(first, last, step):
            begin = 4 * self._values * block
            values = _dequantise(self._raw(block, min(block + step, last)), self._kind).view(np.uint8)
            a, b = max(start, begin), min(stop, begin + len(values))
            out[a - start : b - start] = values[a - begin : b - begin]
        self.position = max(self.position, stop)
        return out

    def spacing(self, start: int, stop: int) -> np.ndarray | None:
        """How far apart the levels lie to which values were rounded: float32, of each equal part of [start, stop).

        These are the bytes of whole blocks. None for types with levels of unequal spacing; 0 in a part of one value.
        """
        measure = SPACING.get(self._kind.name)
        if measure is None:
            return None
        first, last = self._blocks(start, stop)
        with np.errstate(all="ignore"):
            return np.abs(measure(self._raw(first, last).reshape(last - first, -1))).reshape(-1)

    def _blocks(self, start: int, stop: int) -> tuple[int, int]:
        return start // (4 * self._values), -(-stop // (4 * self._values))

    def _raw(self, first: int, last: int) -> np.ndarray:
        return self._file.window(self._offset + first * self._bytes, self._offset + last * self._bytes, None)


def _dequantise(raw: np.ndarray, kind: Any) -> np.ndarray:
    import gguf

    with np.errstate(all="ignore"):  # a damaged scale may be inf: its values are not finite, and counted so
        return gguf.quants.dequantize(raw.reshape(1, -1), kind).reshape(-1)  # the package splits rows, a block each


def can_dequantise(kind: Any) -> bool:
    """Whether the package knows the type."""
    import gguf

    try:
        _dequantise(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 80) * (blocks[:, :16] & 15)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    low = blocks[:, 96:104, None] >> np.asarray([0, 4], np.uint8)
    high = blocks[:, 104:108, None] >> np.asarray([0, 2, 4, 6], np.uint8)
    low, high = (np.swapaxes(part, 1, 2).reshape(-1, 16) for part in (low & 15, high & 3))
    return _half(blocks, 108) * ((low | high << 4).astype(np.float32) - 32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    first, rest = blocks[:, 4:8], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 2) & 48)], axis=1)
    return _half(blocks, 0) * scales


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8)


def _one(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0)


SPACING: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # blocks -> spacing of each of their equal parts, in order
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), _one),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q4_k,
    "Q6_K": _q6_k,
}
