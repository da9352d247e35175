"""The only place that jits: each kernel once, with the compiler options of the platform it will run on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax import lax

from teleojax.blocks import ROW
from teleojax.engine._choose import counting_trials
from teleojax.kernels import RowSums, pattern_counts, pattern_counts_whole, row_fits, row_sums, tabulated
from teleojax.stats._rows import FAR, NARROW, TINY

# Reassociating sums is what lets XLA vectorise them on a CPU. NaN and inf are asked of the bits, never of floats, but
# the kernels' guards must not be optimised away. The options are given per program: no process-wide flag is touched.
CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_prefer_vector_width": 512,
}


def on_cpu() -> bool:
    """Whether the device is a CPU, which reads the host's memory in place; any other has arrays copied to it."""
    return jax.default_backend() == "cpu"


@cache
def compiled_row_sums() -> Callable[..., Any]:
    """`row_sums`, one program per type and number of rows."""
    return jax.jit(row_sums, static_argnames="dtype", compiler_options=_options())


@cache
def compiled_row_fits() -> Callable[..., Any]:
    """`row_fits`, one program per type and shape; it marks the rows that `row_moments` would."""
    marking = partial(row_fits, narrow=NARROW, far=FAR, tiny=TINY)
    return jax.jit(marking, static_argnames="dtype", compiler_options=_options())


def compiled_pattern_counts(itemsize: int = 2, n_bits: int = 16) -> Callable[..., Any]:
    """The counting program for patterns of this size: on a CPU one for all, else what is fastest on this machine."""
    return _counts_by_row() if on_cpu() else counting_trials(itemsize, n_bits)[0].program


@cache
def _counts_by_row() -> Callable[..., Any]:
    """`pattern_counts`, one program per item size and number of rows."""
    return jax.jit(pattern_counts, static_argnames="n_bits")


@cache
def compiled_whole_counts() -> Callable[..., Any]:
    """`pattern_counts_whole`, one program per type and number of values."""
    return jax.jit(pattern_counts_whole)


@cache
def compiled_shard_sums() -> Callable[..., Any]:
    """`row_sums` of rows [first, first + n_rows) of an array on a device, cut out inside: nothing is copied.

    Of (array, first, n_rows). One program per type, shape, device and number of rows.
    """

    def sums(array: jax.Array, first: jax.Array, *, n_rows: int) -> RowSums:
        return row_sums(_patterns(_rows(array, first, n_rows)), dtype=array.dtype.name)

    return jax.jit(sums, static_argnames="n_rows", compiler_options=_options())


@cache
def compiled_shard_counts(itemsize: int, n_bits: int) -> Callable[..., Any]:
    """Counts of the leading `n_bits` bits in some of rows [first, first + n_rows) of an array on a device.

    Of (array, first, own, stop, n_rows), with rows [own, stop) counted from `first`. No other rows are ever copied.
    """
    counts = compiled_pattern_counts(itemsize, n_bits)

    def count(array: jax.Array, first: jax.Array, own: jax.Array, stop: jax.Array, *, n_rows: int) -> jax.Array:
        return counts(_patterns(_rows(array, first, n_rows)), own, stop, n_bits=n_bits)

    return jax.jit(count, static_argnames="n_rows")


@cache
def compiled_shard_rows() -> Callable[..., Any]:
    """Rows [first, first + n_rows) of an array on a device, to be sent to the host. Of (array, first, n_rows)."""
    return jax.jit(_rows, static_argnames="n_rows")


@cache
def compiled_shard_tail() -> Callable[..., Any]:
    """The values of an array that its whole rows leave over, fewer than ROW."""
    return jax.jit(lambda array: array.reshape(-1)[array.size // ROW * ROW :])


def _rows(array: jax.Array, first: jax.Array, n_rows: int) -> jax.Array:
    """Rows [first, first + n_rows) of an array's values in its own order. Rows, not values, fit 32-bit numbers."""
    whole = array.size // ROW
    rows = lax.slice(array.reshape(-1), (0,), (whole * ROW,)).reshape(whole, ROW)
    return lax.dynamic_slice_in_dim(rows, first, n_rows)


@cache
def compiled_table() -> Callable[..., Any]:
    """`tabulated` of (scratch, bits, entries), the result in the memory of `scratch`, which is given away for it.

    One program per type, table size and number of rows.
    """

    def look_up(scratch: jax.Array, bits: jax.Array, entries: jax.Array) -> jax.Array:
        del scratch
        return _patterns(tabulated(bits, entries))

    return jax.jit(look_up, donate_argnums=0, keep_unused=True)


@cache
def compiled_table_of_array(*, donate: bool) -> Callable[..., Any]:
    """`tabulated` of (values, entries), the result of the values' own type; with `donate` in their memory."""

    def look_up(values: jax.Array, entries: jax.Array) -> jax.Array:
        found = tabulated(_patterns(values), entries)
        return found if found.dtype == values.dtype else lax.bitcast_convert_type(found, values.dtype)

    return jax.jit(look_up, donate_argnums=0 if donate else None)


def _patterns(values: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}")


@cache
def _options() -> dict[str, Any] | None:
    """The options that this XLA knows, on a CPU. One that a newer XLA has dropped costs speed, not the run."""
    if jax.default_backend() != "cpu":
        return None
    return CPU_OPTIONS if _accepted(CPU_OPTIONS) else {k: v for k, v in CPU_OPTIONS.items() if _accepted({k: v})}


def _accepted(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(jax.ShapeDtypeStruct((), np.int32)).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
