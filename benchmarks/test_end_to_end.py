"""A checkpoint of 200 tensors in 120 shapes, from the file to statistics of every tensor: warm, and cold with --large.

Peers map the same files into memory without teleojax, as teleojax does anew in every run, leave out zeros, and answer
tensor by tensor. NumPy in blocks keeps its maps from run to run.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conftest import Checkpoint, Runner, Sizes
from peers import FLOAT32_SUM_RTOL, as_torch

import teleojax as tj
from teleojax.bench import Contestant, Record, absent_record, log_moments
from teleojax.bench._contestants import measure_contestants, numpy_blocked_contestant
from teleojax.bench._record import read_contestant
from teleojax.bench._suite import file_reader

SAMPLED = 16  # SciPy and NumPy take every 16th tensor
HELD_BYTES_PER_S = 10e9  # a raw read faster than this came from somebody's memory, not from a disk


def lognormals(report: tj.Report) -> list[tuple[float, float]]:
    return [(r.lognormal.mu, r.lognormal.sigma) for r in report.values()]


def each(
    name: str,
    checkpoint: Checkpoint,
    every: int,
    expected: Sequence[tuple[float, float]],
    function: Callable[[np.ndarray], Any],
    answer: Callable[[Any], tuple[float, float]],
    note: str,
) -> Contestant:
    """A contestant that maps the files and calls `function` on every so many tensors."""
    tensors = list(checkpoint.tensors().values())[::every]
    n_values, n_bytes = sum(t.size for t in tensors), sum(t.nbytes for t in tensors)
    return Contestant(
        name, lambda: [function(t) for t in list(checkpoint.tensors().values())[::every]],
        expected[::every], n_values, n_bytes,
        lambda found: [answer(f) for f in found], FLOAT32_SUM_RTOL, note,
    )  # fmt: skip


def magnitudes(tensor: np.ndarray) -> np.ndarray:
    x = np.abs(tensor.astype(np.float32))
    return x[x > 0]


def scipy_peer(checkpoint: Checkpoint, expected: Sequence[tuple[float, float]], note: str) -> Contestant:
    from scipy import stats

    def answer(found: Any) -> tuple[float, float]:
        return float(np.log(found[2])), float(found[0])

    return each(
        "SciPy lognorm.fit",
        checkpoint,
        SAMPLED,
        expected,
        lambda t: stats.lognorm.fit(magnitudes(t), floc=0),
        answer,
        note,
    )


def numpy_peer(checkpoint: Checkpoint, expected: Sequence[tuple[float, float]], note: str) -> Contestant:
    def moments(tensor: np.ndarray) -> tuple[Any, Any]:
        y = np.log(magnitudes(tensor))
        return y.mean(), y.std()

    return each("NumPy", checkpoint, SAMPLED, expected, moments, lambda found: found, note)


def jit_per_shape(checkpoint: Checkpoint, expected: Sequence[tuple[float, float]]) -> Contestant:
    """What a JAX user writes first; a program for every shape, compiled in the first run."""

    @jax.jit
    def moments(tensor: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.abs(tensor.astype(jnp.float32))
        kept = x > 0
        y = jnp.where(kept, jnp.log(jnp.where(kept, x, 1)), 0)
        n = jnp.sum(kept)
        mean = jnp.sum(y) / n
        return mean, jnp.sqrt(jnp.sum(jnp.where(kept, (y - mean) ** 2, 0)) / n)

    def run(tensor: np.ndarray) -> Any:
        return jax.block_until_ready(moments(tensor))

    return each(
        "jax.numpy", checkpoint, 1, expected, run, lambda found: (float(found[0]), float(found[1])), "one jit per shape"
    )


def torch_peer(checkpoint: Checkpoint, expected: Sequence[tuple[float, float]]) -> Contestant:
    import torch

    def run(tensor: np.ndarray) -> Any:
        x = as_torch(tensor).float().abs()
        return torch.var_mean(torch.log(x[x > 0]), correction=0)

    def answer(found: Any) -> tuple[float, float]:
        return float(found[1]), float(found[0].sqrt())

    return each("torch", checkpoint, 1, expected, run, answer, f"var_mean(log|x|), {torch.get_num_threads()} threads")


def ours(checkpoint: Checkpoint, expected: Sequence[tuple[float, float]], n_values: int) -> list[Contestant]:
    fit = Contestant(
        "teleojax fit", partial(tj.fit, checkpoint.path), expected, n_values, checkpoint.n_bytes, lognormals,
        note="measured and fitted, with distance from equilibrium",
    )  # fmt: skip
    return [*measure_contestants(checkpoint.path, expected, n_values, checkpoint.n_bytes), fit]


def test_warm(checkpoint: Checkpoint, race: Runner, sizes: Sizes) -> None:
    tensors = list(checkpoint.tensors().values())
    n_values = sum(t.size for t in tensors)
    expected = [log_moments(tensor) for tensor in tensors]
    sampled = f"tensor by tensor, every {SAMPLED}th"
    contestants = [
        *ours(checkpoint, expected, n_values),
        numpy_blocked_contestant(tensors, expected),
        scipy_peer(checkpoint, expected, sampled),
        numpy_peer(checkpoint, expected, sampled),
        jit_per_shape(checkpoint, expected),
        file_reader(checkpoint.files, n_values),
        read_contestant(*tensors),
    ]
    name, absent = "end to end, warm", []
    if importlib.util.find_spec("torch"):
        contestants.append(torch_peer(checkpoint, expected))
    else:
        absent.append(absent_record(name, "torch", "bfloat16", "not installed"))
    race(name, contestants, dtype="bfloat16", absent=absent, rounds=min(3, sizes.rounds))


def test_large_warm(large_checkpoint: Checkpoint, race: Runner) -> None:
    expected, n_values = known_answers(large_checkpoint)
    contestants = [*ours(large_checkpoint, expected, n_values), file_reader(large_checkpoint.files, n_values)]
    race("end to end, large, warm", contestants, dtype="bfloat16", rounds=3)


def test_large_cold(large_checkpoint: Checkpoint, race: Runner) -> None:
    """The kernel's cached pages are dropped before every run, of teleojax and of the plain read alike."""
    expected, n_values = known_answers(large_checkpoint)
    prepare = partial(drop_from_cache, large_checkpoint.files)
    measured, *_ = ours(large_checkpoint, expected, n_values)
    plain = file_reader(large_checkpoint.files, n_values)
    contestants = [replace(c, prepare=prepare) for c in (measured, plain)]

    def finish(records: list[Record]) -> list[Record]:
        speed = records[1].bytes_per_s or 0
        if speed > HELD_BYTES_PER_S:
            why = "the drop had no effect: the plain read came from memory, so this is no cold read"
        else:
            why = "page cache dropped before every run"
        return [replace(record, note=f"{record.note}; {why}") for record in records]

    race("end to end, large, cold", contestants, dtype="bfloat16", rounds=3, finish=finish)


@cache
def known_answers(checkpoint: Checkpoint) -> tuple[list[tuple[float, float]], int]:
    """What every tensor must give, and the number of values. Keeps no map: mapped pages cannot be dropped."""
    tensors = checkpoint.tensors()
    return [log_moments(tensor) for tensor in tensors.values()], sum(t.size for t in tensors.values())


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Write the files back and ask the kernel to forget their pages."""
    gc.collect()  # a map that is left over would keep its pages
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
