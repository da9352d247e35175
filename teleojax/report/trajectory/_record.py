"""The JSON lines of a trajectory, written and read back; data alone, nothing in them is executed.

    {"kind": "run", "options": {…}}                           what the results depend on
    {"kind": "tensor", "step": 500, "name": …, "mu": …, …}    a measured tensor at a step: the keys of a report's lines
    {"kind": "step", "step": 500, "checkpoint": …, "tensors": …, "ok": …, "seconds": …, "identity": …}
                                                              after the tensors of its step: totals, and what tells the
                                                              checkpoint from itself after a change
    {"kind": "change", "name": …, "stat": "mu", "step": 900, "previous_step": 850, "before": …, "after": …,
     "slope_before": …, "slope_after": …, "gain": …}          see diagnose/_changes.py; stat "present": it appears
                                                              (0, 1) or vanishes (1, 0)
    {"summary": {"steps": …, "measured": …, "kept": …, …}}    last; changes and summary are there once a run has ended

After every step the file is written whole beside the old one and renamed over it: it is small beside the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, InputError, UsageError
from teleojax.report._load import _checked, _object, _report
from teleojax.report._report import Report
from teleojax.report._result import TensorFit
from teleojax.report._write import write_atomically
from teleojax.report.trajectory._result import TrackedStep, Trajectory

REMEDY = "Choose another file, or remove this one and begin again."


class RunFile:
    """The file of a run: the steps that it holds, in `steps`, and more of them written as they are finished."""

    def __init__(self, path: str | Path, options: dict[str, Any]) -> None:
        self.path = Path(path)
        self.steps: dict[int, TrackedStep] = {}
        self._options = options
        self._blocks: dict[int, str] = {}
        if self.path.exists():
            self._read()

    def add(self, step: TrackedStep) -> None:
        """A finished step: it is on the disk when this returns. Raises UsageError where it cannot be written."""
        self.steps[step.step] = step
        self._blocks[step.step] = _text(_block(step))
        self._write("")

    def finish(self, trajectory: Trajectory) -> None:
        """The changes and the summary, after all steps."""
        self._write(_text(_end(trajectory)))

    def _write(self, end: str) -> None:
        blocks = (self._blocks[step] for step in sorted(self._blocks))
        write_atomically(self.path, "".join([_text([_run(self._options)]), *blocks, end]))

    def _read(self) -> None:
        try:
            lines = [line + "\n" for line in self.path.read_bytes().decode().split("\n") if line]
        except OSError as e:
            raise InputError(self.path, found=e.strerror or str(e), needed="a readable file", remedy=REMEDY) from e
        except UnicodeDecodeError as e:
            raise self._refused("bytes that are no UTF-8") from e
        rows = [_object(self.path, number, line) for number, line in enumerate(lines, 1)]
        if not rows or rows[0].get("kind") != "run" or not isinstance(rows[0].get("options"), dict):
            raise self._refused("a file that does not begin as one of a run")
        if rows[0]["options"] != self._options:
            raise UsageError(
                self.path,
                found=f"a run with {json.dumps(rows[0]['options'], ensure_ascii=False)}",
                needed=f"one with {json.dumps(self._options, ensure_ascii=False)}",
                remedy="Give the same options, or another file.",
            )
        self._keep(lines, rows)

    def _keep(self, lines: list[str], rows: list[dict[str, Any]]) -> None:
        results: dict[str, TensorFit] = {}
        begin = 1
        for number, row in enumerate(rows[1:], 2):
            kind = row.get("kind")
            if kind == "tensor":
                bare = {k: v for k, v in row.items() if k not in ("kind", "step")}
                result = _checked(self.path, number, bare)
                results[result.name] = result
            elif kind == "step":
                step, checkpoint, identity = row.get("step"), row.get("checkpoint"), row.get("identity")
                if not isinstance(step, int) or not isinstance(checkpoint, str) or step in self.steps:
                    raise self._refused(f"a step {step!r:.40} of a checkpoint {checkpoint!r:.40} in line {number}")
                totals = {k: v for k, v in row.items() if k not in ("kind", "step", "checkpoint", "identity")}
                report = _report(results, totals, self.path)
                identity = identity if isinstance(identity, dict) else None
                self.steps[step] = TrackedStep(step, checkpoint, report, identity, kept=True)
                self._blocks[step] = "".join(lines[begin:number])
                results, begin = {}, number
            elif kind != "change" and set(row) != {"summary"}:
                raise self._refused(f"a line {number} of no known kind")
        if results:
            raise self._refused(f"tensors after the last step ({', '.join(list(results)[:3])}, …)")

    def _refused(self, found: str) -> CorruptInputError:
        return CorruptInputError(
            self.path, found=found, needed="JSON lines as teleojax track writes them", remedy=REMEDY
        )


def without_statistics(report: Report) -> Report:
    """The same results as they would be read back from a file; skipped tensors are left to the totals."""
    source = Path(report.measured.source)
    kept = {name: _checked(source, 0, r.to_dict()) for name, r in report.items() if r.status != "skipped"}
    return _report(kept, report.summary, source)


def trajectory_lines(trajectory: Trajectory) -> str:
    """All lines of a trajectory."""
    blocks = [_text(_block(step)) for step in trajectory.points]
    return "".join([_text([_run(trajectory.options)]), *blocks, _text(_end(trajectory))])


def _run(options: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "run", "options": options}


def _block(step: TrackedStep) -> Iterator[dict[str, Any]]:
    for result in step.report.values():
        yield {"kind": "tensor", "step": step.step, **result.to_dict()}
    yield step.to_dict()


def _end(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    for change in trajectory.changes:
        yield change.to_dict()
    yield {"summary": trajectory.summary}


def _text(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
