"""`measure_axis`: one lognormal per index along an axis (output neuron, channel, head), all in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from teleojax._errors import UsageError
from teleojax.blocks import ALIGNMENT, ROW, aligned_buffer
from teleojax.engine._compile import compiled_row_fits, compiled_row_sums
from teleojax.engine._measure import Selection
from teleojax.sources import Storage, TensorSpec, open_source
from teleojax.sources._index import by_storage, natural_key
from teleojax.stats import AxisFit, Partials, careful_rows, row_moments
from teleojax.stats._bithist import float_dtype, pattern_dtype

CALL_VALUES = 1 << 28  # values a call on memory read in place; the results of a single call are not copied
STAGE_VALUES = 1 << 24  # values a call on staged memory: two stages of it are held
CAREFUL_VALUES = 1 << 18  # values redone at once in float64: they and their temporaries stay in cache


def measure_axis(
    target: Any, axis: int | tuple[int, ...], select: Selection
) -> tuple[dict[str, AxisFit], dict[str, str]]:
    """Of every selected tensor that has the axes: a fit per index along them; and of the others, why not.

    One tensor at a time is in memory. Raises what `open_source` raises, and UsageError for axes named twice.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or len(set(axes)) < len(axes):
        raise UsageError("axis", found=repr(axis), needed="one or more different axes", remedy="Name each axis once.")
    source = open_source(target)
    specs = sorted(source.specs, key=lambda s: natural_key(s.name))
    skipped = {s.name: reason for s in specs if (reason := _reason(s, axes, select)) is not None}
    wanted = tuple(s for s in source.specs if s.name not in skipped)
    fits: dict[str, AxisFit] = {}
    groups = by_storage(wanted)
    for storage in source.storages:
        if mine := groups.get(storage):
            with source.open(storage) as opened:
                fits |= {spec.name: _fit_along(*_bits(opened, spec), axes) for spec in mine}
    return {s.name: fits[s.name] for s in specs if s.name in fits}, skipped


def _reason(spec: TensorSpec, axes: tuple[int, ...], select: Selection) -> str | None:
    n_dims = len(spec.shape)
    missing = [a for a in axes if not -n_dims <= a < n_dims]
    if (reason := select.reason(spec)) is not None:
        return reason
    return f"no axis {missing[0]} in shape {spec.shape}" if missing else None


def _bits(storage: Storage, spec: TensorSpec) -> tuple[np.ndarray, str]:
    """The tensor's bit patterns in its shape, and their type; quantised integers become float32.

    A view where the bytes are mapped and aligned, else a copy.
    """
    buffer = None if storage.mapped else aligned_buffer(spec.nbytes)
    raw = storage.window(spec.offset, spec.offset + spec.nbytes, buffer)
    dtype = pattern_dtype(spec.dtype)
    if raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    bits = raw.view(dtype).reshape(spec.shape, order=spec.order)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if spec.dtype == "int8":
        return (bits.view(np.int8) * np.float32(spec.scale)).view(np.uint32), "float32"
    return bits, spec.dtype


def _fit_along(bits: np.ndarray, dtype: str, axes: tuple[int, ...]) -> AxisFit:
    """One fit per index along `axes` of an array of bit patterns."""
    leading = np.moveaxis(bits, axes, range(len(axes)))
    shape = leading.shape[: len(axes)]
    rows = np.ascontiguousarray(leading).reshape(math.prod(shape), -1)
    if rows.shape[1] <= ROW and dtype != "float64":
        return _fit_short_rows(rows, dtype, shape)
    pieces, columns = _cut(rows.shape[1])
    padding = pieces * columns - rows.shape[1]
    if padding:  # zeros are counted apart, and taken off again
        rows = np.pad(rows, ((0, 0), (0, padding)))
    partials = _row_partials(rows.reshape(-1, columns), dtype)
    partials.n_zero[pieces - 1 :: pieces] -= padding
    return AxisFit.from_partials(partials.combine(np.arange(0, len(partials), pieces)), shape)


def _cut(length: int) -> tuple[int, int]:
    """How many pieces of how many values, at most ROW, a long row is summed in; evenly where it can be."""
    least = -(-length // ROW)
    pieces = next((p for p in range(least, 2 * least + 1) if length % p == 0), least)
    return pieces, -(-length // pieces)


def _calls(rows: np.ndarray) -> list[tuple[int, int, int]]:
    """(first row, first own row, stop) of calls of one size; the last reaches back over rows already done."""
    n_rows, n_columns = rows.shape
    size = min(n_rows, max(1, (CALL_VALUES if _in_place(rows) else STAGE_VALUES) // n_columns))
    return [(min(a, n_rows - size), a, min(a + size, n_rows)) for a in range(0, n_rows, size)]


def _in_place(rows: np.ndarray) -> bool:
    return rows.ctypes.data % ALIGNMENT == 0 and rows.strides[0] % ALIGNMENT == 0


def _run(program: Callable[..., Any], rows: np.ndarray, dtype: str, calls: list[tuple[int, int, int]]) -> list[Any]:
    """The program on each call's rows. Unaligned memory is staged here: the device's own copy is three times slower."""
    size = calls[0][2]
    if _in_place(rows):
        return [program(rows[first : first + size], dtype=dtype) for first, _, _ in calls]
    shape = (size, rows.shape[1])
    stages = [aligned_buffer(size * rows.strides[0]).view(rows.dtype).reshape(shape) for _ in range(min(2, len(calls)))]
    results: list[Any] = []
    for number, (first, _, _) in enumerate(calls):
        if number >= len(stages):
            jax.block_until_ready(results[number - len(stages)])  # it has read the stage that is filled next
        stage = stages[number % len(stages)]
        np.copyto(stage, rows[first : first + size])
        results.append(program(stage, dtype=dtype))
    return results


def _fit_short_rows(rows: np.ndarray, dtype: str, shape: tuple[int, ...]) -> AxisFit:
    calls = _calls(rows)
    parts = _run(compiled_row_fits(), rows, dtype, calls)
    names = ("n", "n_zero", "n_negative", "mu", "sigma", "skew", "excess_kurtosis", "min", "max", "rms", "redo")
    whole: dict[str, np.ndarray] = {}
    for part, (first, own, stop) in zip(parts, calls, strict=True):  # copied while the device is at the next ones
        for name in names:
            piece = np.asarray(getattr(part, name))
            if len(calls) == 1:
                whole[name] = piece
            else:
                whole.setdefault(name, np.empty(len(rows), piece.dtype))[own:stop] = piece[own - first : stop - first]
    redo, empty = whole.pop("redo"), whole["n"] == 0
    whole["n_nonfinite"] = np.zeros_like(whole["n"])
    if redo.any() or empty.any():
        whole = {name: values if values.flags.writeable else values.copy() for name, values in whole.items()}
    for name in ("mu", "sigma", "skew", "excess_kurtosis", "min", "max", "rms") if empty.any() else ():
        whole[name][empty] = np.nan
    for index in _chunks(np.flatnonzero(redo), rows.shape[1]):
        careful = AxisFit.from_partials(careful_rows(rows[index].view(float_dtype(dtype))), index.shape)
        for name, values in whole.items():
            values[index] = getattr(careful, name)
    return AxisFit(**{name: values.reshape(shape) for name, values in whole.items()})


def _row_partials(rows: np.ndarray, dtype: str) -> Partials:
    if dtype == "float64":
        parts = [careful_rows(rows[i].view(np.float64)) for i in _chunks(np.arange(len(rows)), rows.shape[1])]
        return Partials.concatenate(parts)
    parts = []
    calls = _calls(rows)
    for sums, (first, own, stop) in zip(_run(compiled_row_sums(), rows, dtype, calls), calls, strict=True):
        moments = row_moments(sums, rows.shape[1])
        partials = moments.partials.take(np.arange(own, stop) - first)
        for index in _chunks(np.flatnonzero(moments.redo[own - first : stop - first]), rows.shape[1]):
            partials.put(index, careful_rows(rows[own + index].view(float_dtype(dtype))))
        parts.append(partials)
    return Partials.concatenate(parts)


def _chunks(index: np.ndarray, n_columns: int) -> list[np.ndarray]:
    """Row indices in groups of about CAREFUL_VALUES values."""
    step = max(1, CAREFUL_VALUES // n_columns)
    return [index[a : a + step] for a in range(0, len(index), step)]
