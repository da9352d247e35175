"""Quantised tensors in checkpoints: codes, scales and zero points that lie as tensors beside each other.

`dequantised` is the entry for files and arrays that can be read at any place, `undecoded` that for what cannot. The
layouts are in the files `_quantised_*`; names, types, shapes and the configuration beside the file decide. What looks
like a layout and does not agree with it is skipped, and so are the parts that are no weights.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from teleojax._errors import CorruptInputError
from teleojax.sources import _quantised_bnb, _quantised_fp4, _quantised_gptq, _quantised_scaled, _quantised_words
from teleojax.sources._config import ALONE, MODEL, config_beside
from teleojax.sources._dequantised import Computed
from teleojax.sources._derived import DerivedSource, Opener
from teleojax.sources._index import Source, Storage, TensorSpec, numpy_dtype, skip_reason
from teleojax.sources._quantised_plan import MAIN, Config, Layout, Parts, Plan, UnlikeLayout
from teleojax.sources._storage import Memory

SMALL_BYTES = 1 << 20  # of a part that is read ahead of the values
LAYOUTS: tuple[Layout, ...] = (
    *_quantised_bnb.LAYOUTS,
    *_quantised_gptq.LAYOUTS,
    *_quantised_words.LAYOUTS,
    *_quantised_scaled.LAYOUTS,
    *_quantised_fp4.LAYOUTS,
)

_PACKED = re.compile(r"(?:.*\.)?(?:qweight|qzeros|W_q|qdata|_data|\w*_?packed|\w+_blocks|quant_state(?:\.\w+)?)")


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor of codes with what lies beside it, and the name under which it is measured."""

    layout: Layout
    main: TensorSpec
    beside: Mapping[str, TensorSpec]
    name: str


def dequantised(source: Source, config: Config | None = None) -> Source:
    """The source with quantised tensors as the float32 values that they stand for; `stored_as` names how they lie.

    `config` is the model's configuration or its part about quantisation; without one the files beside the source's are
    looked at. Storages are read at any place, in any order. No values are read here but shapes and states of a few
    bytes; indices out of range are noticed when the tensor is opened, which raises CorruptInputError.
    """
    found = _find(source.specs)
    settings = _settings(source, config) if found else {}
    specs: list[TensorSpec] = []
    openers: dict[str, Opener] = {}
    others = _others(found.values())
    names = Counter([f.name for f in found.values()] + [s.name for s in source.specs if s.name not in found])
    for s in source.specs:
        mine = found.get(s.name)
        if mine is None:
            specs.append(_left(s, others))
            continue
        try:
            if names[mine.name] > 1:
                raise UnlikeLayout(f"there is another tensor {mine.name}")
            plan = _plan(mine, source, settings)
        except UnlikeLayout as e:
            specs.append(replace(s, skip=f"not read as {mine.layout.label}: {e}"))
            continue
        storage = f"{s.storage}:{mine.name}"
        skip = skip_reason("float32", plan.shape)
        n_bytes = 4 * math.prod(plan.shape)
        specs.append(TensorSpec(mine.name, plan.shape, "float32", storage, 0, n_bytes, skip, stored_as=plan.stored_as))
        openers[storage] = _opener(mine, plan)
    return source if specs == list(source.specs) else DerivedSource(source, specs, openers)


def undecoded(specs: Iterable[TensorSpec], why: str) -> tuple[TensorSpec, ...]:
    """The same with quantised tensors and their parts skipped, `why` being the reason."""
    specs = tuple(specs)
    found = _find(specs)
    others = _others(found.values())
    return tuple(
        replace(s, skip=f"{found[s.name].layout.label}: {why}") if s.name in found else _left(s, others) for s in specs
    )


def without_quantised(source: Source, why: str) -> Source:
    """The source with `undecoded` specifications."""
    specs = undecoded(source.specs, why)
    return source if specs == tuple(source.specs) else DerivedSource(source, specs)


def _find(specs: Iterable[TensorSpec]) -> dict[str, _Found]:
    by_name = {s.name: s for s in specs}
    found: dict[str, _Found] = {}
    for s in by_name.values():
        for layout in LAYOUTS:
            if s.dtype not in layout.dtypes or not s.name.endswith(layout.main) or not math.prod(s.shape):
                continue
            stem = s.name.removesuffix(layout.main)
            if not layout.marks or any(stem + mark in by_name for mark in layout.marks):
                beside = {key: by_name[stem + key] for key in layout.beside if stem + key in by_name}
                found[s.name] = _Found(layout, s, beside, stem + layout.derived)
                break
    parts = _others(found.values())
    return {name: f for name, f in found.items() if name not in parts}


def _others(found: Iterable[_Found]) -> dict[str, str]:
    """Name of each part that holds no codes, and what it is."""
    return {s.name: f"{f.layout.beside[key]} of {f.name}" for f in found for key, s in f.beside.items()}


def _left(spec: TensorSpec, others: Mapping[str, str]) -> TensorSpec:
    if spec.name in others:
        return replace(spec, skip=others[spec.name])
    if spec.skip is not None and spec.skip.startswith("integer") and _PACKED.fullmatch(spec.name):
        return replace(spec, skip=f"{spec.skip}: it looks packed, in a layout that is not read or lacks its parts")
    return spec


def _settings(source: Source, config: Config | None) -> Config:
    """What the configuration says of quantisation, {} where it says nothing."""
    if config is not None:
        return _quantisation_of(config) or config
    found = _quantisation_of(config_beside(source, MODEL) or {})
    alone = (config_beside(source, name) for name in ALONE)
    return found or next((c for c in alone if c is not None), {})


def _quantisation_of(config: Config) -> Config | None:
    """The part of a model's configuration, or of that of its language model."""
    inner = [config.get(key) for key in ("text_config", "language_config")]
    for place in (config, *(c for c in inner if isinstance(c, dict))):
        for key in ("quantization_config", "compression_config"):
            if isinstance(place.get(key), dict):
                return place[key]
    return None


def _plan(found: _Found, source: Source, settings: Config) -> Plan:
    def read(spec: TensorSpec) -> np.ndarray | None:
        if spec.nbytes > SMALL_BYTES:
            return None
        with source.open(spec.storage) as storage:
            return _array(storage, spec).copy()

    every = (found.main, *found.beside.values())
    if any(s.order != "C" for s in every):
        raise UnlikeLayout("parts that are stored by columns")
    if empty := [s.name for s in every if not math.prod(s.shape)]:
        raise UnlikeLayout(f"{empty[0]} is empty")
    return found.layout.plan(Parts(found.main, found.beside, settings, read))


def _opener(found: _Found, plan: Plan) -> Opener:
    @contextmanager
    def opened(base: Source) -> Iterator[Storage]:
        parts = {MAIN: found.main, **found.beside}
        with ExitStack() as stack:
            held = {s: stack.enter_context(base.open(s)) for s in {p.storage for p in parts.values()}}
            try:
                grid = plan.grid({key: _array(held[p.storage], p) for key, p in parts.items()})
            except UnlikeLayout as e:
                raise CorruptInputError(
                    f"{found.main.storage}: tensor {found.main.name[:120]!r}",
                    found=str(e),
                    needed=f"{found.layout.label} whose parts agree",
                    remedy="The file is damaged: download or write it again.",
                ) from e
            yield Computed(grid)

    return opened


def _array(storage: Storage, spec: TensorSpec) -> np.ndarray:
    """The values of a tensor in its shape: a view where the storage is mapped, or memory."""
    buffer = None if storage.mapped or isinstance(storage, Memory) else np.empty(spec.nbytes, np.uint8)
    raw = storage.window(spec.offset, spec.offset + spec.nbytes, buffer)
    dtype = numpy_dtype(spec.dtype)
    if raw.ctypes.data % dtype.itemsize and dtype.isbuiltin != 1:  # NumPy's own types are read at any address
        raw = raw.copy()
    return raw.view(dtype).reshape(spec.shape)
