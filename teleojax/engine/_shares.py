"""What several processes found, each in its share of the bytes -> the statistics of the whole, in every process.

A message is records (see stats/_codec.py): first what failed, then the statistics of whole parts, and last, as a NumPy
archive, the states of the parts that were cut between processes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from teleojax._errors import InputError, UsageError
from teleojax.engine._accumulate import PatternCounts, Rows, State, finish_all
from teleojax.engine._groups import Part
from teleojax.engine._pass import Outcome
from teleojax.engine._processes import gather
from teleojax.sources import Source
from teleojax.stats._codec import each_record, pack, record, unpack


def merge_shares(mine: Outcome, parts: Iterable[Part], *, histogram: bool) -> Outcome:
    """The outcome of all processes together: every one of them calls this and gets the same.

    Parts that were cut are put together in the order of the processes, which is that of their bytes.
    """
    merged = Outcome(error=mine.error)
    states: dict[tuple[str, int], list[State]] = {}
    for message in gather(_encode(mine)):
        other = _decode(message)
        merged.complete |= other.complete
        merged.failed |= {name: reason for name, reason in other.failed.items() if name not in merged.failed}
        merged.error = merged.error or other.error
        for key, state in other.cut.items():
            states.setdefault(key, []).append(state)
    whole: dict[str, tuple[tuple[str, int], Any]] = {}
    for part in parts:
        key = (part.spec.name, part.number)
        if key in states and part.spec.name not in merged.failed:
            held = part.accumulator(histogram=histogram)
            if isinstance(held, PatternCounts | Rows):  # nothing else is large enough to be cut
                for state in states[key]:
                    held.absorb(state)
                whole[str(len(whole))] = key, held
    for index, stats in finish_all({i: held for i, (_, held) in whole.items()}).items():
        merged.complete[whole[index][0]] = stats
    return merged


def agree(source: Source, finished: Sequence[str], *, stream: bool) -> None:
    """See to it that all processes are about to do the same: every one of them calls this.

    Raises UsageError, in all of them, when they see different tensors or have different ones left to read, and for a
    stream, which one process alone can read.
    """
    if stream:
        raise UsageError(
            source.name, found="a stream", needed="a checkpoint that every process can open",
            remedy="Save it to a file, or measure it in one process.",
        )  # fmt: skip
    described = repr([(s.name, s.shape, s.dtype, s.offset) for s in source.specs]), list(finished)
    digests = gather(hashlib.sha256(repr(described).encode()).digest())
    if len(set(digests)) > 1:
        raise UsageError(
            source.name,
            found="processes that see different checkpoints, or different tensors in the file to resume from",
            needed="the same files for all of them",
            remedy="Give paths on a disk that all share, and the same options everywhere.",
        )


def _encode(outcome: Outcome) -> bytes:
    e = outcome.error
    error = None if e is None else {"where": e.where, "found": e.found, "needed": e.needed, "remedy": e.remedy}
    arrays = {f"{i}/{name}": a for i, state in enumerate(outcome.cut.values()) for name, a in state.items()}
    archive = io.BytesIO()
    np.savez(archive, **{"keys": _text(list(outcome.cut)), **arrays})  # pyright: ignore[reportArgumentType]
    records = [pack({"failed": outcome.failed, "error": error, "parts": len(outcome.complete)})]
    records += [pack({"name": name, "number": number}, s) for (name, number), s in outcome.complete.items()]
    return b"".join(map(record, [*records, archive.getvalue()]))


def _text(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _decode(message: bytes) -> Outcome:
    records = [payload for _, payload in each_record(memoryview(message), 0)]
    header, _ = unpack(records[0], "another process")
    outcome = Outcome(failed=header["failed"], error=None if header["error"] is None else _error(header["error"]))
    for payload in records[1 : 1 + header["parts"]]:
        key, stats = unpack(payload, "another process")
        if stats is not None:
            outcome.complete[key["name"], key["number"]] = stats
    with np.load(io.BytesIO(records[-1]), allow_pickle=False) as archive:
        for index, (name, number) in enumerate(json.loads(archive["keys"].tobytes())):
            prefix = f"{index}/"
            outcome.cut[name, number] = {
                key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)
            }
    return outcome


def _error(fields: Mapping[str, str]) -> InputError:
    return InputError(fields["where"], found=fields["found"], needed=fields["needed"], remedy=fields["remedy"])
