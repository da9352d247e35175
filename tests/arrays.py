"""A source of arrays laid into one storage at any offset, mapped or as a stream: the layouts files can have."""

from __future__ import annotations

import io
from contextlib import nullcontext

import numpy as np

from teleojax.blocks import aligned_buffer
from teleojax.sources import TensorSpec
from teleojax.sources._index import skip_reason
from teleojax.sources._storage import Memory, Stream


class PackedSource:
    """Arrays one after another from byte `shift` of one storage, `gap` bytes between them."""

    name = "packed"
    storages = ("bytes",)

    def __init__(self, arrays: dict[str, np.ndarray], *, shift: int = 0, gap: int = 0, stream: bool = False) -> None:
        specs, offset = [], shift
        for name, array in arrays.items():
            dtype = array.dtype.name
            skip = skip_reason(dtype, array.shape)
            specs.append(TensorSpec(name, array.shape, dtype, "bytes", offset, array.nbytes, skip))
            offset += array.nbytes + gap
        self.specs = tuple(specs)
        self._bytes = aligned_buffer(offset)
        self._bytes[:] = 0xA5  # what lies between tensors is never zero by luck
        for spec, array in zip(specs, arrays.values(), strict=True):
            self._bytes[spec.offset : spec.offset + spec.nbytes] = array.reshape(-1).view(np.uint8)
        self._stream = stream

    def open(self, storage: str) -> nullcontext:
        assert storage == "bytes"
        memory = self._bytes
        return nullcontext(Stream(io.BytesIO(memory.tobytes()), "stream", 0) if self._stream else Memory(memory))
