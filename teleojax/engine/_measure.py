"""`measure`: one pass over a source -> the statistics of every tensor."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from teleojax._errors import InputError, UsageError
from teleojax.blocks import LoadedWindow, Piece, load_windows, plan_windows, window_bytes
from teleojax.engine._accumulate import Accumulator, finish_all
from teleojax.engine._groups import Part, ShortRows, held_bytes, parts_of
from teleojax.engine._window import accumulate_window
from teleojax.sources import Source, TensorSpec, open_source
from teleojax.sources._index import by_storage, natural_key
from teleojax.stats import TensorStats

HELD_BYTES = 1 << 25  # begun at once, of what tensors hold until they are complete
IN_FLIGHT = 2  # windows begun before the first of them is collected: what the host does meanwhile stalls nothing


_Begun = Callable[[], tuple[dict[str, TensorStats], int]]  # the tensors that a window completes, and its bytes


@dataclass(frozen=True, slots=True)
class Measured(Mapping[str, TensorStats]):
    """Tensor name -> TensorStats, in natural order of the names (layer.2 before layer.10).

    `specs` holds every tensor of the source, measured or not; `skipped` and `failed` say of the others why not.
    """

    source: str
    specs: dict[str, TensorSpec]
    stats: dict[str, TensorStats]
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __getitem__(self, name: str) -> TensorStats:
        try:
            return self.stats[name]
        except KeyError:
            why = self.skipped.get(name) or self.failed.get(name)
            raise KeyError(f"{name}: not measured ({why})" if why else name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.stats)

    def __len__(self) -> int:
        return len(self.stats)

    @staticmethod
    def of(stats: Mapping[str, TensorStats]) -> Measured:
        """Statistics that were made elsewhere, by name, as if they had been measured: flat tensors of that size."""
        specs = {}
        for name in sorted(stats, key=natural_key):
            histogram, size = stats[name].histogram, stats[name].moments.size
            specs[name] = TensorSpec(name, (size,), histogram.dtype if histogram else "float32", "statistics", 0, 0)
        return Measured("statistics", specs, {name: stats[name] for name in specs})

    def select(self, selection: Selection) -> Measured:
        """The same, with the tensors that the selection leaves out among the skipped."""
        out = {n: r for n in self.stats if (r := selection.reason(self.specs[n])) is not None}
        stats = {name: s for name, s in self.stats.items() if name not in out}
        return replace(self, stats=stats, skipped={**self.skipped, **out})

    @property
    def nbytes(self) -> int:
        """Bytes of all measured tensors."""
        return sum(self.specs[name].nbytes for name in self.stats)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tensors to measure: names that `include` matches and `exclude` does not, of at least `min_size` values."""

    include: str | None = None
    exclude: str | None = None
    min_size: int = 0

    def __post_init__(self) -> None:
        """Refuse a pattern that is none, whether or not there is a tensor to try it on."""
        for option in ("include", "exclude"):
            _pattern(option, getattr(self, option) or "")

    def reason(self, spec: TensorSpec) -> str | None:
        """Why a tensor is left out, or None."""
        if spec.skip is not None:
            return spec.skip
        if self.include is not None and not _pattern("include", self.include).search(spec.name):
            return f"filtered: include {self.include!r} does not match"
        if self.exclude is not None and _pattern("exclude", self.exclude).search(spec.name):
            return f"filtered: exclude {self.exclude!r} matches"
        if spec.size < self.min_size:
            return f"filtered: {spec.size} values, fewer than {self.min_size}"
        return None


def _pattern(option: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as e:
        raise UsageError(
            option, found=f"{expression!r} ({e})", needed="a Python regular expression", remedy="Correct the pattern."
        ) from e


def measure(
    target: Any,
    *,
    include: str | None = None,
    exclude: str | None = None,
    min_size: int = 0,
    histogram: bool = True,
    groups: int | None = None,
    budget_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Read every selected parameter once: LogMoments and BitHistogram of each tensor.

    `target` is a path, a list of paths, "-" (a safetensors stream on standard input), any pytree of NumPy or JAX
    arrays, or a Source. `include` and `exclude` are regular expressions searched for in tensor names. Without
    `histogram` only the LogMoments are taken, at twice the speed, and TensorStats.histogram is None. `budget_bytes`
    bounds the memory held for reading; the numbers do not depend on it. `progress(done, total)` is called with bytes.

    With `groups` = G ≥ 2 every tensor of at least 2G values is measured as G contiguous stretches of nearly equal
    length, in storage order: `TensorStats.groups`, which `TensorStats.without` leaves out one at a time. The tensor's
    own statistics are their merge: the same counts, moments equal up to rounding. Where the stretches end is a function
    of size and G alone. The results take up to G times the memory: with G = 20 about 1 MB a tensor, 4 MB in float16.

    Integer, empty and filtered tensors are listed under `skipped`. When a storage ends early or breaks, the tensors
    read whole before that are kept and the others listed under `failed`; if nothing at all could be measured the error
    is raised. Raises InputError and CorruptInputError for a source that cannot be read, UsageError for a bad pattern, a
    budget too small or fewer than two groups.
    """
    if groups is not None and groups < 2:
        raise UsageError(
            "groups", found=str(groups), needed="2 or more", remedy="Give 20, say, or leave the option out."
        )
    start = time.perf_counter()
    length = window_bytes(budget_bytes)
    select = Selection(include, exclude, min_size)
    source: Source = open_source(target)
    specs = {s.name: s for s in sorted(source.specs, key=lambda s: natural_key(s.name))}
    skipped = {name: reason for name, s in specs.items() if (reason := select.reason(s)) is not None}
    wanted = tuple(s for s in source.specs if s.name not in skipped)
    total, done = sum(s.nbytes for s in wanted), 0
    stats: dict[str, TensorStats] = {}
    failed: dict[str, str] = {}
    error: InputError | None = None
    stored = by_storage(wanted)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="teleojax-read") as reader,
        ThreadPoolExecutor(_cores(), thread_name_prefix="teleojax-count") as counters,
    ):
        begun: deque[_Begun] = deque()

        def collect(most: int) -> None:
            """Complete begun windows, oldest first, until at most so many are left."""
            nonlocal done
            while len(begun) > most:
                finished, n_bytes = begun.popleft()()
                stats.update(finished)
                done += n_bytes
                if progress is not None:
                    progress(done, total)

        for storage in (s for s in source.storages if s in stored):
            mine = tuple(parts_of(stored[storage], groups))
            try:
                for window, in_flight in _begin_storage(source, storage, mine, length, histogram, reader, counters):
                    begun.append(window)
                    collect(in_flight)
            except InputError as e:  # what the storage held whole before it broke is kept
                collect(0)
                error = e
                failed |= {s.name: str(e) for s in stored[storage] if s.name not in stats}
        collect(0)
    if error is not None and not stats:
        raise error
    ordered = {name: stats[name] for name in specs if name in stats}
    return Measured(source.name, specs, ordered, skipped, failed, time.perf_counter() - start)


def _begin_storage(
    source: Source,
    storage: str,
    parts: Sequence[Part],
    length: int,
    histogram: bool,
    reader: Executor,
    counters: Executor,
) -> Iterator[tuple[_Begun, int]]:
    """Begin one window after another; with each comes how many may be left begun when the next is asked for.

    A window's results are collected once later ones have begun, so that the device never waits for the host. A window
    of many tensors, or stretches of them, is begun in several goes: each of them has counts of its own.
    """
    specs = [part.spec for part in parts]
    windows = plan_windows(specs, length)
    last = {piece.tensor: number for number, window in enumerate(windows) for piece in window.pieces}
    active: dict[int, Accumulator] = {}
    stretches: dict[str, list[TensorStats]] = {}  # those complete of tensors that are not, in storage order

    def begin(number: int, loaded: LoadedWindow, pieces: tuple[Piece, ...]) -> _Begun:
        window = replace(loaded, window=replace(loaded.window, pieces=pieces))
        collect = accumulate_window(window, specs, active, length, counters)
        for piece in pieces:
            if isinstance(short := active[piece.tensor], ShortRows):
                short.add_piece(loaded.bytes_of(piece.start, piece.stop))

        def end() -> tuple[dict[str, TensorStats], int]:
            collect()
            complete = [piece.tensor for piece in pieces if last[piece.tensor] == number]
            finished = finish_all({str(t): active.pop(t) for t in complete})
            stats: dict[str, TensorStats] = {}
            for t in complete:
                part, one = parts[t], finished[str(t)]
                arrived = stretches.setdefault(part.spec.name, [])
                arrived.append(one if histogram else _moments_alone(one))
                if len(arrived) == part.n_parts:
                    del stretches[part.spec.name]
                    stats[part.spec.name] = arrived[0] if part.n_parts == 1 else TensorStats.from_groups(arrived)
            return stats, sum(p.stop - p.start for p in pieces)

        return end

    with source.open(storage) as opened:
        in_flight = IN_FLIGHT if opened.mapped else 1  # a buffer is filled again after the window after it
        for number, loaded in enumerate(load_windows(opened, windows, length, reader)):
            pieces, held = [], 0
            for piece in loaded.window.pieces:
                pieces.append(piece)
                if piece.tensor not in active:
                    active[piece.tensor] = parts[piece.tensor].accumulator(histogram=histogram)
                    held += held_bytes(specs[piece.tensor], active[piece.tensor])
                if held >= HELD_BYTES or piece is loaded.window.pieces[-1]:
                    yield begin(number, loaded, tuple(pieces)), in_flight
                    pieces, held = [], 0


def _moments_alone(stats: TensorStats) -> TensorStats:
    return TensorStats(stats.moments, None, tuple(_moments_alone(g) for g in stats.groups))


def _cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
