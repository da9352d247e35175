"""`measure`: one pass over a source -> the statistics of every tensor."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from teleojax._errors import UsageError
from teleojax.blocks import window_bytes
from teleojax.blocks._share import shares
from teleojax.engine._groups import Part, parts_of
from teleojax.engine._journal import Journal
from teleojax.engine._pass import Pass
from teleojax.engine._resident import measure_resident, resident_leaves
from teleojax.engine._rounded import with_cells
from teleojax.engine._shares import agree, merge_shares
from teleojax.sources import Source, TensorSpec, open_source
from teleojax.sources._index import by_storage, natural_key
from teleojax.sources._rules import Rules
from teleojax.sources._safetensors import SafetensorsStream
from teleojax.sources._structure import structured
from teleojax.stats import TensorStats


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
    cells: bool = False,
    split: bool = True,
    rules: str | Path | None = None,
    budget_bytes: int | None = None,
    resume: str | Path | None = None,
    multiprocess: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], str | None] | None = None,
) -> Measured:
    """Read every selected parameter once: LogMoments and BitHistogram of each tensor.

    `target` is a path, a list of paths, "-" (a safetensors stream on standard input), any pytree of NumPy or JAX
    arrays, or a Source. Arrays sharded over devices are measured where they lie, replicas once. `include` and `exclude`
    are regular expressions searched for in tensor names. Without `histogram` only the LogMoments are taken, of float32
    in less than half the time, and TensorStats.histogram is None. `budget_bytes` bounds the memory held for reading;
    the numbers do not depend on it. `progress(done, total)` is called with bytes.

    With `groups` = G ≥ 2 every tensor of at least 2G values is measured as G contiguous stretches of nearly equal
    length, in storage order: `TensorStats.groups`, which `TensorStats.without` leaves out one at a time. The tensor's
    own statistics are their merge: the same counts, moments equal up to rounding. Where the stretches end is a function
    of size and G alone. The results take up to G times the memory: with G = 20 about 1 MB a tensor, 4 MB in float16.

    With `cells` the rounding cells of tensors that are stored in few bits with a scale a block (GGUF, GPTQ, nf4) are
    gathered too, in a second reading that takes three times as long: `TensorStats.cells`, which method "interval" of
    `fit` needs.

    Of complex tensors the moduli |z| are measured, float32 or float64. Of a checkpoint in files, tied tensors are
    counted once, and what its config.json says is fused is measured apart: query, key and value
    ("...qkv_proj.weight.q"), gate and up, experts; low-rank adapters get their product. With `split` False tensors are
    taken as they are stored, fused, and complex ones not at all. `rules` is a TOML file of your own: roles, depths,
    what to skip and to split (see sources/_rules.py).

    `resume` names a file to which the statistics of each finished tensor are appended, flushed to disk twice a second.
    A run that was ended at any moment goes on where it was if the same call is made again, and ends with the same
    numbers; of a checkpoint that has changed in between (size, time of change, header, configuration), or other
    `groups` or `histogram`, the file is refused. `stop` is asked between blocks of 64 MiB: when it returns a reason,
    reading ends and the tensors that are not finished are listed under `failed` with it.

    With `multiprocess` every process that `teleojax.engine.initialize` has joined makes the same call on the same
    checkpoint, reads a share of its bytes, and returns the same whole; the numbers do not depend on how many they are.
    `progress` then counts the process's own share. Arrays of which each process holds a part need it: the same tree in
    every process. Counts, extremes and histograms then do not depend on the sharding; nor, where the shards are whole
    rows of 8192 values in sequence, does anything else; elsewhere moments of float32 agree to 1e-7 of the spread.

    Integer, empty and filtered tensors are listed under `skipped`. When a storage ends early or breaks, the tensors
    read whole before that are kept and the others listed under `failed`; if nothing at all could be measured the error
    is raised. Raises InputError and CorruptInputError for a source that cannot be read, UsageError for a bad pattern, a
    budget too small, fewer than two groups, or a file to resume from that does not fit; OutputError when that file
    cannot be written; ProcessLostError when another process has ended.
    """
    if groups is not None and groups < 2:
        raise UsageError(
            "groups", found=str(groups), needed="2 or more", remedy="Give 20, say, or leave the option out."
        )
    start = time.perf_counter()
    length = window_bytes(budget_bytes)
    select = Selection(include, exclude, min_size)
    opened: Source = open_source(target)
    source = structured(opened, split=split, rules=None if rules is None else Rules.load(rules))
    specs = {s.name: s for s in sorted(source.specs, key=lambda s: natural_key(s.name))}
    skipped = {name: reason for name, s in specs.items() if (reason := select.reason(s)) is not None}
    wanted = {s.name: s for s in source.specs if s.name not in skipped}
    rank, n_processes = (jax.process_index(), jax.process_count()) if multiprocess else (0, 1)
    journal = None
    if resume is not None:
        journal = Journal(resume, source, {"groups": groups, "histogram": histogram}, process=rank)
    stats = {name: s for name, s in journal.finished.items() if name in wanted} if journal else {}
    if n_processes > 1:
        agree(source, sorted(stats), stream=isinstance(opened, SafetensorsStream))
    resident = resident_leaves(opened, (s for name, s in wanted.items() if name not in stats))
    parts = _parts(source, [s for name, s in wanted.items() if name not in stats and name not in resident], groups)
    ranges = shares({storage: [p.spec for p in ps] for storage, ps in parts.items()}, n_processes)[rank]
    done = sum(wanted[name].nbytes for name in stats)
    spans = [part.bytes_in(span) for storage, span in ranges.items() for part in parts[storage]]
    total = done + sum(wanted[name].nbytes for name in resident) + sum(max(0, end - begin) for begin, end in spans)
    assembly = _Assembly(stats)

    def found(part: Part, one: TensorStats) -> None:
        tensor = assembly.add(part, one)
        if tensor is not None and journal is not None:
            journal.add(part.spec.name, tensor)

    def read(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    with journal or nullcontext():
        options: dict[str, Any] = {"groups": groups, "histogram": histogram, "multiprocess": n_processes > 1}
        for spec, one in measure_resident(resident, wanted, **options):
            (found if rank == 0 else assembly.add)(Part(spec), one)
            read(spec.nbytes)
        outcome = Pass(source, parts, ranges, length, histogram, found, read, stop or _never).run()
        if n_processes > 1:
            everything = [part for ps in parts.values() for part in ps]
            outcome = merge_shares(outcome, everything, histogram=histogram)
            for part in everything:
                key = (part.spec.name, part.number)
                if key in outcome.complete and part.spec.name not in outcome.failed:
                    (found if rank == 0 else assembly.add)(part, outcome.complete[key])
    if outcome.error is not None and not stats:
        raise outcome.error
    if cells:
        stats |= with_cells(source, wanted, stats)
    ordered = {name: stats[name] for name in specs if name in stats}
    failed = {name: outcome.failed[name] for name in specs if name in outcome.failed}
    return Measured(source.name, specs, ordered, skipped, failed, time.perf_counter() - start)


class _Assembly:
    """Parts of tensors as they arrive -> tensors, in `stats` as soon as they are whole."""

    def __init__(self, stats: dict[str, TensorStats]) -> None:
        self._stats = stats
        self._arrived: dict[str, dict[int, TensorStats]] = {}

    def add(self, part: Part, one: TensorStats) -> TensorStats | None:
        """Take a part, which may have come before; the tensor, if this makes it whole."""
        name = part.spec.name
        if name in self._stats:
            return None
        arrived = self._arrived.setdefault(name, {})
        arrived[part.number] = one
        if len(arrived) < part.n_parts:
            return None
        del self._arrived[name]
        stretches = [arrived[number] for number in range(part.n_parts)]
        self._stats[name] = stretches[0] if part.n_parts == 1 else TensorStats.from_groups(stretches)
        return self._stats[name]


def _parts(source: Source, specs: list[TensorSpec], groups: int | None) -> dict[str, tuple[Part, ...]]:
    """The parts in each storage that has any, in reading order."""
    stored = by_storage(specs)
    return {
        storage: tuple(sorted(parts_of(stored[storage], groups), key=lambda part: part.spec.offset))
        for storage in source.storages
        if storage in stored
    }


def _never() -> None:
    """No reason to stop."""
