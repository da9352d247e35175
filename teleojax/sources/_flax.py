"""Flax's msgpack (`flax.serialization.to_bytes`): the arrays are read where they lie in the mapped file.

The msgpack package reads what stands between the arrays; their own bytes are stepped over, so that a file of any size
is listed without being held. Flax itself is not needed.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError, MissingExtraError, TeleojaxError
from teleojax.sources._index import COMPLEX, FLOAT_DTYPES, Storage, TensorSpec, skip_reason
from teleojax.sources._names import bounded
from teleojax.sources._pytree import number_repeats
from teleojax.sources._ranges import Ranges
from teleojax.sources._storage import MappedFile

MAX_DEPTH = 100  # of maps in maps
MAX_LEAVES = 1_000_000  # numbers of one byte each would else take a hundred times the file in memory
HEAD_BYTES = 4096  # are read at once; an array's shape and type must fit
BUFFER_BYTES = 1 << 20  # a name must fit
MAX_RANK = 64  # NumPy's limit
NDARRAY, SCALAR = 1, 3  # Flax's types of extensions
OPTIMIZER = frozenset({"opt_state", "optimizer", "optimizer_state", "opt"})  # at the top: no parameters are below them
CHUNKED = "__msgpack_chunked_array__"  # the first key of a map that stands for an array of more than 1 GiB
LENGTHS = {  # first byte of what has a length: how that is written, bytes of an extension's type after it
    0xC4: (">B", 0), 0xC5: (">H", 0), 0xC6: (">I", 0), 0xD9: (">B", 0), 0xDA: (">H", 0), 0xDB: (">I", 0),
    0xC7: (">B", 1), 0xC8: (">H", 1), 0xC9: (">I", 1),
}  # fmt: skip
BINARY, TEXT = frozenset({0xC4, 0xC5, 0xC6}), frozenset({0xD9, 0xDA, 0xDB, *range(0xA0, 0xC0)})
MAP, ARRAY = frozenset({0xDE, 0xDF, *range(0x80, 0x90)}), frozenset({0xDC, 0xDD, *range(0x90, 0xA0)})
BEGINNING = re.compile(rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.|\xda..)[\x20-\x7e]", re.DOTALL)
EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16, 0xC7: 0, 0xC8: 0, 0xC9: 0}  # payload, 0 where it is written


def is_flax(head: bytes, _: Path) -> bool:
    """Whether a file begins with a map whose first key is text."""
    return BEGINNING.match(head) is not None


class FlaxSource:
    """The arrays of a Flax msgpack file, named by their paths as those of a pytree: "params.Dense_0.kernel".

    An array that Flax wrote in chunks is a storage of its own. Other leaves and the optimizer's state are listed as
    skipped. Raises MissingExtraError without the `msgpack` package, InputError when the file cannot be opened,
    CorruptInputError when it is damaged, nested more than MAX_DEPTH deep or has more than MAX_LEAVES leaves.
    """

    def __init__(self, path: Path) -> None:
        try:
            msgpack = import_module("msgpack")
        except ImportError as e:
            raise MissingExtraError(path, package="msgpack", extra="flax") from e
        self._path = path
        with MappedFile(path) as file:
            if not file.size:
                raise _damaged(path, "an empty file")
            walk = _Walk(path, _Cursor(msgpack, file.window(0, file.size or 0, None)))
            try:
                specs = list(bounded(walk.leaves(), attrgetter("name"), path))
            except TeleojaxError:
                raise
            except Exception as e:  # what msgpack raises: OutOfData, FormatError, StackError, BufferFull, ValueError
                raise _damaged(path, f"{str(e) or type(e).__name__} near byte {walk.cursor.position}") from e
        names = number_repeats(s.name for s in specs)
        self.specs = tuple(replace(s, name=n) for s, n in zip(specs, names, strict=True))
        self._parts, self.files = walk.parts, (path,)
        self.name, self.storages = path.name, tuple(dict.fromkeys((str(path), *(s.storage for s in specs))))

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """The file, mapped read-only, or the chunks of one array, one after another."""
        file = MappedFile(self._path)
        if storage not in self._parts:
            return file
        parts = self._parts[storage]
        starts = np.cumsum([0, *(stop - start for start, stop in parts)]).tolist()

        def read(start: int, stop: int, out: np.ndarray) -> None:
            for first, (begin, end) in zip(starts, parts, strict=False):
                a, b = max(start, first), min(stop, first + end - begin)
                if a < b:
                    np.copyto(out[a - start : b - start], file.window(begin + a - first, begin + b - first, None))

        return Ranges(storage, starts[-1], read, lambda: file.__exit__())


class _Cursor:
    """A place in msgpack data. msgpack's Unpacker moves it over structure, and the lengths of payloads over those."""

    def __init__(self, msgpack: Any, raw: np.ndarray) -> None:
        self.msgpack, self.raw = msgpack, raw
        limits = {"read_size": HEAD_BYTES, "max_buffer_size": BUFFER_BYTES, "strict_map_key": False}
        self._unpackers = partial(msgpack.Unpacker, self, **limits)
        self.position = self._base = self._fed = 0
        self._unpacker: Any = None

    def read(self, n: int) -> bytes:
        """The next bytes for the Unpacker."""
        piece = self.raw[self._fed : self._fed + n].tobytes()
        self._fed += len(piece)
        return piece

    def take(self, method: str) -> Any:
        """What a method of the Unpacker returns here; moves past it."""
        if self._unpacker is None:
            self._base = self._fed = self.position
            self._unpacker = self._unpackers()
        value = getattr(self._unpacker, method)()
        self.position = self._base + self._unpacker.tell()
        return value

    def first(self) -> int:
        """The byte here."""
        return int(self.raw[self.position : self.position + 1][0])

    def payload(self) -> tuple[int, int, int]:
        """Type, begin and end of the text, bytes or extension here (type -1 of what is no extension); moves past it."""
        kind = self.first()
        position = self.position + 1
        extension, length = kind in EXTENSION, EXTENSION.get(kind, kind & 0x1F)
        if kind in LENGTHS:
            field = LENGTHS[kind][0]
            length = struct.unpack(field, self.raw[position : position + struct.calcsize(field)].tobytes())[0]
            position += struct.calcsize(field)
        code = int(self.raw[position : position + 1].view(np.int8)[0]) if extension else -1
        begin = position + extension
        if begin + length > self.raw.size:
            raise ValueError(f"{begin + length - self.raw.size} bytes missing of {length}")
        self.position, self._unpacker = begin + length, None
        return code, begin, self.position


@dataclass(slots=True)
class _Frame:
    prefix: str
    left: int
    index: int | None  # of the next element of a list; None in a map
    keys: set[str] = field(default_factory=set)


@dataclass
class _Walk:
    path: Path
    cursor: _Cursor
    parts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    n_leaves: int = 0

    def leaves(self) -> Iterator[TensorSpec]:
        frames: list[_Frame] = []
        yield from self.value("array", "", frames)
        while frames:
            frame = frames[-1]
            if not frame.left:
                frames.pop()
                continue
            frame.left -= 1
            key = self.key(frame)
            if key == CHUNKED and not frame.keys - {key} and frame.index is None:
                frames.pop()
                yield self.chunked(frame)
            else:
                name = frame.prefix + key
                yield from self.value(name, f"{name}.", frames)
        if self.cursor.position != self.cursor.raw.size:
            raise _damaged(self.path, f"{self.cursor.raw.size - self.cursor.position} bytes after the tree")

    def key(self, frame: _Frame) -> str:
        if frame.index is not None:
            frame.index += 1
            return str(frame.index - 1)
        if self.cursor.first() in MAP | ARRAY | BINARY or self.cursor.first() in EXTENSION:
            raise _damaged(self.path, f"a key at byte {self.cursor.position} that is no text or number")
        key = str(self.cursor.take("unpack"))
        if key in frame.keys:
            raise _damaged(self.path, f"the key {(frame.prefix + key)[:200]!r} twice")
        frame.keys.add(key)
        return key

    def value(self, name: str, prefix: str, frames: list[_Frame]) -> Iterator[TensorSpec]:
        """The leaf here, or a new frame for what is a tree."""
        kind = self.cursor.first()
        if kind in MAP or kind in ARRAY:
            if len(frames) == MAX_DEPTH:
                raise _damaged(self.path, f"maps nested more than {MAX_DEPTH} deep")
            n = self.cursor.take("read_map_header" if kind in MAP else "read_array_header")
            frames.append(_Frame(prefix, n, None if kind in MAP else 0))
            return
        self.n_leaves += 1
        if self.n_leaves > MAX_LEAVES:
            raise _damaged(self.path, f"more than {MAX_LEAVES} leaves")
        if kind in EXTENSION:
            code, begin, end = self.cursor.payload()
            if code in (NDARRAY, SCALAR):
                yield self.array(name, begin, end)
            else:
                what = "complex" if code == 2 else f"extension {code}"
                yield TensorSpec(name, (), what, str(self.path), 0, 0, f"not an array: {what}")
            return
        if kind in BINARY or kind in TEXT:
            self.cursor.payload()
            what = "bytes" if kind in BINARY else "str"
        else:
            what = type(self.cursor.take("unpack")).__name__
        yield TensorSpec(name, (), what, str(self.path), 0, 0, f"not an array: {what}")

    def array(self, name: str, begin: int, end: int) -> TensorSpec:
        """The array whose shape, type and bytes are the payload [begin, end)."""
        where = f"{self.path}: array {name[:200]!r}"
        head = _Cursor(self.cursor.msgpack, self.cursor.raw[begin:end])
        if head.take("read_array_header") != 3:
            raise _damaged(where, "an array of other than shape, type and bytes")
        shape, dtype = self.shape(where, head.take("unpack")), head.take("unpack")
        if not isinstance(dtype, str) or head.first() not in BINARY:
            raise _damaged(where, "an array of other than shape, type and bytes")
        _, first, last = head.payload()
        if begin + last != end:
            raise _damaged(where, f"{end - begin - last} bytes after its values")
        itemsize = _itemsize(dtype)
        if itemsize is not None and math.prod(shape) * itemsize != last - first:
            raise _damaged(where, f"{last - first} bytes for {dtype} of shape {shape}")
        skip = "optimizer state" if name.partition(".")[0] in OPTIMIZER else skip_reason(dtype, shape)
        return TensorSpec(name, shape, dtype, str(self.path), begin + first, last - first, skip)

    def shape(self, where: object, found: object) -> tuple[int, ...]:
        if not isinstance(found, list) or len(found) > MAX_RANK or not all(type(n) is int and n >= 0 for n in found):
            raise _damaged(where, f"the shape {str(found)[:200]}")
        return tuple(found)

    def chunked(self, frame: _Frame) -> TensorSpec:
        """The array that a map of a shape and chunks stands for, after its first key."""
        name = frame.prefix.removesuffix(".") or "array"
        where = f"{self.path}: array {name[:200]!r}"
        self.cursor.take("unpack")
        if frame.left != 2 or self.key(frame) != "shape":
            raise _damaged(where, "a chunked array without shape and chunks")
        sizes = self.cursor.take("unpack")
        if not isinstance(sizes, dict) or list(sizes) != [str(i) for i in range(len(sizes))]:
            raise _damaged(where, f"the shape {str(sizes)[:200]}")
        shape = self.shape(where, list(sizes.values()))
        if self.key(frame) != "chunks" or self.cursor.first() not in MAP:
            raise _damaged(where, "a chunked array without chunks")
        chunks: list[TensorSpec] = []
        for i in range(n := self.cursor.take("read_map_header")):
            if self.cursor.take("unpack") != str(i) or self.cursor.first() not in EXTENSION:
                raise _damaged(where, f"chunks that are not arrays numbered from 0 to {n - 1}")
            code, begin, end = self.cursor.payload()
            if code != NDARRAY or len(chunks) == MAX_LEAVES:
                raise _damaged(where, f"chunks that are not arrays numbered from 0 to {n - 1}")
            chunks.append(self.array(name, begin, end))
        dtypes, size, nbytes = {c.dtype for c in chunks}, sum(c.size for c in chunks), sum(c.nbytes for c in chunks)
        if len(dtypes) != 1 or size != math.prod(shape):
            raise _damaged(where, f"chunks of {size} values and {len(dtypes)} types for the shape {shape}")
        storage = f"{self.path}:{name}:{len(self.parts)}"
        self.parts[storage] = [(c.offset, c.offset + c.nbytes) for c in chunks]
        skip = next((c.skip for c in chunks if c.skip != "empty"), "empty")
        return TensorSpec(name, shape, chunks[0].dtype, storage, 0, nbytes, skip)


def _itemsize(dtype: str) -> int | None:
    """Bytes a value of a type that is measured, if only as its modulus; None of any other."""
    if dtype in COMPLEX:
        return int(dtype.removeprefix("complex")) // 8
    if dtype not in FLOAT_DTYPES:
        return None
    return int(dtype.removeprefix("b").removeprefix("float").partition("_")[0]) // 8


def _damaged(where: object, found: str) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=found,
        needed="a tree as flax.serialization.to_bytes writes it",
        remedy="The file is truncated, damaged or not Flax's: copy or write it again.",
    )
