"""Fit a checkpoint and print a JSON line a tensor, from Python: what `teleojax fit --format jsonl` does.

    python scripts/fit_checkpoint.py model-dir/ > model.jsonl
    zstd -dc model.safetensors.zst | python scripts/fit_checkpoint.py - --stats model.stats > model.jsonl

With --stats the statistics are kept as well, so that other fits need no weights. Exit status: as of teleojax.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import teleojax as tj


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, a directory, or - for a stream")
    parser.add_argument("--stats", type=Path, metavar="FILE", help="keep the statistics here")
    parser.add_argument("--families", default="lognormal,halfnormal", metavar="A,B")
    arguments = parser.parse_args()
    try:
        measured = tj.measure(arguments.paths)
        if arguments.stats:
            tj.save_statistics(measured, arguments.stats)
        sys.stdout.write(tj.fit(measured, families=arguments.families.split(",")).jsonl())
    except tj.TeleojaxError as e:
        print(f"fit_checkpoint: error: {e}", file=sys.stderr)
        return e.exit_code
    return 4 if measured.failed else 0


if __name__ == "__main__":
    sys.exit(main())
