"""Run a command in several processes that work together over loopback, each given its place by the environment.

    python scripts/launch_processes.py -n 4 -- teleojax fit model-dir/ --multiprocess --format jsonl

The processes share the cores. What they write to standard output and error is passed on, standard error with the
process's number before each line. When one of them fails the others are told to stop; the exit code is that of the
process that failed first, else 0. SIGINT and SIGTERM are passed on to all.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

GRACE_SECONDS = 30  # between asking processes to stop and ending them


def free_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def place(process: int, n: int, port: int) -> dict[str, str]:
    """The environment that tells a process its place."""
    where = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(n),
        "JAX_PROCESS_ID": str(process),
    }
    return {**os.environ, **where}


def pass_on(lines: IO[bytes], prefix: bytes) -> None:
    """Copy lines to standard error, each with the process's number."""
    for line in lines:
        sys.stderr.buffer.write(prefix + line)
        sys.stderr.buffer.flush()


def launch(n: int, command: Sequence[str], pin: bool = False) -> int:
    """Start the processes, wait for them, and return the exit code of the first that failed, else 0."""
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    cores = sorted(os.sched_getaffinity(0)) if pin else []
    for number in range(n):
        only = ["taskset", "-c", str(cores[number % len(cores)])] if pin else []
        process = subprocess.Popen(
            [*only, *command], env=place(number, n, port), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        processes.append(process)
        readers.append(threading.Thread(target=pass_on, args=(process.stderr, b"[%d] " % number), daemon=True))
        readers[-1].start()

    def everywhere(signum: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, everywhere)
    code = wait(processes)
    for reader in readers:
        reader.join(timeout=1)
    return code


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; once one fails, ask the others to stop, and end those that do not."""
    failed: int | None = None
    deadline = float("inf")
    while any(p.poll() is None for p in processes):
        codes = [p.poll() for p in processes]
        if failed is None and (bad := [i for i, code in enumerate(codes) if code]):
            failed = codes[bad[0]]
            deadline = time.monotonic() + GRACE_SECONDS
            print(
                f"process {bad[0]} of {len(processes)} ended with {describe(failed)}: stopping the others",
                file=sys.stderr,
            )
            for p in processes:
                if p.poll() is None:
                    p.terminate()
        if time.monotonic() > deadline:
            for p in processes:
                p.kill()
        time.sleep(0.02)
    failed = failed or next((p.returncode for p in processes if p.returncode), 0)
    return 128 - failed if failed < 0 else failed


def describe(code: int | None) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=2, metavar="N", help="how many processes (default 2)")
    parser.add_argument("--pin", action="store_true", help="one core a process (Linux, taskset)")
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    return launch(arguments.n, arguments.command, arguments.pin)


if __name__ == "__main__":
    sys.exit(main())
