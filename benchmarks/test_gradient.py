"""Utility gradients: looked up for every value, summed up a tensor, written as a checkpoint; beside the copy limit.

A gradient of every value reads and writes as many bytes as a copy does. Its share of the copy that takes turns with it
is in `extra_info` as share_of_copy, of which the aim is half; a summary's aim is half the pace of the moments kernel.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Checkpoint, Runner, Sizes

import teleojax as tj
from teleojax.bench import SUBJECT, Contestant, Record, log_moments, weights
from teleojax.bench._contestants import kernel_contestant, whole_calls
from teleojax.bench._data import rows_of, usable_cores
from teleojax.blocks import ROW
from teleojax.blocks._plan import WINDOW_BYTES
from teleojax.diagnose import UtilityGradient, gradients
from teleojax.engine._apply import _Chunks, _Placed, apply_to_leaves
from teleojax.engine._compile import compiled_table
from teleojax.kernels import ValueTable

COPY = "memory copy"
TARGET = (-1.4, 0.3)
CHECKED = 4096  # values whose gradient is compared with the formula
RTOL = {"float32": 2e-3, "bfloat16": 4e-3}  # of one value; half a unit in the last place of bfloat16 is 2e-3
NAIVE_VALUES = 1 << 22  # a sample for those that are far slower


def checked(values: np.ndarray, law: UtilityGradient) -> tuple[np.ndarray, np.ndarray]:
    """Places of values whose gradient is not near 0, where no relative error would make sense; and the gradient."""
    spread = np.linspace(0, len(values) - 1, CHECKED).astype(np.int64)
    gradient = law(np.log(np.abs(values[spread].astype(np.float64))))
    kept = np.abs(gradient) > 0.1
    return spread[kept], gradient[kept]


def copy_contestant(values: np.ndarray) -> Contestant:
    """The values copied to memory that is there already, a thread a core: the limit of whatever writes as much."""
    threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="memory-copy")
    source = values.view(np.uint8)
    out = np.zeros_like(source)
    parts = list(zip(np.array_split(out, usable_cores()), np.array_split(source, usable_cores()), strict=True))

    def run() -> bool:
        list(threads.map(lambda part: np.copyto(*part), parts))
        return True

    return Contestant(
        COPY, run, True, len(values), values.nbytes, rtol=0, note="the limit: as many bytes read, written"
    )


def kernel_of(values: np.ndarray, table: ValueTable) -> Callable[[], list[jax.Array]]:
    """The look-up alone, in calls of 64 MiB, each into the memory of its result of the run before."""
    placed = _Placed.of(table)
    rows = rows_of(values)
    per_call = min(len(rows), WINDOW_BYTES // (ROW * rows.itemsize))
    calls = [rows[a : a + per_call] for a in range(0, len(rows), per_call)]
    results = [jnp.zeros(call.shape, placed.out_dtype) for call in calls]
    kernel = compiled_table()

    def run() -> list[jax.Array]:
        results[:] = [kernel(result, call, placed.entries) for result, call in zip(results, calls, strict=True)]
        return jax.block_until_ready(results)

    return run


def in_memory_of(values: np.ndarray, table: ValueTable) -> Callable[[], np.ndarray]:
    """The look-up with results in memory that is there already, as `write_gradient` hands them to the file system."""
    out = np.zeros_like(values)
    placed, raw = _Placed.of(table), out.view(np.uint8)

    def write(offset: int, piece: np.ndarray) -> None:
        raw[offset : offset + len(piece)] = piece

    chunks = _Chunks(ThreadPoolExecutor(usable_cores(), thread_name_prefix="teleojax-apply"))

    def run() -> np.ndarray:
        for done in chunks.submit(values.view(np.uint8), placed, write):
            done.result()
        return out

    return run


def share_of_copy(benchmark: Any) -> Callable[[list[Record]], list[Record]]:
    """Say how near to the copy each contestant came."""

    def finish(records: list[Record]) -> list[Record]:
        copies = [r.values_per_s for r in records if r.contestant == COPY and r.values_per_s]
        shares = {r.contestant: r.values_per_s / copies[0] for r in records if r.values_per_s and copies}
        benchmark.extra_info["share_of_copy"] = {name: round(share, 3) for name, share in shares.items()}
        return [replace(r, note=f"{shares[r.contestant]:.2f} of the copy; {r.note}") for r in records]

    return finish


@pytest.mark.parametrize("dtype", RTOL)
def test_gradient_of_every_value(dtype: str, race: Runner, sizes: Sizes, benchmark: Any) -> None:
    values = whole_calls(weights(sizes.values, dtype))
    measured = tj.measure({"w": values})
    law = gradients(measured)["w"]
    table = law.table(dtype)
    places, expected = checked(values, law)
    moments = measured["w"].moments
    own = tj.teleo.utility_parameters(moments.mean, moments.sigma)
    towards = gradients(measured, density="lognormal", target=TARGET)["w"]
    closed_places, closed_expected = checked(values, towards)
    closed = jax.jit(lambda w: tj.lognormal_gradient(w, own.alpha, own.beta, TARGET))
    sample = values[:NAIVE_VALUES]
    sample_places, sample_expected = checked(sample, law)
    grid = np.linspace(moments.mean - 12 * moments.sigma, moments.mean + 6 * moments.sigma, 4096).astype(np.float32)
    on_grid = law(grid.astype(np.float64)).astype(np.float32)
    interpolated = jax.jit(lambda w: jnp.interp(jnp.log(jnp.abs(w.astype(jnp.float32))), grid, on_grid).astype(w.dtype))

    def numpy_interpolated() -> np.ndarray:
        return np.interp(np.log(np.abs(sample.astype(np.float32))), grid, on_grid).astype(values.dtype)

    def at(places: np.ndarray) -> Callable[[Any], np.ndarray]:
        return lambda found: np.asarray(found)[places].astype(np.float64)

    make = partial(Contestant, n_values=len(values), n_bytes=values.nbytes, rtol=RTOL[dtype])
    small = partial(Contestant, n_values=len(sample), n_bytes=sample.nbytes, rtol=RTOL[dtype], expected=sample_expected)
    contestants = [
        make(SUBJECT, kernel_of(values, table), expected, note="the look-up alone, results where those before were",
             answer=lambda results: at(places)(np.concatenate(results).reshape(-1).view(values.dtype))),
        make("teleojax, copied out", in_memory_of(values, table), expected, answer=at(places),
             note="looked up in chunks, to memory that is there"),
        make("teleojax, new array", lambda: next(apply_to_leaves([values], [table])), expected, answer=at(places),
             note="looked up, a fresh array a run"),
        make("teleojax, measured too", lambda: tj.utility_gradient([values])[0], expected, answer=at(places),
             note="utility_gradient: both passes"),
        make("teleojax, closed form", lambda: jax.block_until_ready(closed(values)), closed_expected,
             answer=at(closed_places), note="lognormal_gradient in one jit, a fresh array a run"),
        small("jax.numpy interp", lambda: jax.block_until_ready(interpolated(sample)), answer=at(sample_places),
              note="one jit, 4,096 points"),
        small("NumPy interp", numpy_interpolated, answer=at(sample_places), note="4,096 points"),
        copy_contestant(values),
    ]  # fmt: skip
    race("gradient of every value", contestants, dtype=dtype, finish=share_of_copy(benchmark))


@pytest.mark.parametrize("dtype", RTOL)
def test_summary(dtype: str, race: Runner, sizes: Sizes) -> None:
    values = whole_calls(weights(4 * sizes.values, dtype))  # the density of a tensor takes 5 ms, however large it is
    law = gradients(tj.measure({"w": values}))["w"]
    mean_square = np.mean([np.mean(law(np.log(np.abs(p.astype(np.float64)))) ** 2) for p in np.split(values, 64)])
    contestants = [
        Contestant(SUBJECT, lambda: tj.gradient_summary({"w": values}), mean_square, len(values), values.nbytes,
                   lambda report: report["w"].mean_square, 1e-3, "moments, counts, density, quantiles"),
        replace(kernel_contestant(values, log_moments(values)), name="moments kernel"),
    ]  # fmt: skip
    race("gradient summary", contestants, dtype=dtype)


def test_checkpoint(checkpoint: Checkpoint, race: Runner, tmp_path: Path, benchmark: Any) -> None:
    n_values = checkpoint.n_bytes // 2
    gradient, copied = tmp_path / "gradient", tmp_path / "copied"
    stats = tj.measure(checkpoint.path)

    def write(measured: Any = None) -> int:
        return len(tj.write_gradient(checkpoint.path, gradient, stats=measured, force=True).report)

    def copy() -> int:
        shutil.copytree(checkpoint.path, copied)
        for file in copied.iterdir():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        return len(stats)

    make = partial(Contestant, expected=len(stats), n_values=n_values, n_bytes=checkpoint.n_bytes, rtol=0)

    def clear() -> None:
        for folder in (gradient, copied):
            shutil.rmtree(folder, ignore_errors=True)

    contestants = [
        make(SUBJECT, write, note="both passes, flushed to disk", prepare=clear),
        make("teleojax, measured before", partial(write, stats), note="one pass, flushed to disk", prepare=clear),
        make(COPY, copy, note="shutil.copytree, flushed to disk", prepare=clear),
    ]
    race("gradient of a checkpoint", contestants, dtype="bfloat16", rounds=3, finish=share_of_copy(benchmark))
    clear()
