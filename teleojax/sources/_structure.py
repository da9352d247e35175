"""What the tensors of a model are to each other: fused ones cut, tied ones counted once, adapters multiplied out.

`structured` is the one entry. It reads nothing but specifications, `config.json` and `adapter_config.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from teleojax.sources._complex import moduli
from teleojax.sources._config import ADAPTER, MODEL, config_beside
from teleojax.sources._derived import DerivedSource, Opener, gathered
from teleojax.sources._fused import Config, Part, parts_of
from teleojax.sources._index import Source, TensorSpec, files_of
from teleojax.sources._lora import with_products
from teleojax.sources._pytree import PytreeSource
from teleojax.sources._quantised import dequantised
from teleojax.sources._rules import Rules


def structured(source: Source, *, split: bool = True, rules: Rules | None = None) -> Source:
    """The source as the user's rules, and then its model's configuration, tell its structure.

    Tied tensors are counted once. With `split`, fused queries, keys and values, gate and up, and experts become tensors
    of their own ("...qkv_proj.weight.q", "...experts.3.down_proj"), and each pair of low-rank factors gets its product.
    Complex tensors become their moduli, and quantised arrays in memory their values, as they are in files. What rules
    cut is cut in any case. A source that has no files (arrays in memory, a stream) comes back as it is where there are
    neither rules nor such tensors. Raises UsageError when a rule's parts do not fit their tensor.
    """
    in_files, decided = bool(files_of(source)), frozenset[str]()
    if split:
        source = moduli(dequantised(source) if isinstance(source, PytreeSource) else source)
    source = once(source) if in_files else source
    if rules is not None:
        specs = tuple(map(rules.skipped, source.specs))
        source = source if specs == tuple(source.specs) else DerivedSource(source, specs)
        plans = {s.name: parts for s in specs if (parts := rules.parts(s)) is not None}
        source, decided = with_parts(source, plans), frozenset(plans)
    if in_files and split:
        source = split_fused(source, config_beside(source, MODEL), keep=decided)
        adapter = config_beside(source, ADAPTER)
        source = source if adapter is None else with_products(source, adapter)
    placed = source.specs if rules is None else tuple(map(rules.placed, source.specs))
    return source if placed == tuple(source.specs) else DerivedSource(source, placed)


def once(source: Source) -> Source:
    """Of tensors that are the same bytes of a storage, the first; the others are skipped as tied to it."""
    first: dict[tuple[str, int, int], str] = {}
    specs: list[TensorSpec] = []
    for s in source.specs:
        name = first.setdefault((s.storage, s.offset, s.nbytes), s.name) if s.skip is None else s.name
        specs.append(s if name == s.name else replace(s, skip=f"tied to {name}"))
    return source if tuple(specs) == tuple(source.specs) else DerivedSource(source, specs)


def split_fused(source: Source, config: Config | None, *, keep: frozenset[str] = frozenset()) -> Source:
    """The source with its fused tensors cut as `_fused` plans; those named in `keep` stay whole.

    Parts that are contiguous are read where they are. Interleaved ones are gathered, each in a reading of its own, and
    so not from a stream, which passes once.
    """
    shapes = {s.name: s.shape for s in source.specs}
    plans = {s.name: parts_of(s, config, shapes) for s in source.specs if s.name not in keep}
    return with_parts(source, plans)


def with_parts(source: Source, plans: dict[str, tuple[Part, ...]]) -> Source:
    """The source with tensors replaced by their parts, where there are any and no part has the name of a tensor."""
    taken = {s.name for s in source.specs}
    specs: list[TensorSpec] = []
    openers: dict[str, Opener] = {}
    for s in source.specs:
        parts = plans.get(s.name, ())
        scattered = any(p.count > 1 for p in parts)
        if not parts or taken & {p.name for p in parts} or (scattered and not files_of(source)):
            specs.append(s)
            continue
        for p in parts:
            specs.append(_spec(s, p))
            if p.count > 1:
                openers[specs[-1].storage] = gathered(s.storage, list(_stretches(s, p)))
    return source if specs == list(source.specs) else DerivedSource(source, specs, openers)


def _spec(whole: TensorSpec, part: Part) -> TensorSpec:
    itemsize = whole.nbytes // whole.size
    spec = replace(whole, name=part.name, shape=part.shape, nbytes=part.count * part.length * itemsize)
    if part.count == 1:
        return replace(spec, offset=whole.offset + part.start * itemsize)
    return replace(spec, storage=f"{whole.storage}:{part.name}", offset=0)


def _stretches(whole: TensorSpec, part: Part) -> Iterable[tuple[int, int]]:
    itemsize = whole.nbytes // whole.size
    for i in range(part.count):
        begin = whole.offset + (part.start + i * part.step) * itemsize
        yield begin, begin + part.length * itemsize
