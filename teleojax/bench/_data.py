"""Seeded weights to measure on: never zeros, never a small array that stays in cache."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from teleojax.blocks import ROW, aligned_buffer
from teleojax.stats._bithist import float_dtype, magnitude_mask, pattern_dtype

SCALE = 0.02  # of the normal weights, as networks are initialised
CHUNK = 1 << 20  # values drawn at a time by one thread: each chunk has its own generator
FORMAT_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def weights(size: int, dtype: str = "float32", *, seed: int = 0) -> np.ndarray:
    """`size` draws of N(0, 0.02²) stored as `dtype`, one-dimensional, at a 64-byte-aligned address.

    Drawn in float32 chunk by chunk on all cores; the values depend on seed, type and size alone. What would be stored
    as zero is stored as 0.02 instead, so that every contestant may take logarithms.
    """
    kind, unsigned = float_dtype(dtype), pattern_dtype(dtype)
    values = aligned_buffer(size * kind.itemsize).view(kind)
    bits = values.view(unsigned)
    one = np.asarray(SCALE).astype(kind).view(unsigned)
    mask = unsigned.type(magnitude_mask(dtype))

    def draw(start: int) -> None:
        stop = min(start + CHUNK, size)
        rng = np.random.Generator(np.random.SFC64([seed, start // CHUNK]))
        drawn = rng.standard_normal(stop - start, dtype=np.float32)
        drawn *= np.float32(SCALE)
        values[start:stop] = drawn.astype(kind)
        part = bits[start:stop]
        part[part & mask == 0] = one

    with ThreadPoolExecutor(usable_cores()) as threads:
        list(threads.map(draw, range(0, size, CHUNK)))
    return values


def rows_of(values: np.ndarray) -> np.ndarray:
    """The bit patterns of one-dimensional values as (rows, ROW) of an unsigned type; a last part row is left out."""
    bits = values.view(pattern_dtype(values.dtype.name))
    return bits[: len(bits) // ROW * ROW].reshape(-1, ROW)


def split_unevenly(values: np.ndarray, n_tensors: int) -> dict[str, np.ndarray]:
    """The values cut into tensors of different, odd sizes that add up to all: views, nothing is copied."""
    cuts = np.linspace(0.5, 1.5, n_tensors).cumsum()
    ends = (cuts / cuts[-1] * len(values)).astype(np.int64) | 1
    ends[-1] = len(values)
    starts = np.concatenate([[0], ends[:-1]])
    return {f"layers.{i}.weight": values[a:b] for i, (a, b) in enumerate(zip(starts, ends, strict=True))}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays one after another as a .safetensors file."""
    entries, offset = {}, 0
    for name, array in tensors.items():
        stop = offset + array.nbytes
        dtype = FORMAT_NAMES[array.dtype.name]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for array in tensors.values():
            f.write(array.reshape(-1).view(np.uint8).data)


def log_moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of ln|w| over the non-zero values, by plain NumPy and nothing of teleojax.

    8- and 16-bit types by exact counts of their patterns, others block by block: logarithms in float64, sums in
    extended precision. It is what answers are checked against before anything is timed.
    """
    dtype = values.dtype.name
    if values.itemsize <= 2:
        bits = values.view(pattern_dtype(dtype))
        parts = np.array_split(bits, max(1, len(bits) // CHUNK))
        with ThreadPoolExecutor(usable_cores()) as threads:
            counted = threads.map(lambda part: np.bincount(part, minlength=1 << (8 * values.itemsize)), parts)
            counts = sum(counted, np.zeros(1 << (8 * values.itemsize), np.int64))
        patterns = np.arange(len(counts)).astype(bits.dtype).view(values.dtype)
        with np.errstate(all="ignore"):
            y = np.log(np.abs(patterns.astype(np.float64)))
        seen = (counts > 0) & np.isfinite(y)
        y, counts = y[seen], counts[seen]
        mean = y @ counts / counts.sum()
        return float(mean), float(np.sqrt((y - mean) ** 2 @ counts / counts.sum()))
    centre = np.log(SCALE)  # near the mean of every sample made here: the square of the sum stays small

    def sums(part: np.ndarray) -> np.ndarray:
        x = np.abs(part.astype(np.float64))
        d = np.log(x[x > 0]) - centre
        return np.asarray([len(d), np.sum(d, dtype=np.longdouble), np.sum(d * d, dtype=np.longdouble)], np.longdouble)

    parts = np.array_split(values, max(1, len(values) // CHUNK))
    with ThreadPoolExecutor(usable_cores()) as threads:
        n, first, second = np.sum(list(threads.map(sums, parts)), axis=0)
    return float(centre + first / n), float(np.sqrt(second / n - (first / n) ** 2))
