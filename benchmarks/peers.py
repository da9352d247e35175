"""What people use today and need not have installed: each as a contestant over one array, or the word why it is absent.

A peer gets the values, the mean and standard deviation of ln|w| that it must find, and builds its contestant. One that
is slow runs on a sample (the first values); speeds are compared per value.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from teleojax.bench import Contestant, Record, absent_record

SAMPLE = 1_000_000  # values for what would take minutes on all
FLOAT32_SUM_RTOL = 1e-3
HALFNORMAL_WEIBULL = (1.205434, 0.887487 * 0.02)  # the middle-80% probability plot of |N(0, 0.02)|, continuous limit


@dataclass(frozen=True, slots=True)
class Peer:
    """A contestant that needs `module`; `dtypes` it can read."""

    name: str
    module: str
    make: Callable[[np.ndarray, Any], Contestant]
    dtypes: tuple[str, ...] = ("float32",)


def entrants(
    benchmark: str, peers: Iterable[Peer], values: np.ndarray, expected: Any
) -> tuple[list[Contestant], list[Record]]:
    """Contestants of the peers that are here, and records that say which are not."""
    here, absent = [], []
    for peer in peers:
        if values.dtype.name not in peer.dtypes:
            continue
        try:
            importlib.import_module(peer.module)
        except ImportError:
            absent.append(absent_record(benchmark, peer.name, values.dtype.name, "not installed"))
            continue
        here.append(peer.make(values, expected))
    return here, absent


def as_torch(values: np.ndarray) -> Any:
    """The same memory as a torch tensor; bfloat16 by way of its bits."""
    import torch

    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def torch_moments(values: np.ndarray, expected: Any) -> Contestant:
    """torch.var_mean of log|x|, on all cores."""
    import torch

    x = as_torch(values)

    def run() -> Any:
        return torch.var_mean(torch.log(torch.abs(x.float())), correction=0)

    def answer(found: Any) -> tuple[float, float]:
        return float(found[1]), float(found[0].sqrt())

    note = f"var_mean(log|x|), {torch.get_num_threads()} threads"
    return Contestant("torch", run, expected, values.size, values.nbytes, answer, FLOAT32_SUM_RTOL, note)


def polars_moments(values: np.ndarray, expected: Any) -> Contestant:
    """The streaming engine of polars on a column of float32."""
    import polars as pl

    y = pl.col("w").abs().log()
    query = pl.LazyFrame({"w": values}).select(y.mean().alias("mean"), y.std(ddof=0).alias("std"))

    def answer(frame: Any) -> tuple[float, float]:
        return frame["mean"][0], frame["std"][0]

    run = partial(query.collect, engine="streaming")
    return Contestant("polars", run, expected, values.size, values.nbytes, answer, FLOAT32_SUM_RTOL, "streaming")


def powerlaw_lognormal(values: np.ndarray, expected: Any) -> Contestant:  # noqa: ARG001
    """The lognormal as powerlaw fits it, from its least value up."""
    import powerlaw

    sample = np.abs(values[:SAMPLE].astype(np.float64))
    y = np.log(sample)

    def run() -> tuple[float, float]:
        fitted = powerlaw.Fit(sample, xmin=sample.min(), verbose=False).lognormal
        return fitted.mu, fitted.sigma

    return Contestant(
        "powerlaw lognormal", run, (y.mean(), y.std()), sample.size, sample.nbytes, rtol=1e-2, note=_sample(sample)
    )


def npm_weibull(values: np.ndarray, expected: Any) -> Contestant:  # noqa: ARG001
    """npm-weibull-py: a histogram of log10|w|, and the Weibull line through its middle 80%."""
    from npm_weibull import extract_to_histogram, weibull_fit

    sample = values[:SAMPLE].astype(np.float32)

    def answer(found: dict[str, Any]) -> tuple[float, float]:
        return found["k"], found["lambda"]

    return Contestant(
        "npm-weibull-py", lambda: weibull_fit(extract_to_histogram(sample)), HALFNORMAL_WEIBULL, sample.size,
        sample.nbytes, answer, 2e-2, f"Weibull; {_sample(sample)}",
    )  # fmt: skip


def torch_bincount(bits: np.ndarray, expected: Any) -> Contestant:
    """torch.bincount, which takes a signed type."""
    import torch

    flat = bits.reshape(-1)
    wide = torch.from_numpy(flat.view(f"i{flat.itemsize}"))
    mask = (1 << (8 * flat.itemsize)) - 1

    def run() -> Any:
        return torch.bincount(wide.int() & mask, minlength=mask + 1)

    return Contestant("torch bincount", run, expected, flat.size, flat.nbytes, rtol=0, note="copies the keys to int32")


def boost_histogram(bits: np.ndarray, expected: Any) -> Contestant:
    """An integer axis of all patterns, filled on all cores."""
    import boost_histogram as bh

    flat = bits.reshape(-1)
    threads = len(os.sched_getaffinity(0))

    def run() -> np.ndarray:
        axis = bh.axis.Integer(0, 1 << (8 * flat.itemsize), underflow=False, overflow=False)
        return bh.Histogram(axis, storage=bh.storage.Int64()).fill(flat, threads=threads).values()

    note = f"integer axis, int64 storage, {threads} threads"
    return Contestant("boost-histogram", run, expected, flat.size, flat.nbytes, rtol=0, note=note)


def _sample(sample: np.ndarray) -> str:
    return f"a sample of {len(sample):,}"


MOMENTS = (
    Peer("torch", "torch", torch_moments, ("float32", "float16", "bfloat16")),
    Peer("polars", "polars", polars_moments),
    Peer("powerlaw lognormal", "powerlaw", powerlaw_lognormal),
    Peer("npm-weibull-py", "npm_weibull", npm_weibull),
)
COUNTS = (
    Peer("torch bincount", "torch", torch_bincount, ("uint16", "uint8")),
    Peer("boost-histogram", "boost_histogram", boost_histogram, ("uint16", "uint8")),
)
