"""TensorStats as bytes: a JSON header and its arrays, compressed; nothing in them is ever executed."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError
from teleojax.sources._index import FLOAT_DTYPES
from teleojax.stats._bithist import BitHistogram, magnitude_mask, pattern_values
from teleojax.stats._cells import CellCounts
from teleojax.stats._logmoments import LogMoments
from teleojax.stats._tensor import TensorStats

LENGTH = struct.Struct("<I")
FRAME = struct.Struct("<QI")  # of a record: length of the payload, its CRC-32
MOST_VALUES = 1 << 62  # so that the counts of two files can be added
FAULTS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error, zlib.error)
LARGEST = 1 << 28  # bytes that a payload may unpack to: a tensor of 100 groups with every pattern occupied takes less


def pack(header: dict[str, Any], stats: TensorStats | None = None) -> bytes:
    """A header of JSON values, and the statistics: the same bytes for the same numbers."""
    arrays: list[np.ndarray] = []
    body = {**header, "stats": None if stats is None else _describe(stats, arrays)}
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return zlib.compress(LENGTH.pack(len(text)) + text + b"".join(a.tobytes() for a in arrays), level=1)


def unpack(payload: bytes, where: str) -> tuple[dict[str, Any], TensorStats | None]:
    """What `pack` was given. Raises CorruptInputError for anything that it did not write."""
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(payload, LARGEST)
        if not inflate.eof:
            raise ValueError(f"more than {LARGEST} bytes, or an incomplete record")
        (length,) = LENGTH.unpack_from(raw)
        header = json.loads(raw[LENGTH.size : LENGTH.size + length])
        json.dumps(header, ensure_ascii=False).encode()  # an escaped lone surrogate parses, and cannot be printed
        described = header.pop("stats")
        arrays = _Arrays(memoryview(raw)[LENGTH.size + length :])
        stats = None if described is None else _restore(described, arrays)
    except FAULTS as e:
        raise CorruptInputError(
            where,
            found=f"a record that does not hold statistics ({type(e).__name__}: {e})",
            needed="a statistics file that teleojax wrote",
            remedy="Measure again.",
        ) from e
    return header, stats


class _Arrays:
    """Arrays of 64-bit numbers one after another."""

    def __init__(self, raw: memoryview) -> None:
        self._raw, self._at = raw, 0

    def take(self, dtype: str, n: int) -> np.ndarray:
        if not 0 <= n <= (len(self._raw) - self._at) // 8:
            raise ValueError(f"{n} numbers where fewer are left")
        found = np.frombuffer(self._raw, np.dtype(dtype).newbyteorder("<"), count=n, offset=self._at)
        self._at += 8 * n
        return found.astype(dtype)


def _describe(stats: TensorStats, arrays: list[np.ndarray]) -> dict[str, Any]:
    moments = {k: v if isinstance(v, int) else float(v).hex() for k, v in asdict(stats.moments).items()}
    found: dict[str, Any] = {"moments": moments}
    if (h := stats.histogram) is not None:
        arrays += [np.diff(h.keys, prepend=0).astype("<i8"), h.counts.astype("<i8")]
        found["histogram"] = {"dtype": h.dtype, "drop": h.drop, "scale": h.scale.hex(), "cells": len(h.keys)}
    if (c := stats.cells) is not None:
        arrays += [c.lower.astype("<f8"), c.upper.astype("<f8"), c.counts.astype("<i8")]
        found["cells"] = len(c.counts)
    if stats.groups:
        found["groups"] = [_describe(group, arrays) for group in stats.groups]
    return found


def _restore(described: dict[str, Any], arrays: _Arrays) -> TensorStats:
    moments = LogMoments(**{name: _number(name, value) for name, value in described["moments"].items()})
    histogram = cells = None
    if "histogram" in described:
        h = described["histogram"]
        keys, counts = np.cumsum(arrays.take("int64", h["cells"])), arrays.take("int64", h["cells"])
        histogram = BitHistogram(_known(h["dtype"]), int(h["drop"]), keys, counts, float.fromhex(h["scale"]))
        _check(histogram, moments)
    if "cells" in described:
        lower, upper = arrays.take("float64", described["cells"]), arrays.take("float64", described["cells"])
        cells = CellCounts(lower, upper, arrays.take("int64", described["cells"]))
        if not (np.all((lower >= 0) & (lower < upper)) and np.all(cells.counts > 0)):
            raise ValueError("cells that hold nothing")
    groups = tuple(_restore(group, arrays) for group in described.get("groups", ()))
    return TensorStats(moments, histogram, groups, cells)


def _number(name: str, value: Any) -> Any:
    if not name.startswith("n"):
        return float.fromhex(value)
    if type(value) is not int or not 0 <= value <= MOST_VALUES:
        raise ValueError(f"{name} = {value!r}")
    return value


def _known(dtype: Any) -> str:
    if dtype not in FLOAT_DTYPES | {"int8"}:
        raise ValueError(f"type {dtype!r}")
    return dtype


def _check(histogram: BitHistogram, moments: LogMoments) -> None:
    """Counts and moments of the same values."""
    rising = bool(np.all(np.diff(histogram.keys) > 0)) and (not len(histogram.keys) or histogram.keys[0] >= 0)
    if not rising or bool(np.any(histogram.counts <= 0)) or histogram.n != moments.n:
        raise ValueError("counts that do not agree with the moments")
    if not 0 <= histogram.drop < histogram.bits or not 0 < histogram.scale < math.inf:
        raise ValueError("an impossible cell width")
    if len(histogram.keys) and not _is_number(histogram):
        raise ValueError("a cell without a number in it")


def _is_number(histogram: BitHistogram) -> bool:
    """Whether the first cell can hold something other than zero, and the last something finite."""
    first, last = histogram.keys[:1], histogram.keys[-1:]
    most = 128 if histogram.dtype == "int8" else magnitude_mask(histogram.dtype)
    if (histogram.drop == 0 and first[0] == 0) or last[0] > most >> histogram.drop:
        return False
    return histogram.dtype == "int8" or bool(np.isfinite(pattern_values(histogram.dtype, last << histogram.drop))[0])


def each_record(raw: memoryview, start: int) -> Iterator[tuple[int, bytes]]:
    """Payloads of the checksummed records from `start` on, each with where it ends; stops before the first torn one."""
    while start + FRAME.size <= len(raw):
        length, crc = FRAME.unpack_from(raw, start)
        stop = start + FRAME.size + length
        if stop > len(raw) or zlib.crc32(payload := bytes(raw[start + FRAME.size : stop])) != crc:
            return
        yield stop, payload
        start = stop


def record(payload: bytes) -> bytes:
    """A payload with its length and checksum before it."""
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload
