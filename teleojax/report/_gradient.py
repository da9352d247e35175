"""The utility gradient of every parameter: as a pytree, as a summary of each tensor, as a directory of safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from teleojax._errors import InputError, UsageError
from teleojax.diagnose import GradientSummary, Target, UtilityGradient, check_choices, gradients
from teleojax.engine import Measured, Selection, apply_to_leaves, apply_to_source, measure
from teleojax.report._assemble import statistics_of
from teleojax.report._shards import SHARD_BYTES, OutputTensor, plan_shards, refuse_output, sharded_output
from teleojax.sources import PytreeSource, Source, TensorSpec, open_source
from teleojax.sources._index import by_storage
from teleojax.sources._pytree import is_array
from teleojax.sources._safetensors import SafetensorsStream
from teleojax.stats import TensorStats


def utility_gradient(
    params: Any,
    *,
    density: str = "empirical",
    wrt: str = "log",
    target: Target | None = None,
    include: str | None = None,
    exclude: str | None = None,
    min_size: int = 0,
    stats: Mapping[str, TensorStats] | None = None,
    donate: bool = False,
) -> Any:
    """The force with which every parameter would move to gain utility: a pytree like `params`.

    With y = ln|w|, ∂ĥ/∂y = −(y − μ)/σ² − s(y) (measure d ln x; it is the same force in dx), where μ and σ are the
    maximum-likelihood lognormal of the tensor and s = d ln p̂/dy its empirical score, at any y: constant far beyond the
    data. At arbitrage equilibrium it is 0 for every connection. With wrt="value", ∂ĥ/∂w = sign(w)/|w| · ∂ĥ/∂y.

    Every leaf keeps its kind (NumPy or JAX), shape, dtype and sharding; a sharded array is computed shard by shard.
    Exact zeros, NaN and infinities have no logarithm: their gradient is 0. Results come from a table: rounded to
    nearest on types of at most 16 bits, with a relative L2 error of 1e-5 on float32 and float64 (that of the density is
    some 1e-2). A result past the range of its type is the largest number, or half of that in float32 and float64.

    Leaves that have no gradient are zeros of their own type: integers, booleans, complex numbers, tensors left out by
    `include`, `exclude` and `min_size`, and those without spread or with too few values for a density (see
    `gradient_summary` for the reasons). Random keys, strings and other objects are returned as they are.

    Args:
        params: any pytree of NumPy and JAX arrays. Not inside jit, grad or vmap: there use `lognormal_gradient`.
        density: what p̂ is. "empirical": the penalised log-density. "lognormal": the maximum-likelihood lognormal, in
            closed form, which needs no histogram; towards the tensor's own equilibrium that is 0 everywhere.
        wrt: "log" for ∂ĥ/∂ln|w|, "value" for ∂ĥ/∂w.
        target: (α₀, β₀) of the measure dx in place of the tensor's own utility: (α₀ + 1) − 2β₀ y − s(y), with density
            "lognormal" (α₀ − α) − 2(β₀ − β) y.
        include, exclude, min_size: which tensors, as in `measure`.
        stats: what `measure(params)` returned, or statistics of earlier values under the same names: nothing is then
            measured.
        donate: JAX arrays are deleted one by one as their gradients are there (an accelerator overwrites them), so that
            no more than one leaf is held twice.

    Raises UsageError for another choice, a path (see `write_gradient`), or statistics that lack a tensor; InputError
    for traced or deleted arrays, and without `stats` for arrays of which this process holds only a part: measure those
    with `measure(params, multiprocess=True)` first.
    """
    check_choices(density=density, wrt=wrt, target=target)
    if isinstance(params, str | os.PathLike | Source):
        raise UsageError(
            "params", found="a path or a source", needed="a pytree of arrays", remedy="Use write_gradient(path, out)."
        )
    source = PytreeSource(params)
    select = Selection(include, exclude, min_size)
    wanted = [spec for spec in source.specs if select.reason(spec) is None]
    laws: dict[str, UtilityGradient] = {}
    if density == "empirical" or target is not None:
        chosen = {"include": include, "exclude": exclude, "min_size": min_size}
        stats = measure(source, histogram=density == "empirical", split=False, **chosen) if stats is None else stats
        laws = gradients(_of_each(wanted, stats), density=density, target=target)
    leaves, tree = jax.tree_util.tree_flatten(params)
    owner = {id(leaf): place for place, leaf in reversed(list(enumerate(leaves)))}  # tied leaves are computed once
    moved = [
        place
        for place, (leaf, spec) in enumerate(zip(leaves, source.specs, strict=True))
        if owner[id(leaf)] == place and spec.name in laws and not laws[spec.name].is_zero
    ]
    tables = (laws[s.name].table(s.dtype, wrt=wrt) for s in (source.specs[place] for place in moved))
    done = dict(zip(moved, apply_to_leaves([leaves[p] for p in moved], tables, donate=donate), strict=True))
    found = [done[owner[id(leaf)]] if owner[id(leaf)] in done else _zero(leaf) for leaf in leaves]
    return jax.tree_util.tree_unflatten(tree, found)


@dataclass(frozen=True, slots=True)
class GradientReport(Mapping[str, GradientSummary]):
    """The summary of every measured tensor by name, in natural order of the names.

    `measured` holds the statistics, and of the other tensors why they were `skipped` or `failed`.
    """

    summaries: dict[str, GradientSummary]
    measured: Measured

    def __getitem__(self, name: str) -> GradientSummary:
        return self.summaries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    def jsonl(self) -> str:
        """One JSON object a tensor. Full precision; what does not exist is null."""
        lines = ({"name": name, **summary.to_dict()} for name, summary in self.summaries.items())
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def gradient_summary(
    params: Any, *, density: str = "empirical", wrt: str = "log", target: Target | None = None, **measure_options: Any
) -> GradientReport:
    """The distribution of the utility gradient over the values of every tensor; nothing parameter-sized is made.

    `params` is what `measure` returned, a mapping of names to TensorStats, a statistics file, or anything that
    `measure` reads, a stream too; then `measure_options` are those of `measure`, but for `split`: tensors are taken as
    they are stored. The gradient is a function of |w|, so
    it follows from the histogram: no second pass. With wrt "log" the mean square is the relative Fisher information I.
    The other choices are those of `utility_gradient`. Of a histogram of the leading bits each cell, 0.5% of |w| wide,
    is taken at its middle.

    Raises UsageError for another choice and for statistics without histograms; else as `measure`.
    """
    check_choices(density=density, wrt=wrt, target=target)
    measured = statistics_of(params, split=False, **measure_options)
    laws = gradients(measured, density=density, target=target)
    return _report(measured, laws, wrt)


@dataclass(frozen=True, slots=True)
class GradientFiles:
    """What `write_gradient` wrote: the directory, its files, bytes of all tensors, and a summary of each tensor.

    Tensors that `report.measured` lists as skipped or failed are not in the files.
    """

    path: Path
    files: tuple[str, ...]
    nbytes: int
    report: GradientReport


def write_gradient(
    params: Any,
    out: str | Path,
    *,
    density: str = "empirical",
    wrt: str = "log",
    target: Target | None = None,
    include: str | None = None,
    exclude: str | None = None,
    min_size: int = 0,
    stats: Mapping[str, TensorStats] | None = None,
    budget_bytes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GradientFiles:
    """Write the utility gradient of every tensor of a checkpoint to `out`, a sharded safetensors directory.

    `params` is a path, several, a Source, or a pytree. Names, shapes and types of the tensors stay, but for quantised
    integers with a scale, whose gradient is float32. The values are those of `utility_gradient`, which explains the
    choices. Everything is read twice, block by block: once to measure (not with `stats`), once to write; memory is
    bounded as in `measure`, whatever the size. Integer, empty and filtered tensors are left out, and those that could
    not be read; tensors without spread are written as zeros.

    The directory appears whole, flushed to disk, or not at all: everything is written to a hidden directory beside it
    first. The same input gives the same bytes. An `out` that exists must be empty, unless `force` lets it be replaced.

    Raises UsageError for another choice, an `out` that may not be written, a stream (which passes only once, so that
    it needs `stats`), and when there is no tensor to write; OutputError when the disk is full or breaks; InputError as
    `measure`, and when the checkpoint breaks on the second pass.
    """
    check_choices(density=density, wrt=wrt, target=target)
    select = Selection(include, exclude, min_size)
    out = Path(out)
    refuse_output(out, force=force)
    source = open_source(params)
    refuse_output(out, force=force, sources=source.storages)
    if stats is None and isinstance(source, SafetensorsStream):
        raise UsageError(
            source.name,
            found="a stream, which passes only once",
            needed="a checkpoint that can be read twice: to measure it, and to write",
            remedy="Save the stream to a file, or give statistics measured before.",
        )
    passes = 1 if stats is not None else 2
    if stats is None:
        first = None if progress is None else (lambda done, total: progress(done, passes * total))
        chosen = {"include": include, "exclude": exclude, "min_size": min_size}
        measured = measure(source, **chosen, split=False, budget_bytes=budget_bytes, progress=first)
    else:
        measured = _for_source(source, stats, select)
    laws = gradients(measured, density=density, target=target)
    specs = [s for group in _in_reading_order(source) for s in group if s.name in laws]
    if not specs:
        found = f"no tensor to write ({len(measured.skipped)} skipped, {len(measured.failed)} failed)"
        raise UsageError(source.name, found=found, needed="at least one", remedy="Select others.")
    results = [OutputTensor(s.name, "float32" if s.dtype == "int8" else s.dtype, s.shape) for s in specs]
    note = {"utility_gradient": f"density={density} wrt={wrt}" + ("" if target is None else f" target={target}")}
    shards = plan_shards(results, shard_bytes=shard_bytes, metadata=note)
    total = sum(s.nbytes for s in specs)
    second = None if progress is None else (lambda done, _: progress((passes - 1) * total + done, passes * total))
    with sharded_output(out, shards, force=force) as writer:

        def write(spec: TensorSpec, offset: int, values: np.ndarray) -> None:
            transposed = spec.order == "F" and len(spec.shape) > 1
            (writer.write_transposed if transposed else writer.write)(spec.name, offset, values)

        def table(spec: TensorSpec) -> Any:
            return laws[spec.name].table(spec.dtype, wrt=wrt, scale=spec.scale)

        apply_to_source(source, specs, table, write, budget_bytes=budget_bytes, progress=second)
    nbytes = sum(t.nbytes for t in results)
    return GradientFiles(out, tuple(s.file for s in shards), nbytes, _report(measured, laws, wrt))


def _report(measured: Measured, laws: Mapping[str, UtilityGradient], wrt: str) -> GradientReport:
    return GradientReport({name: laws[name].summarise(s, wrt=wrt) for name, s in measured.items()}, measured)


def _of_each(specs: list[TensorSpec], stats: Mapping[str, TensorStats]) -> dict[str, TensorStats]:
    """The statistics of every tensor. Raises InputError for one that could not be measured, UsageError for none."""
    for spec in specs:
        if isinstance(stats, Measured) and spec.stored_as is None and _stored_as(stats, spec.name) is not None:
            raise UsageError(
                "stats",
                found=f"statistics of the values that {spec.name!r} stands for, with its scales",
                needed="those of the values that it holds, which have the gradient",
                remedy="Measure it with split=False.",
            )
        if spec.name in stats:
            continue
        if isinstance(stats, Measured) and spec.name in stats.failed:
            raise InputError(
                f"leaf {spec.name!r}",
                found=stats.failed[spec.name],
                needed="its values",
                remedy="Keep the array alive.",
            )
        raise UsageError(
            "stats",
            found=f"no statistics of {spec.name!r}",
            needed=f"those of all {len(specs)} tensors",
            remedy="Measure the same tree, or select tensors.",
        )
    return {spec.name: stats[spec.name] for spec in specs}


def _stored_as(stats: Measured, name: str) -> str | None:
    return stats.specs[name].stored_as if name in stats.specs else None


def _for_source(source: Source, stats: Mapping[str, TensorStats], select: Selection) -> Measured:
    """Statistics made before, as if this source had been measured."""
    skipped = {s.name: reason for s in source.specs if (reason := select.reason(s)) is not None}
    wanted = [s for s in source.specs if s.name not in skipped]
    return Measured(source.name, {s.name: s for s in source.specs}, _of_each(wanted, stats), skipped)


def _in_reading_order(source: Source) -> list[list[TensorSpec]]:
    groups = by_storage(source.specs)
    return [groups[storage] for storage in source.storages if storage in groups]


def _zero(leaf: Any) -> Any:
    """What stands for "no gradient": zeros like an array, 0 for a number, anything else itself."""
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        with jax.enable_x64(True) if leaf.dtype.itemsize >= 8 else nullcontext():
            return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding if leaf.committed else None)
    if is_array(leaf):
        return leaf if leaf.dtype.kind in "OSUMm" else np.zeros_like(leaf)[() if isinstance(leaf, np.generic) else ...]
    return type(leaf)(0) if isinstance(leaf, bool | int | float | complex) else leaf
