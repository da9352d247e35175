"""Several processes as one: how they find each other, and how bytes go from each to all."""

from __future__ import annotations

import os
import sys

import jax
import numpy as np

from teleojax._errors import ProcessLostError, UsageError

HEARTBEAT_SECONDS = 20  # after so long without a sign of life a process counts as lost, and JAX ends the others
CHUNK_BYTES = 1 << 28  # sent by all processes together at once, and held on every device meanwhile


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes that work together; to be called once in each, before any other use of JAX.

    What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and what these leave
    open is found by `jax.distributed` from Slurm, Open MPI, Kubernetes or a TPU pod. One process alone needs nothing.
    If a process is lost the others end within half a minute: with ProcessLostError when they wait for it, else ended
    by JAX's own runtime, which says so on standard error. Does nothing if `jax.distributed` has been initialised.

    Raises UsageError when the processes cannot be told, or do not come together.
    """
    if jax.distributed.is_initialized():
        return
    coordinator_address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES", num_processes)
    process_id = _number("JAX_PROCESS_ID", process_id)
    if num_processes == 1:
        return
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
        _connect()
    except (ValueError, RuntimeError) as e:  # JaxRuntimeError is one: processes that did not come together in time
        raise UsageError(
            "processes",
            found=f"no way to join them ({str(e).splitlines()[0]})",
            needed="a coordinator address, the number of processes and this one's id",
            remedy="Start them with Slurm or Open MPI, give --coordinator, --processes and --process-id, or run: "
            "python scripts/launch_processes.py -n 4 -- teleojax fit ...",
        ) from e


def _connect() -> None:
    """Connect to all others now: Gloo says so on standard output, where results belong; it is sent elsewhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        gather(b"")
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _number(variable: str, given: int | None) -> int | None:
    """What was given, else the number in an environment variable."""
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise UsageError(variable, found=repr(text), needed="a number", remedy="Correct it, or leave it out.")
    return int(text)


def gather(message: bytes) -> list[bytes]:
    """The message of every process, in their order: every process calls this, and waits for the others.

    Raises ProcessLostError when one of them ends meanwhile.
    """
    if jax.process_count() == 1:
        return [message]
    length = np.asarray([len(message)], np.int64).view(np.uint32)  # JAX has no 64-bit integers by default
    lengths = _allgather(length).view(np.int64).reshape(-1).tolist()
    received: list[list[bytes]] = [[] for _ in lengths]
    most = max(1, CHUNK_BYTES // len(lengths))
    for start in range(0, max(lengths), most):
        width = 1 << (min(most, max(lengths) - start) - 1).bit_length()  # few sizes: each is a program
        chunk = np.zeros(width, np.uint8)
        mine = np.frombuffer(message, np.uint8)[start : start + most]
        chunk[: len(mine)] = mine
        for parts, length, arrived in zip(received, lengths, _allgather(chunk), strict=True):
            parts.append(arrived[: max(0, min(most, length - start))].tobytes())
    return [b"".join(parts) for parts in received]


def _allgather(array: np.ndarray) -> np.ndarray:
    """The array of every process, along a new first axis."""
    from jax.experimental.multihost_utils import process_allgather

    try:
        return np.ascontiguousarray(process_allgather(array))
    except jax.errors.JaxRuntimeError as e:
        raise ProcessLostError(
            f"process {jax.process_index()} of {jax.process_count()}",
            found=f"another process gone ({str(e).splitlines()[0]})",
            needed="all of them until the end",
            remedy="See why it ended, and run again; with --resume what was finished is not read again.",
        ) from e
