"""Contestants that run in turn in one process, each with an answer that is checked before it is timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from teleojax._errors import TeleojaxError


class WrongAnswerError(TeleojaxError):
    """A contestant computed something else than what it is timed for."""


REST_S, PATIENCE_S = 0.01, 1.0


def settle() -> None:
    """Wait, a second at most, until no thread of this process works any more.

    Those of a library may spin for a while after its work, OpenBLAS's for a tenth of a second; that is no cost of
    whoever runs next.
    """
    end = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(REST_S)
        if time.process_time() - used < REST_S / 5:
            return


def _same(result: Any) -> Any:
    return result


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One way to compute an answer.

    `run` returns once everything is computed: it blocks. `answer` turns what it returned into numbers, outside the
    clock; they must lie within `rtol`, one for all or one each, of `expected` (0: equal). `n_values` and `n_bytes` are
    what one run reads: a slow contestant may have a smaller sample than the others, and speeds are compared per value.
    `prepare` runs before every run, outside the clock.
    """

    name: str
    run: Callable[[], Any]
    expected: Any
    n_values: int
    n_bytes: int
    answer: Callable[[Any], Any] = _same
    rtol: float | Sequence[float] = 1e-6
    note: str = ""
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one contestant: the first run, compilation included, and the rounds after it.

    `error` is the largest relative deviation of its answer from what was expected.
    """

    contestant: Contestant
    warmup_s: float
    seconds: tuple[float, ...]
    error: float

    @property
    def best_s(self) -> float:
        """The fastest round; NaN without any."""
        return min(self.seconds, default=float("nan"))

    @property
    def median_s(self) -> float:
        """The middle round; NaN without any."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


@dataclass(eq=False)
class Race:
    """Contestants warmed up and checked; then rounds in which each runs once, in turn.

    Taking turns spreads whatever else the machine does over all of them, so that ratios hold where seconds do not.
    Raises WrongAnswerError on construction, before anything is timed.
    """

    contestants: Sequence[Contestant]
    warmups: list[float] = field(init=False, default_factory=list)
    errors: list[float] = field(init=False, default_factory=list)
    seconds: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.seconds = [[] for _ in self.contestants]
        for contestant in self.contestants:
            contestant.prepare()
            start = time.perf_counter()
            result = contestant.run()
            self.warmups.append(time.perf_counter() - start)
            self.errors.append(_check(contestant, result))
        gc.collect()

    def turn(self, *, leave_out: int | None = None) -> None:
        """One round: every contestant once, but for the one at index `leave_out`, which somebody else times."""
        for index, contestant in enumerate(self.contestants):
            if index != leave_out:
                contestant.prepare()
                settle()
                start = time.perf_counter()
                contestant.run()
                self.seconds[index].append(time.perf_counter() - start)

    def timings(self) -> list[Timing]:
        """What was measured so far, in the order of the contestants."""
        measured = zip(self.contestants, self.warmups, self.seconds, self.errors, strict=True)
        return [Timing(c, warmup, tuple(seconds), error) for c, warmup, seconds, error in measured]


def interleaved(contestants: Sequence[Contestant], rounds: int) -> list[Timing]:
    """Warm up and check all contestants, then time `rounds` rounds in which each runs once in turn.

    Raises WrongAnswerError, before anything is timed, for an answer that is not the expected one.
    """
    race = Race(contestants)
    for _ in range(rounds):
        race.turn()
    return race.timings()


def _check(contestant: Contestant, result: Any) -> float:
    """The largest relative deviation of the answer. Raises WrongAnswerError when it is too large."""
    got = np.asarray(contestant.answer(result), np.float64)
    expected = np.asarray(contestant.expected, np.float64)
    if got.shape != expected.shape:
        raise WrongAnswerError(
            contestant.name,
            found=f"an answer of shape {got.shape}",
            needed=f"shape {expected.shape}",
            remedy="Nothing was timed: correct the contestant.",
        )
    deviation = np.abs(got - expected)
    rtol = np.broadcast_to(contestant.rtol, expected.shape)
    ok = deviation <= rtol * np.abs(expected)  # False for NaN
    if not ok.all():
        where = int(np.flatnonzero(~ok.reshape(-1))[0])
        raise WrongAnswerError(
            contestant.name,
            found=f"{got.reshape(-1)[where]!r}",
            needed=f"{expected.reshape(-1)[where]!r} within {rtol.reshape(-1)[where]:g}",
            remedy="Nothing was timed: correct the contestant.",
        )
    scale = np.where(expected == 0, 1, np.abs(expected))
    return float((deviation / scale).max(initial=0.0))
