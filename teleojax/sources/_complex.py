"""Complex tensors as their moduli: |z| of each value, float32 of complex64 and float64 of complex128.

Which storage holds them does not matter, as long as it can be opened a second time: a window of moduli is the window of
twice as many bytes below it. Readers list complex tensors as skipped, at their true place, for the `skip_reason`
of their type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from teleojax.sources._derived import DerivedSource, Opener
from teleojax.sources._index import COMPLEX, Source, Storage, TensorSpec, skip_reason

PIECE_VALUES = 1 << 18  # made at a time: they and what is held meanwhile stay below 16 MiB


def moduli(source: Source) -> Source:
    """The source with complex tensors as the moduli of their values; `stored_as` names the complex type."""
    specs: list[TensorSpec] = []
    openers: dict[str, Opener] = {}
    after: dict[str, dict[str, None]] = {}
    for s in source.specs:
        if not is_measurable(s):
            specs.append(s)
            continue
        storage = f"{s.storage}:|z|@{s.offset}"  # the same of tied tensors
        dtype = COMPLEX[s.dtype]
        measured = replace(s, dtype=dtype, storage=storage, offset=0, nbytes=s.nbytes // 2, stored_as=s.dtype)
        specs.append(replace(measured, skip=skip_reason(dtype, s.shape)))
        openers[storage] = _opener(s)
        after.setdefault(s.storage, {})[storage] = None
    if not openers:
        return source
    derived = DerivedSource(source, specs, openers)
    derived.storages = tuple(each for s in source.storages for each in (s, *after.get(s, ())))
    return derived


def is_measurable(spec: TensorSpec) -> bool:
    """Whether a tensor is skipped for being complex alone, and its bytes are as many as its values take."""
    if spec.dtype not in COMPLEX or spec.skip != skip_reason(spec.dtype, spec.shape):
        return False
    return spec.nbytes == spec.size * np.dtype(spec.dtype).itemsize


def without_moduli(specs: Iterable[TensorSpec], why: str) -> tuple[TensorSpec, ...]:
    """The same with complex tensors skipped for another reason, so that they stay so."""
    return tuple(replace(s, skip=f"complex type {s.dtype}: {why}") if is_measurable(s) else s for s in specs)


class Modulus:
    """The moduli of the complex values from one byte of a storage on, as a storage of their own.

    sqrt(re² + im²) in float64 for complex64, where nothing overflows, rounded to float32 (inf past its range); `hypot`
    for complex128, right to one unit in the last place. NaN or inf in either part gives a modulus that is not finite.
    """

    mapped: bool = False
    size: int | None
    position: int = 0

    def __init__(self, inner: Storage, spec: TensorSpec) -> None:
        self._inner, self._offset = inner, spec.offset
        self._type, self._real = np.dtype(spec.dtype), np.dtype(COMPLEX[spec.dtype])
        self._scratch = None if inner.mapped else np.empty(PIECE_VALUES * self._type.itemsize, np.uint8)
        self.size = spec.nbytes // 2

    def prepare(self, start: int, stop: int) -> None:
        """Make the window below quick."""
        self._inner.prepare(self._offset + 2 * start, self._offset + 2 * stop)

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop) of whole values, in `buffer`; what lies before the present position is left as it was."""
        out = np.empty(stop - start, np.uint8) if buffer is None else buffer[: stop - start]
        at = start if buffer is None or self._inner.mapped else max(start, self.position)
        while at < stop:
            end = min(stop, at + PIECE_VALUES * self._real.itemsize)
            raw = self._inner.window(self._offset + 2 * at, self._offset + 2 * end, self._scratch)
            out[at - start : end - start] = modulus(raw.view(self._type)).view(np.uint8)
            at = end
        self.position = max(self.position, stop)
        return out


def modulus(z: np.ndarray) -> np.ndarray:
    """|z|: float32 of complex64, float64 of complex128."""
    with np.errstate(all="ignore"):  # what is not finite, or past the range, is counted as such
        if z.dtype == np.complex64:
            re, im = np.real(z).astype(np.float64), np.imag(z).astype(np.float64)
            return np.sqrt(re * re + im * im).astype(np.float32)
        return np.hypot(np.real(z), np.imag(z))


def _opener(spec: TensorSpec) -> Opener:
    @contextmanager
    def opened(base: Source) -> Iterator[Storage]:
        with base.open(spec.storage) as inner:
            yield Modulus(inner, spec)

    return opened
