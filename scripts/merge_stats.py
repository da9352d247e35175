"""Merge statistics files, measured on different machines, and fit the whole: a JSON line a tensor.

    python scripts/merge_stats.py s1.stats s2.stats > model.jsonl
    python scripts/merge_stats.py s1.stats s2.stats -o model.stats > model.jsonl

A tensor that was split across files is merged to the whole. Exit status: as of teleojax.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import teleojax as tj


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="STATS", help="what teleojax measure wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the merged statistics here")
    arguments = parser.parse_args()
    try:
        merged = tj.merge_measured(*(tj.load_statistics(file) for file in arguments.files))
        if arguments.output:
            tj.save_statistics(merged, arguments.output)
        sys.stdout.write(tj.fit(merged).jsonl())
    except tj.TeleojaxError as e:
        print(f"merge_stats: error: {e}", file=sys.stderr)
        return e.exit_code
    return 4 if merged.failed else 0


if __name__ == "__main__":
    sys.exit(main())
