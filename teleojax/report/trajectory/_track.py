"""`track`: the checkpoints of a run measured and fitted in order, each once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from teleojax._errors import UsageError
from teleojax.diagnose._changes import FALSE_ALARM
from teleojax.engine import is_statistics, measure
from teleojax.engine._journal import identity
from teleojax.report._assemble import fit
from teleojax.report._load import load_report
from teleojax.report._options import DEFAULT_FAMILIES
from teleojax.report._report import Report
from teleojax.report.trajectory._record import RunFile, without_statistics
from teleojax.report.trajectory._result import TrackedStep, Trajectory
from teleojax.report.trajectory._steps import Checkpoint, checkpoints_of
from teleojax.sources import open_source
from teleojax.sources._open import URL
from teleojax.sources._rules import Rules
from teleojax.sources._structure import structured

UNRECORDED = ("budget_bytes",)  # options that no number depends on
REFUSED = {
    "axis": "Fit a checkpoint along the axis.",
    "resume": "The file `out` keeps finished steps.",
    "multiprocess": "Track in one process, or measure each checkpoint to a statistics file with many.",
}
Progress = Callable[[int, int], None]


def track(
    targets: Any,
    *,
    out: str | Path | None = None,
    step_pattern: str | None = None,
    families: str | Iterable[str] = DEFAULT_FAMILIES,
    include: str | None = None,
    exclude: str | None = None,
    min_size: int = 0,
    false_alarm: float = FALSE_ALARM,
    progress: Progress | None = None,
    stop: Callable[[], str | None] | None = None,
    **options: Any,
) -> Trajectory:
    """Every statistic of every tensor over the checkpoints of a run, and where it changes.

    `targets` is a directory of checkpoints, a list of paths whose names say the step (checkpoint-500,
    step_1000.safetensors, ckpt-00012, Orbax's 1000, global_step1000, epoch=3-step=900.ckpt), or a mapping of steps to
    anything that `fit` takes: parameters, a path, a Measured. `step_pattern` is a regular expression for other names;
    its first group is the step. `families`, `include`, `exclude`, `min_size` and `options` are those of `fit`.
    The results keep no histograms, so that a run of any length fits in memory.

    `out` is a file of JSON lines (see `teleojax.report.trajectory._record`) that is written anew, whole or not at all,
    after every step. Steps that are in it already are not read again, whether or not their checkpoints are still there;
    one of which tensors had failed is. A checkpoint is the same if its files' names, sizes, times of change and header
    are (a remote one if its address is); one that has changed is refused before anything is read. Arrays are measured
    again.

    `false_alarm` is the share of series of independent noise in which `change_points` finds something. `progress(done,
    total)` is called with bytes of the checkpoint at hand. When `stop` returns a reason, the step at hand is dropped
    and those before it are returned.

    Raises UsageError for a name without a step, two checkpoints of one step, a changed checkpoint, or a file of other
    options; CorruptInputError for an `out` that is no such file, InputError for a directory without checkpoints; else
    as `fit`. What was measured before is then in `out`.
    """
    asked = (families,) if isinstance(families, str) else tuple(families)
    chosen = {"include": include, "exclude": exclude, "min_size": min_size, **options}
    recorded = _recorded(asked, chosen)
    file = RunFile(out, recorded) if out is not None else None
    found = checkpoints_of(targets, step_pattern)
    finished = file.steps if file is not None else {}
    given = {c.step for c in found}
    points = {step: p for step, p in finished.items() if step not in given or not _failed(p)}
    if file is not None:
        _refuse_changed(found, points, file.path, chosen)
    for checkpoint in found:
        if checkpoint.step in points and checkpoint.is_path:
            continue
        if stop is not None and stop() is not None:
            break
        known = _identity(checkpoint, chosen) if file is not None else None
        report = _fitted(checkpoint, asked, chosen, progress, stop)
        if stop is not None and stop() is not None and report.summary["failed"]:
            break
        point = TrackedStep(checkpoint.step, checkpoint.name, without_statistics(report), known)
        points[point.step] = point
        if file is not None:
            file.add(point)
    ordered = tuple(points[step] for step in sorted(points))
    trajectory = Trajectory.of(ordered, recorded, false_alarm)
    if file is not None:
        file.finish(trajectory)
    return trajectory


def _recorded(families: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on, as JSON has it: options that differ from their defaults."""
    for option, remedy in REFUSED.items():
        if options.get(option) is not None and options[option] is not False:
            raise UsageError("track", found=option, needed="whole tensors, one process", remedy=remedy)
    parameters = {**inspect.signature(measure).parameters, **inspect.signature(fit).parameters}
    set_apart = {
        k: v for k, v in options.items() if k not in UNRECORDED and (k not in parameters or v != parameters[k].default)
    }
    plain = {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in sorted(set_apart.items())}
    return {"families": list(families), **plain}


def _failed(point: TrackedStep) -> bool:
    return any(r.status == "failed" for r in point.report.values())


def _refuse_changed(
    found: Iterable[Checkpoint], points: dict[int, TrackedStep], file: Path, options: dict[str, Any]
) -> None:
    for checkpoint in found:
        known = points.get(checkpoint.step)
        if known is None or not checkpoint.is_path:
            continue
        now = _identity(checkpoint, options)
        if now != known.identity:
            raise UsageError(
                checkpoint.target,
                found=f"another checkpoint of step {checkpoint.step} than {file} has "
                "(names, sizes, times of change, header or configuration differ)",
                needed="the one that was measured, or a file for another run",
                remedy=f"If the change is meant, remove {file} and begin again, or choose another file.",
            )


def _identity(checkpoint: Checkpoint, options: dict[str, Any]) -> dict[str, Any] | None:
    """What tells the checkpoint from another: its files and what rules make of them, the address alone of a remote one;
    None of arrays.
    """
    if not checkpoint.is_path:
        return None
    if URL.match(str(checkpoint.target)):
        return {"url": str(checkpoint.target)}
    path = Path(checkpoint.target)
    if is_statistics(path) or path.suffix == ".jsonl":
        status = path.stat()
        return {"files": [[path.name, status.st_size, status.st_mtime_ns]], "header": ""}
    rules = options.get("rules")
    named = None if rules is None else Rules.load(rules)
    return identity(structured(open_source(checkpoint.target), split=options.get("split", True), rules=named))


def _fitted(
    checkpoint: Checkpoint,
    families: tuple[str, ...],
    options: dict[str, Any],
    progress: Progress | None,
    stop: Callable[[], str | None] | None,
) -> Report:
    target = checkpoint.target
    if isinstance(target, Report):
        return target
    if checkpoint.is_path and Path(target).suffix == ".jsonl":
        return load_report(target)
    asked = {k: v for k, v in options.items() if v or k not in ("include", "exclude", "min_size")}
    if checkpoint.is_path:
        asked |= {k: v for k, v in (("progress", progress), ("stop", stop)) if v is not None}
    return fit(target, families=families, axis=None, **asked)
