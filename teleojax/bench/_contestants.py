"""teleojax and the ways people compute the same numbers today, as contestants over one array."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from teleojax.bench._data import rows_of, usable_cores
from teleojax.bench._timing import Contestant
from teleojax.blocks import ROW
from teleojax.blocks._plan import WINDOW_BYTES
from teleojax.engine import _compile, measure
from teleojax.engine._choose import counting_trials
from teleojax.engine._compile import compiled_row_sums
from teleojax.engine._counting import begin_counting
from teleojax.kernels import RowSums
from teleojax.report.plots._roofline import SUBJECT as SUBJECT
from teleojax.stats import LogMoments, Partials, careful_moments, row_moments
from teleojax.stats._bithist import float_dtype

BLOCK = 1 << 16  # values of a NumPy block: its two float32 buffers stay in the cache of a core
KERNEL_RTOL = 2e-6  # of 8-bit types, whose few values meet the same errors of the logarithm again and again
# A float32 sum that somebody else forms may be this far off; what it is by is reported as its error.
FLOAT32_SUM_RTOL = 1e-3


def whole_calls(values: np.ndarray) -> np.ndarray:
    """As much of `values` as fills kernel calls of one size: 64 MiB each, or all whole rows of a smaller array."""
    per_call = WINDOW_BYTES // values.itemsize
    unit = per_call if len(values) >= per_call else ROW
    return values[: len(values) // unit * unit]


def _calls(bits: np.ndarray) -> list[Any]:
    """The rows in calls of 64 MiB, on the device."""
    per_call = min(len(bits), WINDOW_BYTES // (ROW * bits.itemsize))
    calls = [bits[a : a + per_call] for a in range(0, len(bits), per_call)]
    return calls if _compile.on_cpu() else [jax.device_put(c) for c in calls]


def moments_of_calls(sums: Sequence[RowSums], calls: Sequence[Any], dtype: str) -> LogMoments:
    """Row sums of consecutive calls merged, rows that need care done again from their bits."""
    parts = []
    for summed, rows in zip(sums, calls, strict=True):
        moments = row_moments(summed)
        parts.append(moments.partials.take(np.flatnonzero(~moments.redo)))
        again = (np.asarray(rows[r]).view(float_dtype(dtype)) for r in np.flatnonzero(moments.redo))
        parts += [careful_moments(values).as_partials() for values in again]
    return Partials.concatenate(parts).total()


def kernel_contestant(values: np.ndarray, expected: tuple[float, float]) -> Contestant:
    """The fused kernel alone: all row sums, in calls of 64 MiB, results left on the device."""
    dtype = values.dtype.name
    calls = _calls(rows_of(values))
    kernel = compiled_row_sums()

    def run() -> list[RowSums]:
        return jax.block_until_ready([kernel(rows, dtype=dtype) for rows in calls])

    def answer(sums: list[RowSums]) -> tuple[float, float]:
        total = moments_of_calls(sums, calls, dtype)
        return total.mean, total.sigma

    note = "eleven sums of every row"
    return Contestant(SUBJECT, run, expected, len(values), values.nbytes, answer, KERNEL_RTOL, note)


def numpy_blocked_contestant(tensors: Sequence[np.ndarray], expected: Sequence[tuple[float, float]]) -> Contestant:
    """NumPy as an expert writes it: blocks that stay in cache, buffers used again, a thread a core, zeros left out."""
    local = threading.local()

    def block(job: tuple[int, int]) -> tuple[int, int, float, float]:
        index, start = job
        part = tensors[index][start : start + BLOCK]
        if not hasattr(local, "buffer"):
            local.buffer = np.empty(BLOCK, np.float64 if part.itemsize == 8 else np.float32)
        y = local.buffer[: len(part)]
        np.copyto(y, part, casting="unsafe")
        np.abs(y, out=y)
        if y.min() == 0:
            y = y[y > 0]
        np.log(y, out=y)
        mean = float(np.add.reduce(y)) / max(len(y), 1)
        np.subtract(y, mean, out=y)
        np.multiply(y, y, out=y)
        return index, len(y), mean, float(np.add.reduce(y))

    jobs = [(i, a) for i, tensor in enumerate(tensors) for a in range(0, len(tensor), BLOCK)]
    threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="numpy-blocked")
    n_values, n_bytes = sum(t.size for t in tensors), sum(t.nbytes for t in tensors)
    note = "mean and variance, blocks of 65,536, all cores"
    return Contestant(
        "NumPy, blocked", lambda: list(threads.map(block, jobs)), expected, n_values, n_bytes, _merge_blocks, 1e-5, note
    )


def _merge_blocks(parts: Sequence[tuple[int, int, float, float]]) -> np.ndarray:
    """(mean, standard deviation) of every tensor."""
    index, n, mean, m2 = np.asarray(parts, np.float64).T
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    total = np.add.reduceat(n, starts)
    centre = np.add.reduceat(n * mean, starts) / total
    spread = np.add.reduceat(m2 + n * (mean - centre[index.astype(np.intp)]) ** 2, starts) / total
    return np.stack([centre, np.sqrt(spread)], axis=1)


def numpy_naive_contestant(values: np.ndarray, expected: tuple[float, float]) -> Contestant:
    """NumPy as anybody writes it, an array a step."""
    wide = np.float64 if values.itemsize == 8 else np.float32

    def run() -> tuple[Any, Any]:
        y = np.log(np.abs(values.astype(wide, copy=False)))
        return y.mean(), y.std()

    note = "mean and standard deviation, a temporary array a step"
    return Contestant("NumPy", run, expected, len(values), values.nbytes, rtol=FLOAT32_SUM_RTOL, note=note)


def scipy_contestant(values: np.ndarray, expected: tuple[float, float]) -> Contestant:
    """SciPy's maximum likelihood with the location fixed at 0, which is in closed form."""
    from scipy import stats

    wide = np.float64 if values.itemsize == 8 else np.float32

    def run() -> tuple[Any, Any, Any]:
        return stats.lognorm.fit(np.abs(values.astype(wide, copy=False)), floc=0)

    def answer(fitted: tuple[Any, Any, Any]) -> tuple[float, float]:
        return float(np.log(fitted[2])), float(fitted[0])

    return Contestant(
        "SciPy lognorm.fit", run, expected, len(values), values.nbytes, answer, FLOAT32_SUM_RTOL, "floc=0"
    )


def jax_naive_contestant(values: np.ndarray, expected: tuple[float, float]) -> Contestant:
    """jax.numpy under jit, as anybody writes it: mean and variance of log|x|."""

    @jax.jit
    def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.log(jnp.abs(x.astype(jnp.float32)))
        return jnp.mean(y), jnp.var(y)

    x = values if jax.default_backend() == "cpu" else jax.device_put(values)

    def answer(found: tuple[jax.Array, jax.Array]) -> tuple[float, float]:
        return float(found[0]), float(np.sqrt(found[1]))

    note = "mean and variance in one jit; sums in float32"
    return Contestant(
        "jax.numpy", lambda: jax.block_until_ready(moments(x)), expected, len(values), values.nbytes, answer,
        FLOAT32_SUM_RTOL, note,
    )  # fmt: skip


def moments_contestants(values: np.ndarray, expected: tuple[float, float]) -> list[Contestant]:
    """Mean and standard deviation of ln|w| over non-zero values of at most 32 bits: the kernel first, then its peers.

    `values` must fill whole calls (see `whole_calls`). Peers that make arrays of their own do so anew each run.
    """
    naive = (make(values, expected) for make in (numpy_naive_contestant, scipy_contestant, jax_naive_contestant))
    return [kernel_contestant(values, expected), numpy_blocked_contestant([values], [expected]), *naive]


def counts_contestants(values: np.ndarray) -> list[Contestant]:
    """Exact counts of the leading bits, at most 16 of them: teleojax first, then NumPy and jax.numpy.

    teleojax counts in threads on a CPU. On an accelerator it takes the fastest of its candidates, and each of those
    that count right there is listed too.
    """
    bits = rows_of(values)
    n_bits = min(16, 8 * bits.itemsize)
    shift = 8 * bits.itemsize - n_bits
    parts = np.array_split(bits.reshape(-1), max(1, bits.size // (1 << 20)))
    expected = sum(np.bincount(part >> shift, minlength=1 << n_bits) for part in parts)
    calls = _calls(bits)
    flat = bits.reshape(-1)
    x = flat if _compile.on_cpu() else jax.device_put(flat)
    jnp_bincount = jax.jit(lambda b: jnp.bincount((b >> shift).astype(jnp.int32), length=1 << n_bits))
    scatter = jax.jit(lambda b: jnp.zeros(1 << n_bits, jnp.int32).at[(b >> shift).astype(jnp.int32)].add(1))
    runs: dict[str, tuple[Callable[[], Any], str]] = {
        **(_counts_in_threads(calls, n_bits) if _compile.on_cpu() else _counts_by_candidate(calls, n_bits)),
        "NumPy bincount": (lambda: np.bincount(flat >> shift, minlength=1 << n_bits), "copies the keys to int64"),
        "jax.numpy bincount": (lambda: jax.block_until_ready(jnp_bincount(x)), "one jit"),
        "jax.numpy scatter": (lambda: jax.block_until_ready(scatter(x)), "one jit"),
    }
    make = partial(Contestant, expected=expected, n_values=bits.size, n_bytes=bits.nbytes, rtol=0)
    return [make(name, run, note=note) for name, (run, note) in runs.items()]


def _counts_in_threads(calls: Sequence[Any], n_bits: int) -> dict[str, tuple[Callable[[], Any], str]]:
    """teleojax as it counts on a CPU."""
    threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="teleojax-count")

    def run() -> np.ndarray:
        counts = np.zeros(1 << n_bits, np.int64)
        for part in [part for rows in calls for part in begin_counting(rows, 0, len(rows), n_bits, threads)]:
            counts += part()
        return counts

    return {SUBJECT: (run, "a Python thread a core")}


def _counts_by_candidate(calls: Sequence[Any], n_bits: int) -> dict[str, tuple[Callable[[], Any], str]]:
    """teleojax as it counts on an accelerator, and the candidates that it chooses from, all over rows on the device."""

    def counting(program: Callable[..., Any]) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            counts = np.zeros(1 << n_bits, np.int64)
            for part in [program(rows, 0, len(rows), n_bits=n_bits) for rows in calls]:  # all begun before the first
                counts += np.asarray(part)
            return counts

        return run

    trials = counting_trials(calls[0].dtype.itemsize, n_bits)
    candidates = {f"{SUBJECT}, {t.name}": (counting(t.program), "a candidate for the choice") for t in trials}
    return {SUBJECT: (counting(trials[0].program), f"{trials[0].name}: the fastest when tried"), **candidates}


def measure_contestants(target: Any, expected: Any, n_values: int, n_bytes: int) -> list[Contestant]:
    """`measure` on anything that it reads, with and without counts.

    `expected` holds (mean, standard deviation) of every tensor, in natural order of their names.
    """

    def answer(measured: Any) -> list[tuple[float, float]]:
        return [(stats.moments.mean, stats.moments.sigma) for stats in measured.values()]

    make = partial(Contestant, expected=expected, n_values=n_values, n_bytes=n_bytes, answer=answer, rtol=KERNEL_RTOL)
    return [
        make(SUBJECT, partial(measure, target), note="every tensor: moments, counts, extremes"),
        make("teleojax, moments only", partial(measure, target, histogram=False), note="no counts"),
    ]
