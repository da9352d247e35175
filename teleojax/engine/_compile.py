"""The only place that jits: each kernel once, with the compiler options of the platform it will run on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from teleojax.kernels import pattern_counts, row_sums

# Reassociating sums is what lets XLA vectorise them on a CPU. NaN and inf are asked of the bits, never of floats, but
# the kernels' guards must not be optimised away. The options are given per program: no process-wide flag is touched.
CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_prefer_vector_width": 512,
}


@cache
def compiled_row_sums() -> Callable[..., Any]:
    """`row_sums`, one program per type and number of rows."""
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(row_sums, static_argnames="dtype", compiler_options=options)


@cache
def compiled_pattern_counts() -> Callable[..., Any]:
    """`pattern_counts`, one program per item size and number of rows."""
    return jax.jit(pattern_counts, static_argnames="n_bits")
