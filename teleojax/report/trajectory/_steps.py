"""Which checkpoints a run has, and at which steps: told from names and first bytes, no header is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from teleojax._errors import InputError, UsageError
from teleojax.engine import is_statistics
from teleojax.sources._formats import FORMATS, HEAD_BYTES, format_of
from teleojax.sources._open import STDIN, URL

ENDINGS = re.compile(
    r"(\.(safetensors|gz|zst|index|json|pt|pth|bin|ckpt|gguf|onnx|keras|h5|hdf5|msgpack|zarr|zip|npy|npz|tflite|stats))+$",
    re.IGNORECASE,
)
SHARD = re.compile(r"[0-9]+-of-[0-9]+")
UNFINISHED = re.compile(r"(^|[^a-z])te?mp([^a-z]|$)", re.IGNORECASE)  # tmp-checkpoint-500, 1000.orbax-checkpoint-tmp-1
WORDS = tuple(  # the first of them that a name has counts: epoch=3-step=900.ckpt is step 900
    re.compile(rf"(?<![a-z])(?:global[-_]?)?(?:{word})s?[-_=. ]?([0-9]+)(?![0-9a-z])", re.IGNORECASE)
    for word in ("step", "iter|iteration", "checkpoint|ckpt|chkpt", "epoch")
)
PARENTS = 2  # folders above that may say the step: step_1000/params, checkpoint-500/model.safetensors
REMEDY = "Say which number it is: --step-pattern 'model-([0-9]+)', step_pattern in Python, or a mapping of steps."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step and what `fit` is to be given for it; `name` is how files and messages call it."""

    step: int
    target: Any
    name: str

    @property
    def is_path(self) -> bool:
        """Whether it lies in files, which tell whether it has changed."""
        return isinstance(self.target, str | os.PathLike)


def checkpoints_of(targets: Any, pattern: str | None = None) -> tuple[Checkpoint, ...]:
    """The checkpoints that were given, by rising step.

    `targets` is a path, a list of paths, or a mapping of steps to whatever `fit` takes. A directory that holds
    checkpoints with a step in their names stands for them; in it only names that say "step", "iter", "checkpoint",
    "ckpt" or "epoch", or are a number, count, and nothing that is unfinished. `pattern` is a regular expression whose
    first group, or all of it, is the step; it is searched for in names, then in those of two folders above.

    Raises UsageError for a bad pattern, a name without a step, two checkpoints of one step, or standard input;
    InputError for a directory that holds none, and for a path that is not there and names no step.
    """
    if isinstance(targets, Mapping):
        return tuple(_given(targets))
    paths = [targets] if isinstance(targets, str | os.PathLike) else list(targets)
    chosen = _compiled(pattern)
    found: list[Checkpoint] = []
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise UsageError(
                "track", found=f"a {type(path).__name__} among paths", needed="paths, or a mapping of steps",
                remedy="Give {step: parameters}.",
            )  # fmt: skip
        found += _of_path(os.fspath(path), chosen)
    return _in_order(found)


def _given(targets: Mapping[Any, Any]) -> Iterable[Checkpoint]:
    for step in targets:
        if not hasattr(step, "__index__") or isinstance(step, bool) or step < 0:
            raise UsageError(
                "track", found=f"the key {step!r}", needed="steps, which are whole numbers of 0 or more",
                remedy="Give {step: checkpoint}, or a list of paths whose names have steps.",
            )  # fmt: skip
    for step in sorted(targets):
        target = targets[step]
        named = isinstance(target, str | os.PathLike)
        yield Checkpoint(int(step), target, os.path.basename(os.fspath(target)) if named else f"step {step}")  # noqa: PTH119


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as e:
        raise UsageError(
            "step_pattern", found=f"{pattern!r} ({e})", needed="a Python regular expression",
            remedy="Correct the pattern.",
        ) from e  # fmt: skip


def _of_path(text: str, pattern: re.Pattern[str] | None) -> list[Checkpoint]:
    if text == STDIN:
        raise UsageError("track", found="standard input", needed="checkpoints in files", remedy="Give their paths.")
    url = URL.match(text) is not None
    path = Path(text)
    if not url and path.is_dir():
        inside = _inside(path, pattern)
        itself = step_of(path.resolve().name, pattern, plain=False)
        if inside and (len(inside) > 1 or itself is None or not is_checkpoint(path)):
            return inside
        if not is_checkpoint(path):
            raise InputError(
                path, found="a directory without checkpoints that have a step in their names",
                needed="checkpoint-500, step_1000.safetensors, 1000, … in it", remedy=REMEDY,
            )  # fmt: skip
    parts = text.rstrip("/").split("/") if url else path.resolve().parts
    step = step_of(parts[-1], pattern)
    above = (step_of(name, pattern, plain=False) for name in reversed(parts[-1 - PARENTS : -1]))
    step = step if step is not None else next((s for s in above if s is not None), None)
    if step is None and not url and not path.exists():
        raise InputError(
            text, found="no such file or directory", needed="a checkpoint, or a run's folder", remedy="Check the path."
        )
    if step is None:
        raise UsageError(text, found="a name without a step, or with several", needed="one number", remedy=REMEDY)
    return [Checkpoint(step, text, parts[-1])]


def _inside(folder: Path, pattern: re.Pattern[str] | None) -> list[Checkpoint]:
    found = []
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not UNFINISHED.search(p.name)):
        step = step_of(path.name, pattern, plain=False)
        if step is not None and is_checkpoint(path):
            found.append(Checkpoint(step, str(path), path.name))
    return found


def step_of(name: str, pattern: re.Pattern[str] | None = None, *, plain: bool = True) -> int | None:
    """The step that a name says, or None.

    With a `pattern`, what its first group, or all of it, finds. Else the number after "step", "iter", "checkpoint" or
    "epoch", or a name that is a number; with `plain` the only number of the name as well.
    """
    if pattern is not None:
        match = pattern.search(name)
        return _number(match[1 if pattern.groups else 0] or "") if match else None
    stem = SHARD.sub("", ENDINGS.sub("", name))
    for word in WORDS:
        if numbers := word.findall(stem):
            return _number(numbers[-1])
    numbers = re.findall("[0-9]+", stem)
    return _number(numbers[0]) if numbers == [stem] or (plain and len(numbers) == 1) else None


def _number(digits: str) -> int | None:
    return int(digits) if re.fullmatch(r"0*[0-9]{1,18}", digits) else None  # of 64 bits, as tables want it


def is_checkpoint(path: Path) -> bool:
    """Whether a file or directory looks like parameters that can be read, by its first bytes and names."""
    try:
        if not path.is_dir():
            if is_statistics(path):
                return True
            with path.open("rb") as f:
                format_of(path, f.read(HEAD_BYTES))
            return True
        entries = [p for p in path.iterdir() if not p.name.startswith(".")]
    except (InputError, OSError):
        return False
    for known in FORMATS:
        if known.recognises_directory is not None:
            if known.recognises_directory(path, entries):
                return True
        elif any(known.has_suffix(p) and not p.is_dir() for p in entries):
            return True
    return False


def _in_order(found: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    ordered = sorted(found, key=lambda c: c.step)
    for a, b in pairwise(ordered):
        if a.step == b.step:
            raise UsageError(
                b.target, found=f"step {b.step}, which {a.target} has too", needed="one checkpoint a step",
                remedy=f"Leave one of them out. {REMEDY}",
            )  # fmt: skip
    return tuple(ordered)
