"""A checkpoint read by one process and shared by two, each with a core of its own; and what sharing costs one alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkpoint, Runner, Sizes

from teleojax.bench import Contestant, log_moments

WORKER = Path(__file__).parent / "worker.py"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def workers(checkpoint: Checkpoint, n: int) -> Iterator[subprocess.Popen[str]]:
    """Processes with a core each that measure the checkpoint whenever the first, which is returned, gets a line."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{s.getsockname()[1]}", "JAX_NUM_PROCESSES": str(n)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    running = []
    for k in range(n):
        command = ["taskset", "-c", str(CORES[k]), sys.executable, str(WORKER), str(checkpoint.path)]
        environment = {**os.environ, **where, "JAX_PROCESS_ID": str(k)}
        running.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    try:
        yield running[0]
    finally:
        for process in running:
            process.communicate(timeout=60)


def told(first: subprocess.Popen[str], line: str) -> tuple[int, float]:
    """What the processes answer to a line."""
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write(f"{line}\n")
    first.stdin.flush()
    amount, means = first.stdout.readline().split()
    return int(amount), float(means)


TWO_CORES = pytest.mark.skipif(len(CORES) < 2, reason="two cores, and a system that can give a process one of them")


@TWO_CORES
def test_two_processes(checkpoint: Checkpoint, race: Runner, sizes: Sizes) -> None:
    tensors = list(checkpoint.tensors().values())
    moments = [log_moments(tensor) for tensor in tensors]
    n_values = sum(t.size for t in tensors)
    expected = n_values, sum(mean for mean, _ in moments)
    with ExitStack() as stack:

        def contestant(name: str, n: int, note: str) -> Contestant:
            run = partial(told, stack.enter_context(workers(checkpoint, n)), "measure")
            return Contestant(name, run, expected, n_values, checkpoint.n_bytes, note=note)

        contestants = [
            contestant("2 processes", 2, "a core each, statistics exchanged over loopback"),
            contestant("1 process", 1, "one core"),
        ]
        race("processes", contestants, dtype="bfloat16", rounds=sizes.rounds)


@TWO_CORES
def test_exchange(checkpoint: Checkpoint, race: Runner, sizes: Sizes) -> None:
    """Every process sends as much as the statistics of some thousand tensors, to all."""
    each = (1 << 20 if sizes.quick else 1 << 25) - 1
    with workers(checkpoint, 2) as first:
        contestant = Contestant(
            "2 processes", partial(told, first, str(each)), (2 * each, 0), 0, 2 * each, note="messages over loopback"
        )
        race("exchange", [contestant], rounds=sizes.rounds, bound_by_memory=False)
