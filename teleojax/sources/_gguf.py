"""GGUF: plain values are read where they lie in the mapped file, quantised ones dequantised block by block.

Types and dequantisation are the `gguf` package's. The header is walked here: the package's reader makes a Python object
of every token of the vocabulary (600 MiB and 7 s for one of 128,256), and does not check that names differ, that the
tensors' bytes lie apart from each other, or that offsets are multiples of the alignment.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources._gguf_blocks import Dequantised, can_dequantise
from teleojax.sources._index import Storage, TensorSpec, skip_reason
from teleojax.sources._storage import MappedFile

PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTEGERS = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # kind of a value: its bytes
UINT32, STRING, ARRAY = 4, 8, 9  # the kinds that are told apart here
MAX_DIMENSIONS = 4  # of the format
MOST_TENSORS = 1 << 20
MAX_NESTING = 8  # of arrays in arrays; nobody writes more than one


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header describes it; `shape` in C order, `offset` from the start of the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufSource:
    """The tensors of one file. Quantised ones have the values that they stand for, as float32; `stored_as` names how.

    Raises MissingExtraError without `gguf`, InputError when the file cannot be opened, is big-endian or of a version
    other than 2 and 3, CorruptInputError when the header does not describe the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as e:
            raise MissingExtraError(path, package="gguf", extra="gguf") from e
        self._path, self._quantised = path, {}
        with MappedFile(path) as file:
            raw = file.window(0, file.size or 0, None).data
            try:
                start, entries = _Header(path, raw).read()
            except TeleojaxError:
                raise
            except (ValueError, struct.error, OverflowError, RecursionError) as e:
                raise _damaged(path, f"a header that ends early or holds no text ({e})") from e
            specs = [self._spec(entry, start, len(raw), gguf) for entry in entries]
        _refuse_overlaps(path, [(*self._quantised.get(s.storage, (s.offset, s.nbytes))[:2], s.name) for s in specs])
        self.name, self.specs, self.files = path.name, tuple(specs), (path,)
        self.storages = tuple(dict.fromkeys(s.storage for s in specs))

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """The file, mapped read-only, or the values of one quantised tensor."""
        if storage in self._quantised:
            return Dequantised(MappedFile(self._path), *self._quantised[storage])
        return MappedFile(self._path)

    def _spec(self, entry: _Entry, start: int, size: int, gguf: Any) -> TensorSpec:
        where = f"{self._path}: tensor {entry.name[:120]!r}"
        path, name, shape, n = str(self._path), entry.name, entry.shape, math.prod(entry.shape)
        try:
            kind = gguf.GGMLQuantizationType(entry.kind)
        except ValueError:
            return TensorSpec(name, shape, f"type {entry.kind}", path, 0, 0, f"unknown type {entry.kind}")
        values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        row = shape[-1] if shape else 1
        if row % values:
            raise _damaged(where, f"rows of {row} values in blocks of {values}")
        offset, nbytes = start + entry.offset, n // values * n_bytes
        if offset + nbytes > size:
            raise _damaged(where, f"{nbytes} bytes from byte {offset} on in a file of {size}")
        dtype, stored = PLAIN.get(kind.name) or INTEGERS.get(kind.name), kind.name.lower()
        if dtype is not None:
            return TensorSpec(name, shape, dtype, path, offset, nbytes, skip_reason(dtype, shape))
        storage = f"{path}:{name}"
        self._quantised[storage] = (offset, nbytes, kind)
        skip = skip_reason("float32", shape) or (None if can_dequantise(kind) else f"type {stored} is not read")
        return TensorSpec(name, shape, "float32", storage, 0, 4 * n, skip, stored_as=stored)


@dataclass
class _Header:
    path: Path
    raw: memoryview
    at: int = 0

    def read(self) -> tuple[int, list[_Entry]]:
        """Where the data begins, and the tensors."""
        if bytes(self.raw[:4]) != b"GGUF":
            raise _damaged(self.path, f"a file of {len(self.raw)} bytes that begins with {bytes(self.raw[:4])!r}")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            big = version & 0xFFFF == 0
            raise InputError(
                self.path,
                found="big-endian values" if big else f"version {version} of the format",
                needed="little-endian ones" if big else "version 2 or 3",
                remedy="Convert the model again with today's tools.",
            )
        n_tensors, n_fields = self.number("Q"), self.number("Q")
        if n_tensors > MOST_TENSORS:
            raise _damaged(self.path, f"{n_tensors} tensors, where at most {MOST_TENSORS} are read")
        alignment = 32
        for _ in range(n_fields):
            key, kind = self.text(), self.number("I")
            if key == "general.alignment" and kind == UINT32:
                alignment = self.number("I")
            else:
                self.skip(kind)
        if not alignment or alignment & (alignment - 1):
            raise _damaged(self.path, f"an alignment of {alignment}")
        entries = list(self.tensors(n_tensors, alignment))
        return -(-self.at // alignment) * alignment, entries

    def tensors(self, n: int, alignment: int) -> Iterator[_Entry]:
        seen: set[str] = set()
        for _ in range(n):
            name, n_dimensions = self.text(), self.number("I")
            where = f"{self.path}: tensor {name[:120]!r}"
            if n_dimensions > MAX_DIMENSIONS:
                raise _damaged(where, f"{n_dimensions} dimensions, where at most {MAX_DIMENSIONS} can be")
            shape = tuple(self.number("Q") for _ in range(n_dimensions))[::-1]
            kind, offset = self.number("I"), self.number("Q")
            if name in seen:
                raise _damaged(where, "a second tensor of that name")
            if offset % alignment:
                raise _damaged(where, f"an offset of {offset}, which is no multiple of the alignment {alignment}")
            seen.add(name)
            yield _Entry(name, shape, kind, offset)

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self.raw, self.at)
        self.at += struct.calcsize(kind)
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.advance(length)
        return str(self.raw[self.at - length : self.at], "utf-8")

    def advance(self, n: int) -> None:
        if n > len(self.raw) - self.at:
            raise _damaged(self.path, f"{n} bytes of the header from byte {self.at} on in a file of {len(self.raw)}")
        self.at += n

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if kind in SCALARS:
            self.advance(SCALARS[kind])
        elif kind == STRING:
            self.advance(self.number("Q"))
        elif kind == ARRAY and depth < MAX_NESTING:
            inner, n = self.number("I"), self.number("Q")
            if inner in SCALARS:
                self.advance(n * SCALARS[inner])
            else:
                for _ in range(n):
                    self.skip(inner, depth + 1)
        else:
            raise _damaged(self.path, f"a value of kind {kind}")


def _refuse_overlaps(path: Path, extents: list[tuple[int, int, str]]) -> None:
    end = 0
    for offset, nbytes, name in sorted(e for e in extents if e[1]):
        if offset < end:
            raise _damaged(f"{path}: tensor {name[:120]!r}", "bytes that overlap those of another tensor")
        end = offset + nbytes


def _damaged(where: object, found: str) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=found,
        needed="an intact GGUF file",
        remedy="The file is truncated or damaged: copy or download it again.",
    )
