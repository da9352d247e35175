"""How fast memory can be read and copied on this machine, measured in the same run as everything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from teleojax.bench._data import rows_of, usable_cores, weights

LIMIT_BYTES = 1 << 29  # many times any last-level cache
PASSES = 5  # the best of them counts: a pass can only be disturbed downwards
# float32 addition keeps one order without it, and the pass is then bound by latency instead of memory
FAST_SUM = {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": 512}


@dataclass(frozen=True, slots=True)
class Limits:
    """The memory limits of one run, in bytes a second.

    `read` is the best of several passes that add up or compare every byte of `n_bytes` and keep nothing, by
    whichever of `methods` was fastest: the hardware can do more only if none of these is good. `copy` counts the
    bytes copied, each read once and written once.
    """

    read: float
    copy: float
    n_bytes: int
    platform: str
    methods: dict[str, float]


def measure_limits(n_bytes: int = LIMIT_BYTES, passes: int = PASSES) -> Limits:
    """Measure the read and copy limits over an array of `n_bytes`, all cores at work.

    Read, on a CPU: `np.add.reduce` over int64 and `np.maximum.reduce` over uint8, a thread and a part of the array a
    core; and sums of float32 rows in one compiled JAX program. On any other device: the JAX program alone, over an
    array that lives there. Copy: `np.copyto` of one half of the array onto the other, a thread a core, always on the
    host. The methods take turns; each runs once before it is timed.
    """
    values = weights(max(n_bytes // 4, 1 << 16))
    rows = jax.device_put(rows_of(values).view(np.float32)) if jax.default_backend() != "cpu" else rows_of(values)
    platform = jax.default_backend()
    row_sums = jax.jit(partial(jnp.sum, axis=1), compiler_options=FAST_SUM if platform == "cpu" else None)
    half = len(values) // 2
    with ThreadPoolExecutor(usable_cores()) as threads:

        def on_all_cores(function: Callable[..., object], *arrays: np.ndarray) -> None:
            list(threads.map(function, *(np.array_split(a, usable_cores()) for a in arrays)))

        read: dict[str, Callable[[], object]] = {
            "JAX sums of float32 rows": lambda: jax.block_until_ready(row_sums(rows.view(np.float32)))
        }
        if platform == "cpu":
            read["NumPy sum of int64"] = lambda: on_all_cores(np.add.reduce, values.view(np.int64))
            read["NumPy maximum of uint8"] = lambda: on_all_cores(np.maximum.reduce, values.view(np.uint8))
        copy = partial(on_all_cores, np.copyto, values[half : 2 * half], values[:half])
        seconds = best_of_turns({**read, "copy": copy}, passes)
    methods = {name: values.nbytes / seconds[name] for name in read}
    return Limits(max(methods.values()), 4 * half / seconds["copy"], values.nbytes, platform, methods)


def best_of_turns(functions: dict[str, Callable[[], object]], passes: int) -> dict[str, float]:
    """The least seconds of each, over `passes` rounds in which each runs once; one round before goes untimed."""
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(passes + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best
