"""Which program counts bit patterns on an accelerator: each candidate is tried on the machine, the fastest is taken.

All candidates are exact, so the choice changes how long a count takes and never what it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from teleojax._errors import TeleojaxError
from teleojax.blocks import ROW
from teleojax.blocks._plan import WINDOW_BYTES
from teleojax.kernels import (
    pattern_counts_one_hot,
    pattern_counts_pallas,
    pattern_counts_scattered,
    pattern_counts_sorted,
)
from teleojax.stats._bithist import float_dtype

CANDIDATES: dict[str, Callable[..., Any]] = {
    "sort and search": pattern_counts_sorted,
    "scatter": pattern_counts_scattered,
    "one-hot products, bfloat16": partial(pattern_counts_one_hot, operand="bfloat16"),
    "one-hot products, int8": partial(pattern_counts_one_hot, operand="int8"),
    "one-hot products, Pallas": pattern_counts_pallas,
}
TRIAL_BYTES = WINDOW_BYTES  # a whole window, as the engine counts
TRIAL_RUNS = 3  # the fastest of them is compared
TRIAL_TYPES = {1: "float8_e4m3fn", 2: "bfloat16", 4: "float32"}  # by item size: how weights crowd into few bins matters


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that counted right on this machine: its compiled program, and seconds of its fastest run."""

    name: str
    program: Callable[..., Any]
    seconds: float


@cache
def counting_trials(itemsize: int, n_bits: int) -> tuple[Trial, ...]:
    """The candidates that count the leading bits of normal weights right on the default device, the fastest first.

    Measured once a process. Raises TeleojaxError when none counts right.
    """
    values = np.random.default_rng(0).standard_normal(ROW * 8, np.float32).astype(float_dtype(TRIAL_TYPES[itemsize]))
    bits = np.resize(values.view(f"u{itemsize}"), (TRIAL_BYTES // (ROW * itemsize), ROW))
    return try_candidates(CANDIDATES, bits, n_bits)


def try_candidates(candidates: Mapping[str, Callable[..., Any]], bits: np.ndarray, n_bits: int) -> tuple[Trial, ...]:
    """Compile, check and time each candidate over rows of bits; those that fail or count wrongly are left out.

    Checked: all rows but the first and the last against NumPy, and as many equal keys as there are values.
    """
    placed, same = jax.device_put(bits), jnp.zeros_like(bits)
    n_rows, n_bins = len(bits), 1 << n_bits
    keys = (row >> (8 * bits.itemsize - n_bits) for row in bits[1:-1])
    expected = sum((np.bincount(key, minlength=n_bins) for key in keys), np.zeros(n_bins, np.int64))
    all_equal = np.zeros(n_bins, np.int64)
    all_equal[0] = bits.size
    trials: list[Trial] = []
    failures: list[str] = []
    for name, kernel in candidates.items():
        program = jax.jit(kernel, static_argnames="n_bits")
        try:
            right = np.array_equal(program(placed, 1, n_rows - 1, n_bits=n_bits), expected)
            right = right and np.array_equal(program(same, 0, n_rows, n_bits=n_bits), all_equal)
            seconds = min(_seconds(partial(program, placed, 0, n_rows, n_bits=n_bits)) for _ in range(TRIAL_RUNS))
        except Exception as e:  # whatever a compiler or a driver does not support
            failures.append(f"{name}: {e!r:.200}")
            continue
        if right:
            trials.append(Trial(name, program, seconds))
        else:
            failures.append(f"{name}: wrong counts")
    if not trials:
        raise TeleojaxError(
            f"counting on {jax.default_backend()}",
            found="; ".join(failures),
            needed="a program that counts right",
            remedy="Set JAX_PLATFORMS=cpu, or measure without histograms.",
        )
    return tuple(sorted(trials, key=lambda trial: trial.seconds))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
