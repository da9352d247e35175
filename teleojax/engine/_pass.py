"""One pass over the bytes of a source, or a share of them -> the statistics of the parts that lie in it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle

from teleojax._errors import InputError
from teleojax.blocks import LoadedWindow, Piece, load_windows, plan_windows
from teleojax.blocks._share import Ranges
from teleojax.engine._accumulate import Accumulator, PatternCounts, Rows, State, finish_all
from teleojax.engine._groups import Part, ShortRows, held_bytes
from teleojax.engine._window import Device, accumulate_window, working_devices
from teleojax.sources import Source
from teleojax.stats import TensorStats

HELD_BYTES = 1 << 25  # begun at once, of what tensors hold until they are complete
IN_FLIGHT = 2  # windows begun before the first of them is collected: what the host does meanwhile stalls nothing


@dataclass(slots=True)
class Outcome:
    """What a pass found: the statistics of whole parts, by tensor and number, and the states of those cut at an end.

    `failed` says of tensors why not; `error` is the last error behind that.
    """

    complete: dict[tuple[str, int], TensorStats] = field(default_factory=dict)
    cut: dict[tuple[str, int], State] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    error: InputError | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """How to read: of each storage the parts, in order of their offset, and if not all, which bytes of it.

    `found` is told of each part as soon as it is complete, `read` of the bytes done; `stop` is asked before each window
    and, where it gives a reason, nothing more is begun.
    """

    source: Source
    parts: Mapping[str, Sequence[Part]]
    ranges: Ranges | None
    length: int
    histogram: bool
    found: Callable[[Part, TensorStats], None]
    read: Callable[[int], None]
    stop: Callable[[], str | None]

    def run(self) -> Outcome:
        """Read everything once. An error of a storage ends that storage: what it held whole before it broke is kept."""
        outcome = Outcome()
        with (
            ThreadPoolExecutor(1, thread_name_prefix="teleojax-read") as reader,
            ThreadPoolExecutor(cores(), thread_name_prefix="teleojax-count") as counters,
        ):
            begun: deque[Callable[[], None]] = deque()
            devices = cycle(working_devices())

            def collect(most: int) -> None:
                """Complete begun windows, oldest first, until at most so many are left."""
                while len(begun) > most:
                    begun.popleft()()

            for storage in self._mine():
                try:
                    for window, in_flight in self._begin(storage, outcome, reader, counters, devices):
                        begun.append(window)
                        collect(in_flight)
                except InputError as e:
                    collect(0)
                    outcome.error = e
                    self._fail(storage, outcome, str(e))
            collect(0)
            if reason := self.stop():
                for storage in self._mine():
                    self._fail(storage, outcome, reason)
        return outcome

    def _mine(self) -> Iterator[str]:
        for storage in self.source.storages:
            if storage in self.parts and (self.ranges is None or storage in self.ranges):
                yield storage

    def _range(self, storage: str) -> tuple[int, int | None]:
        return (0, None) if self.ranges is None else self.ranges[storage]

    def _fail(self, storage: str, outcome: Outcome, reason: str) -> None:
        """Every tensor of the storage of which a part should have been found, or begun, and was not."""
        for part in self.parts[storage]:
            begin, end = part.bytes_in(self._range(storage))
            key = (part.spec.name, part.number)
            if begin < end and key not in outcome.complete and key not in outcome.cut:
                outcome.failed.setdefault(part.spec.name, reason)

    def _begin(
        self,
        storage: str,
        outcome: Outcome,
        reader: Executor,
        counters: Executor,
        devices: Iterator[Device | None],
    ) -> Iterator[tuple[Callable[[], None], int]]:
        """Begin one window after another; with each comes how many may be left begun when the next is asked for.

        A window's results are collected once later ones have begun, so that the device never waits for the host. A
        window of many parts is begun in several goes: each of them has counts of its own.
        """
        parts = self.parts[storage]
        specs = [part.spec for part in parts]
        windows = plan_windows(specs, self.length, *self._range(storage))
        last = {piece.tensor: number for number, window in enumerate(windows) for piece in window.pieces}
        active: dict[int, Accumulator] = {}

        def begin(
            number: int, loaded: LoadedWindow, pieces: tuple[Piece, ...], device: Device | None
        ) -> Callable[[], None]:
            window = replace(loaded, window=replace(loaded.window, pieces=pieces))
            collect = accumulate_window(window, specs, active, self.length, counters, device)
            for piece in pieces:
                if isinstance(short := active[piece.tensor], ShortRows):
                    short.add_piece(loaded.bytes_of(piece.start, piece.stop))

            def end() -> None:
                collect()
                done = {piece.tensor: active.pop(piece.tensor) for piece in pieces if last[piece.tensor] == number}
                self._finish([(parts[t], held) for t, held in done.items()], storage, outcome)
                self.read(sum(p.stop - p.start for p in pieces))

            return end

        with self.source.open(storage) as opened:
            # every device is at work; but a buffer is filled again after the window after it
            in_flight = max(IN_FLIGHT, len(working_devices())) if opened.mapped else 1
            for number, loaded in enumerate(load_windows(opened, windows, self.length, reader)):
                if self.stop():
                    return
                pieces, held, device = [], 0, next(devices)
                for piece in loaded.window.pieces:
                    pieces.append(piece)
                    if piece.tensor not in active:
                        active[piece.tensor] = parts[piece.tensor].accumulator(histogram=self.histogram)
                        held += held_bytes(specs[piece.tensor], active[piece.tensor])
                    if held >= HELD_BYTES or piece is loaded.window.pieces[-1]:
                        yield begin(number, loaded, tuple(pieces), device), in_flight
                        pieces, held = [], 0

    def _finish(self, done: list[tuple[Part, Accumulator]], storage: str, outcome: Outcome) -> None:
        """Parts of which the last byte in the range has been added."""
        whole: dict[str, tuple[Part, Accumulator]] = {}
        for index, (part, held) in enumerate(done):
            if part.bytes_in(self._range(storage)) == part.bytes_in((0, None)):
                whole[str(index)] = part, held
            elif isinstance(held, PatternCounts | Rows):  # nothing else is large enough to be cut
                outcome.cut[part.spec.name, part.number] = held.state()
        for index, stats in finish_all({i: held for i, (_, held) in whole.items()}).items():
            part = whole[index][0]
            outcome.complete[part.spec.name, part.number] = stats if self.histogram else _moments_alone(stats)
            self.found(part, outcome.complete[part.spec.name, part.number])


def _moments_alone(stats: TensorStats) -> TensorStats:
    return TensorStats(stats.moments, None, tuple(_moments_alone(g) for g in stats.groups))


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
