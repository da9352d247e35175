"""A process that measures a checkpoint with others, whenever process 0 reads a line; see test_processes.py.

    python benchmarks/worker.py CHECKPOINT

The line is "measure": process 0 answers with the number of values and the sum of the logarithms' means; or a number:
every process sends a message of so many bytes to all, and process 0 answers with what has arrived.
"""

from __future__ import annotations

import sys

import jax

import teleojax as tj
from teleojax.engine import gather


def main() -> None:
    """Command line."""
    tj.engine.initialize()
    first = jax.process_index() == 0
    while line := gather(sys.stdin.readline().encode() if first else b"")[0].decode().strip():
        if line == "measure":
            moments = [s.moments for s in tj.measure(sys.argv[1], multiprocess=True).values()]
            answer = sum(m.n for m in moments), sum(m.mean for m in moments)
        else:
            answer = sum(len(message) for message in gather(bytes(int(line)))), 0
        if first:
            print(*answer, flush=True)


if __name__ == "__main__":
    main()
