"""What was measured, as plain records that go into JSON and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from teleojax.bench._data import usable_cores
from teleojax.bench._timing import Contestant, Timing
from teleojax.report.plots._roofline import MEMORY_READ


@dataclass(frozen=True, slots=True)
class Record:
    """One contestant of one benchmark. None stands for what does not apply or was not measured.

    Seconds are of one run, `warmup_s` of the first, compilation included. `share_of_read` is its bytes a second over
    those of the memory read that took turns with it, else of the run's limit. `teleojax_speedup` is how many times its
    values a second (without values: its runs a second) teleojax reached in the same rounds. `error` is the largest
    relative deviation of its answer.
    """

    benchmark: str
    contestant: str
    dtype: str | None
    n_values: int | None
    n_bytes: int | None
    rounds: int
    warmup_s: float | None
    best_s: float | None
    median_s: float | None
    values_per_s: float | None
    bytes_per_s: float | None
    share_of_read: float | None
    teleojax_speedup: float | None
    error: float | None
    note: str
    peak_bytes: int | None = None  # of anonymous memory, where a process of its own was watched

    def as_dict(self) -> dict[str, Any]:
        """Plain fields, no NaN."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def read_contestant(*arrays: np.ndarray) -> Contestant:
    """The largest byte of the arrays, a thread a core: it reads everything and keeps nothing."""
    threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="memory-read")
    parts = [p for a in arrays for p in np.array_split(a.reshape(-1).view(np.uint8), usable_cores())]

    def run() -> int:
        return max(threads.map(lambda part: int(np.maximum.reduce(part)), parts))

    expected = max(int(np.max(part)) for part in parts)
    n_values, n_bytes = sum(a.size for a in arrays), sum(a.nbytes for a in arrays)
    return Contestant(MEMORY_READ, run, expected, n_values, n_bytes, rtol=0, note="the limit, same bytes")


def records_of(
    benchmark: str,
    timings: Sequence[Timing],
    *,
    dtype: str | None,
    read_limit: float | None,
    subject: str = "teleojax",
) -> list[Record]:
    """Records of contestants that ran in turn; `read_limit` in bytes a second serves where no memory read was among
    them, None where memory is not what limits.
    """
    paces = {t.contestant.name: _rate(t.contestant.n_values or 1, t.best_s) for t in timings}
    reads = [_rate(t.contestant.n_bytes, t.best_s) for t in timings if t.contestant.name == MEMORY_READ]
    limit = reads[0] if reads else read_limit
    ours = paces.get(subject)
    records = []
    for t in timings:
        c = t.contestant
        bytes_per_s, pace = _rate(c.n_bytes, t.best_s), paces[c.name]
        records.append(
            Record(
                benchmark=benchmark,
                contestant=c.name,
                dtype=dtype,
                n_values=c.n_values or None,
                n_bytes=c.n_bytes or None,
                rounds=len(t.seconds),
                warmup_s=t.warmup_s,
                best_s=t.best_s,
                median_s=t.median_s,
                values_per_s=pace if c.n_values else None,
                bytes_per_s=bytes_per_s,
                share_of_read=bytes_per_s / limit if bytes_per_s and limit else None,
                teleojax_speedup=ours / pace if ours and pace and c.name != MEMORY_READ else None,
                error=t.error,
                note=c.note,
            )
        )
    return records


def absent_record(benchmark: str, contestant: str, dtype: str | None, why: str) -> Record:
    """A contestant that could not run, and why: it stays in the table."""
    return Record(benchmark, contestant, dtype, None, None, 0, *[None] * 8, note=why)


def _rate(amount: int, seconds: float) -> float | None:
    return amount / seconds if amount and seconds > 0 else None
