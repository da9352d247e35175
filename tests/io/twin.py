"""A source in memory with the layout of another: the oracle for readers, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

import teleojax as tj
from teleojax.blocks import aligned_buffer
from teleojax.sources import Source, open_source
from teleojax.sources._index import TensorSpec, by_storage
from teleojax.sources._storage import Memory


class Twin:
    """Arrays at the places of the specifications, in memory: statistics depend on where a tensor begins."""

    name = "twin"

    def __init__(self, specs: tuple[TensorSpec, ...], arrays: Mapping[str, np.ndarray]) -> None:
        self.specs = tuple(s for s in specs if s.skip is None)
        self._buffers: dict[str, np.ndarray] = {}
        for storage, mine in by_storage(self.specs).items():
            buffer = aligned_buffer(max(s.offset + s.nbytes for s in mine))
            for s in mine:
                array = np.asarray(arrays[s.name])
                assert (array.dtype.newbyteorder("<").name, array.shape) == (s.dtype, s.shape), s.name
                raw = array.astype(array.dtype.newbyteorder("<")).tobytes(order=s.order)
                buffer[s.offset : s.offset + s.nbytes] = np.frombuffer(raw, np.uint8)
            self._buffers[storage] = buffer
        self.storages = tuple(self._buffers)

    def open(self, storage: str) -> nullcontext[Memory]:
        return nullcontext(Memory(self._buffers[storage]))


def assert_measured(
    path: Path | str, arrays: Mapping[str, np.ndarray], skipped: Mapping[str, str] | None = None
) -> Any:
    """Measuring `path` gives these arrays' statistics, bit for bit; and the rest is skipped for these reasons.

    As stored: without the moduli of complex tensors.
    """
    source = open_source(path)
    assert {s.name: s.skip for s in source.specs if s.skip is not None} == dict(skipped or {})
    assert {s.name for s in source.specs if s.skip is None} == set(arrays)
    measured, expected = tj.measure(path, split=False), tj.measure(Twin(source.specs, arrays))
    assert measured.failed == {}
    assert dict(measured) == dict(expected)
    return source


def read_all(source: Source) -> dict[str, bytes]:
    """The bytes of every tensor that can be measured."""
    out = {}
    for storage, mine in by_storage(source.specs).items():
        with source.open(storage) as opened:
            for s in mine:
                buffer = None if opened.mapped else np.empty(s.nbytes, np.uint8)
                out[s.name] = opened.window(s.offset, s.offset + s.nbytes, buffer).tobytes()
    return out
