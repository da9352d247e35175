"""The suite of `teleojax bench`: kernels, counts, end to end, fits, compilation and import, each beside its peers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from teleojax.bench._contestants import (
    FLOAT32_SUM_RTOL,
    SUBJECT,
    counts_contestants,
    measure_contestants,
    moments_contestants,
    numpy_blocked_contestant,
    whole_calls,
)
from teleojax.bench._data import log_moments, split_unevenly, weights, write_safetensors
from teleojax.bench._environment import environment
from teleojax.bench._limits import LIMIT_BYTES, Limits, measure_limits
from teleojax.bench._record import Record, read_contestant, records_of
from teleojax.bench._timing import Contestant, interleaved
from teleojax.blocks import ROW
from teleojax.engine import measure
from teleojax.engine._compile import compiled_pattern_counts, compiled_row_sums
from teleojax.report import fit

SIZE, QUICK_SIZE = 1 << 27, 1 << 24  # values an array: 512 MiB of float32
ROUNDS, QUICK_ROUNDS = 5, 2
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
TENSORS, QUICK_TENSORS = 200, 20  # what the values are cut into, end to end
FITTED, QUICK_FITTED = 300, 20  # tensors whose statistics are fitted
FITTED_SIZE = 20_000  # values of each
READ_BYTES = 8 << 20  # one read call of the file that is only read


@dataclass(frozen=True, slots=True)
class Results:
    """Everything of one run: where it ran, the memory limits then, and the records in order."""

    environment: dict[str, Any]
    limits: Limits
    records: tuple[Record, ...]


def run_suite(size: int | None = None, *, quick: bool = False, say: Callable[[str], None] = lambda _: None) -> Results:
    """Measure everything on arrays of `size` values (2^27, or 2^24 if quick); `say` is told what comes next.

    `quick` takes fewer rounds and types. Raises WrongAnswerError when any contestant's answer is wrong.
    """
    rounds = QUICK_ROUNDS if quick else ROUNDS
    size = size or (QUICK_SIZE if quick else SIZE)
    say("memory limits")
    limits = measure_limits(LIMIT_BYTES // 2 if quick else LIMIT_BYTES)
    records: list[Record] = []
    for part in (_moments, _counts, _in_memory, _file, _fits, _compilation, _imports):
        for benchmark, dtype, contestants, is_memory in part(size, quick):
            say(f"{benchmark} {dtype or ''}".strip())
            limit = limits.read if is_memory else None
            records += records_of(benchmark, interleaved(contestants, rounds), dtype=dtype, read_limit=limit)
    return Results(environment(), limits, tuple(records))


_Race = tuple[str, str | None, Sequence[Contestant], bool]  # benchmark, dtype, contestants, whether memory limits it


def _moments(size: int, quick: bool) -> Iterator[_Race]:
    for dtype in DTYPES[: 2 if quick else None]:
        values = whole_calls(weights(size, dtype))
        yield "log moments", dtype, [*moments_contestants(values, log_moments(values)), read_contestant(values)], True


def _counts(size: int, quick: bool) -> Iterator[_Race]:
    for dtype in ("bfloat16",) if quick else ("bfloat16", "float32", "float8_e4m3fn"):
        values = whole_calls(weights(size, dtype))
        yield "exact counts", dtype, [*counts_contestants(values), read_contestant(values)], True


def _in_memory(size: int, quick: bool) -> Iterator[_Race]:
    for dtype in ("bfloat16",) if quick else ("float32", "bfloat16", "float64"):
        values = weights(size if dtype != "float64" else size // 8, dtype)
        tensors = split_unevenly(values, QUICK_TENSORS if quick else TENSORS)
        yield f"measure a pytree of {len(tensors)}", dtype, _end_to_end(values, tensors, None), True


def _file(size: int, quick: bool) -> Iterator[_Race]:
    for dtype in ("bfloat16",) if quick else ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory(prefix="teleojax-bench-") as folder:
            path = Path(folder) / "model.safetensors"
            values = weights(size, dtype)
            tensors = split_unevenly(values, QUICK_TENSORS if quick else TENSORS)
            write_safetensors(path, tensors)
            contestants = [*_end_to_end(values, tensors, path), file_reader([path], values.size)]
            yield f"measure a file of {len(tensors)}, warm", dtype, contestants, True


def _end_to_end(values: np.ndarray, tensors: dict[str, np.ndarray], path: Path | None) -> list[Contestant]:
    expected = [log_moments(tensor) for tensor in tensors.values()]
    own = np.array if values.itemsize == 8 else jnp.array  # JAX would make float32 of float64
    target = path or {name: own(tensor) for name, tensor in tensors.items()}
    ours = measure_contestants(target, expected, values.size, values.nbytes)
    there = values if path is None else np.memmap(path, np.uint8, "r")[-values.nbytes :].view(values.dtype)
    theirs = numpy_blocked_contestant(list(split_unevenly(there, len(tensors)).values()), expected)
    return [*ours, theirs, read_contestant(there)]


def file_reader(paths: Sequence[Path], n_values: int) -> Contestant:
    """Files read from end to end into one buffer, in calls of 8 MiB."""
    size = sum(path.stat().st_size for path in paths)
    buffer = memoryview(bytearray(READ_BYTES))

    def run() -> int:
        total = 0
        for path in paths:
            with path.open("rb", buffering=0) as f:
                while n := f.readinto(buffer):
                    total += n
        return total

    return Contestant("file read", run, size, n_values, size, rtol=0, note="nothing computed; one thread, 8 MiB a call")


def _fits(size: int, quick: bool) -> Iterator[_Race]:  # noqa: ARG001
    fitted = QUICK_FITTED if quick else FITTED
    tensors = split_unevenly(weights(fitted * FITTED_SIZE), fitted)
    yield f"fit {fitted} tensors", "float32", fit_contestants(tensors), False


def fit_contestants(tensors: dict[str, np.ndarray]) -> list[Contestant]:
    """`fit` on statistics already measured, `fit` on the values, and SciPy on the values."""
    from scipy import stats

    expected = [log_moments(tensor) for tensor in tensors.values()]

    def scipy() -> list[tuple[Any, Any, Any]]:
        return [stats.lognorm.fit(np.abs(tensor), floc=0) for tensor in tensors.values()]

    def answer(report: Any) -> list[tuple[float, float]]:
        return [(r.lognormal.mu, r.lognormal.sigma) for r in report.values()]

    def scipy_answer(fits: list[tuple[Any, Any, Any]]) -> list[tuple[float, float]]:
        return [(float(np.log(scale)), float(shape)) for shape, _, scale in fits]

    runs = (
        (SUBJECT, partial(fit, measure(tensors)), answer, 1e-6, "from statistics, with distance from equilibrium, KS"),
        ("teleojax, from values", partial(fit, tensors), answer, 1e-6, "measured and fitted"),
        ("SciPy lognorm.fit", scipy, scipy_answer, FLOAT32_SUM_RTOL, "from values, the lognormal alone, floc=0"),
    )
    return [Contestant(name, run, expected, 0, 0, read, rtol, note) for name, run, read, rtol, note in runs]


def _compilation(size: int, quick: bool) -> Iterator[_Race]:  # noqa: ARG001
    yield "compile", None, compile_contestants(), False


def compile_contestants() -> list[Contestant]:
    """Tracing and compilation of each kernel and of the naive program, for an array size never seen before."""
    rows = count(1000)  # no other call has one of these

    def lowered(kernel: Callable[[], Any], item: Any, **static: Any) -> bool:
        shape = jax.ShapeDtypeStruct((next(rows), ROW), item)
        bounds = (0, 1) if "n_bits" in static else ()
        return kernel().lower(shape, *bounds, **static).compile() is not None

    def naive(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.log(jnp.abs(x))
        return jnp.mean(y), jnp.var(y)

    runs = {
        SUBJECT: partial(lowered, compiled_row_sums, np.uint32, dtype="float32"),
        "teleojax, bfloat16": partial(lowered, compiled_row_sums, np.uint16, dtype="bfloat16"),
        "teleojax, counts": partial(lowered, compiled_pattern_counts, np.uint16, n_bits=16),
        "jax.numpy": partial(lowered, lambda: jax.jit(naive), np.float32),
    }
    note = "once a type and size of call, whatever the shapes of the tensors"
    return [
        Contestant(name, run, True, 0, 0, rtol=0, note=note if name == SUBJECT else "") for name, run in runs.items()
    ]


def _imports(size: int, quick: bool) -> Iterator[_Race]:  # noqa: ARG001
    statements = ("teleojax", "numpy") if quick else ("teleojax", "jax", "scipy.stats", "numpy")
    yield "import", None, [import_contestant(statement) for statement in statements], False


def import_contestant(module: str) -> Contestant:
    """A fresh interpreter that imports a module and ends."""
    command = [sys.executable, "-c", f"import {module}"]

    def run() -> int:
        return subprocess.run(command, check=False, capture_output=True).returncode

    return Contestant(module, run, 0, 0, 0, rtol=0, note="a fresh interpreter, start to end")
