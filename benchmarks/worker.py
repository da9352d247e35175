"""A process that measures a checkpoint with others, whenever process 0 reads a line; see test_processes.py.

    python benchmarks/worker.py CHECKPOINT

Process 0 answers with the number of values and the sum of the logarithms' means.
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
    while gather(sys.stdin.readline().encode() if first else b"")[0]:
        measured = tj.measure(sys.argv[1], multiprocess=True)
        if first:
            moments = [s.moments for s in measured.values()]
            print(sum(m.n for m in moments), sum(m.mean for m in moments), flush=True)


if __name__ == "__main__":
    main()
