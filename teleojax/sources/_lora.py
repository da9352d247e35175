"""Low-rank adapters: the product B·A·scale of each pair of factors, as a tensor that is computed when it is read.

The scale is PEFT's: alpha / rank, or alpha / sqrt(rank) with `use_rslora`, the rank being that of the factors. Where
`alpha_pattern` gives a layer an alpha of its own, its keys are taken as ends of module names; a key that is a pattern
in earnest leaves the layers it could match without a product. https://github.com/huggingface/peft
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from teleojax.sources._derived import DerivedSource, Opener
from teleojax.sources._fused import Config
from teleojax.sources._index import COMPLEX, Source, Storage, TensorSpec, files_of, numpy_dtype

BLOCK_BYTES = 1 << 20  # of the product, computed at once: every value is summed the same way wherever a window begins

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?A(?:\.(?P<adapter>[^.]+))??(?P<end>\.weight)?")


@dataclass(frozen=True, slots=True)
class _Pair:
    """Factors A (rank, in) and B (out, rank); `transposed` where the adapted matrix is stored as (in, out)."""

    a: TensorSpec
    b: TensorSpec
    scale: float
    transposed: bool


def with_products(source: Source, config: Config) -> Source:
    """The source with "<module>.lora_product" for each pair of `lora_A` and `lora_B`, float32, (out, in) or as
    the adapted matrix is stored: (in, out) of embeddings and with `fan_in_fan_out`.

    Of the adapter named X, if that is not "default", it is "<module>.lora_product.X". The factors stay. Convolutions,
    factors that cannot be measured, and adapters without `lora_alpha` get none; nor does a stream, which passes once.
    """
    by_name = {s.name: s for s in source.specs}
    specs: list[TensorSpec] = []
    openers: dict[str, Opener] = {}
    for s in source.specs if files_of(source) else ():
        match = _FACTOR.fullmatch(s.name)
        pair = None if match is None else _pair(s, match, by_name, config)
        if match is None or pair is None:
            continue
        adapter = "" if match["adapter"] in (None, "default") else f".{match['adapter']}"
        name = f"{match['module']}.lora_product{adapter}"
        shape = (pair.a.shape[1], pair.b.shape[0]) if pair.transposed else (pair.b.shape[0], pair.a.shape[1])
        if name not in by_name:
            spec = TensorSpec(name, shape, "float32", f"{s.storage}:{name}", 0, 4 * math.prod(shape))
            specs.append(spec)
            openers[spec.storage] = _opener(pair)
    return DerivedSource(source, (*source.specs, *specs), openers) if specs else source


def _pair(a: TensorSpec, match: re.Match[str], by_name: Mapping[str, TensorSpec], config: Config) -> _Pair | None:
    end = a.name[len(match["module"]) :].replace("A", "B", 1)
    b = by_name.get(match["module"] + end)
    alpha = _alpha(match["module"], config)
    if b is None or alpha is None or not (_is_factor(a) and _is_factor(b)):
        return None
    rank = a.shape[0]
    if b.shape[1] != rank:
        return None
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)
    return _Pair(a, b, scale, match["embedding"] is not None or config.get("fan_in_fan_out") is True)


def _is_factor(spec: TensorSpec) -> bool:
    """Moduli are none: their product is not the product's."""
    return spec.skip is None and len(spec.shape) == 2 and spec.order == "C" and spec.stored_as not in COMPLEX


def _alpha(module: str, config: Config) -> float | None:
    own = config.get("alpha_pattern")
    for key, value in own.items() if isinstance(own, dict) else ():
        if module == key or module.endswith(f".{key}"):
            return _finite(value)
        if not re.fullmatch(r"[\w.]+", key):
            return None
    return _finite(config.get("lora_alpha"))


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


class Product:
    """The bytes of left · right · scale, float32 in C order, summed in float64, some rows at a time."""

    mapped = False

    def __init__(self, left: np.ndarray, right: np.ndarray, scale: float) -> None:
        self._left, self._right, self._scale = left.astype(np.float64), right.astype(np.float64), scale
        self._row_bytes = 4 * right.shape[1]
        self._rows = max(1, BLOCK_BYTES // self._row_bytes)
        self._block: tuple[int, np.ndarray] | None = None
        self.size: int | None = len(left) * self._row_bytes
        self.position = 0

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: the values are computed when their window is read."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop), in `buffer` or in memory of their own."""
        out = np.empty(stop - start, np.uint8) if buffer is None else buffer[: stop - start]
        length, at = self._rows * self._row_bytes, start
        while at < stop:
            number, begin = divmod(at, length)
            piece = self._values(number)[begin : begin + stop - at]
            out[at - start : at - start + len(piece)] = piece
            at += len(piece)
        self.position = max(self.position, stop)
        return out

    def _values(self, number: int) -> np.ndarray:
        """The bytes of one block of rows; the last is kept, since windows meet inside one."""
        if self._block is None or self._block[0] != number:
            rows = self._left[number * self._rows : (number + 1) * self._rows]
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted as not finite
                values = (rows @ self._right * self._scale).astype(np.float32)
            self._block = number, values.reshape(-1).view(np.uint8)
        return self._block[1]


def _opener(pair: _Pair) -> Opener:
    @contextmanager
    def opened(base: Source) -> Iterator[Storage]:
        a, b = _read(base, pair.a), _read(base, pair.b)
        yield Product(a.T, b.T, pair.scale) if pair.transposed else Product(b, a, pair.scale)

    return opened


def _read(source: Source, spec: TensorSpec) -> np.ndarray:
    with source.open(spec.storage) as storage:
        raw = storage.window(spec.offset, spec.offset + spec.nbytes, np.empty(spec.nbytes, np.uint8)).copy()
    values = raw.view(numpy_dtype(spec.dtype)).reshape(spec.shape)
    return values if spec.scale == 1.0 else values * spec.scale
