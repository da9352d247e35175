"""Safetensors: one file, a sharded directory with its index, or a forward-only stream; only headers are read.

The header is parsed here because zero-copy reads need byte offsets and a pipe cannot be sought; the safetensors
package offers neither. A file is accepted when the package accepts it, and also when it holds types that are newer
than this table (those tensors are listed as skipped) or odd metadata (ignored).
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError, InputError, TeleojaxError
from teleojax.sources._index import TensorSpec, natural_key, skip_reason
from teleojax.sources._storage import ByteStream, MappedFile, Stream

MAX_HEADER_BYTES = 100_000_000  # the safetensors package's own limit, so that a hostile length allocates nothing
MAX_VALUES = 2**64 - 1  # sizes are u64 in the format; it also bounds the products of a hostile shape
PIECE_BYTES = 1 << 20  # a header is read in pieces of this size, so that its claimed length is never trusted
MAX_FILE_NAME = 255  # of every file system in use
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # in JSON
INDEX_SUFFIX = ".safetensors.index.json"

DTYPES = {  # the format's name: (NumPy / ml_dtypes name, bits a value)
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "F4": ("float4_e2m1fn", 4),
    "C64": ("complex64", 64),
    "BOOL": ("bool", 8),
    **{
        f"{kind}{bits}": (f"{name}{bits}", bits)
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
NOT_READ_YET = frozenset({"F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"})  # scales and packed sub-byte values

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120  # a hostile header may hold a name of megabytes


class SafetensorsSource:
    """Tensors of one or more safetensors files, each mapped, in natural order of the file names and then of the bytes.

    Every header is read and checked here; no value is. Raises InputError when a file cannot be opened or two files
    hold the same tensor name, CorruptInputError when a header does not describe its file.
    """

    def __init__(self, paths: Iterable[Path], *, name: str | None = None) -> None:
        paths = sorted(paths, key=lambda p: natural_key(p.name))
        self._fill({p: read_file_header(p) for p in paths}, name or ", ".join(p.name for p in paths), {})

    @classmethod
    def from_index(cls, index: Path, *, name: str | None = None) -> SafetensorsSource:
        """The shards that a Hugging Face `*.safetensors.index.json` names, all in or below its directory.

        The index decides which shard a tensor is read from; tensors it does not name are read where they are.
        Raises CorruptInputError for an index that is malformed, points outside its directory or promises a tensor
        that its shard does not hold, InputError for a missing shard.
        """
        weight_map = read_index(index)
        promised: dict[PurePosixPath, set[str]] = {}
        for tensor, shard in weight_map.items():
            promised.setdefault(shard, set()).add(tensor)
        specs: dict[Path, tuple[TensorSpec, ...]] = {}
        home: dict[str, Path] = {}
        for shard, tensors in sorted(promised.items(), key=lambda item: natural_key(str(item[0]))):
            path = index.parent / shard
            if _is_missing(path):
                raise InputError(
                    path,
                    found=f"no shard {str(shard)!r}, which holds {len(tensors)} of the {len(weight_map)} tensors",
                    needed=f"every shard that {index.name} names",
                    remedy="Download the missing shard, or remove its tensors from the index.",
                )
            specs[path] = read_file_header(path)
            if absent := sorted(tensors - {s.name for s in specs[path]}):
                raise CorruptInputError(
                    path,
                    found=f"no tensor {_short.repr(absent[0])}"
                    + (f" nor {len(absent) - 1} more" if absent[1:] else ""),
                    needed=f"the {len(tensors)} tensors that {index.name} promises",
                    remedy="Index and shards belong to different models: download both again.",
                )
            home |= dict.fromkeys(tensors, path)
        self = cls.__new__(cls)
        self._fill(specs, name or index.parent.resolve().name, home)
        return self

    def _fill(self, files: Mapping[Path, tuple[TensorSpec, ...]], name: str, home: Mapping[str, Path]) -> None:
        seen: dict[str, Path] = {}
        specs: list[TensorSpec] = []
        for path, mine in files.items():
            for spec in mine:
                if home.get(spec.name, path) != path:
                    continue
                if spec.name in seen:
                    raise InputError(
                        path,
                        found=f"tensor {_short.repr(spec.name)}, which {seen[spec.name].name} holds too",
                        needed="each tensor name in one file, or an index that decides",
                        remedy="Remove or name one of the files.",
                    )
                seen[spec.name] = path
                specs.append(spec)
        self.name, self.specs, self.storages = name, tuple(specs), tuple(str(p) for p in files)

    def open(self, storage: str) -> MappedFile:
        """The file, mapped read-only."""
        return MappedFile(Path(storage))


class SafetensorsStream:
    """Tensors of a safetensors stream: the header is read at once, the bytes forward, once, never seeking.

    The one storage reads the stream to the end of the last tensor when it is closed without an error, so that a
    truncated stream is noticed and the process that feeds it is not cut off. Bytes after that are left unread.
    `close` hands the file over: it is closed after the pass, or with this object.
    """

    _close = _opened = False

    def __init__(self, file: ByteStream, name: str = "stdin", *, close: bool = False) -> None:
        self._file, self._close = file, close
        self.specs, self._position, self.end = read_header(_reader(file, name), name, name)
        self.name, self.storages, self.files = name, (name,), ()

    def __del__(self) -> None:
        if self._close and not self._opened:
            self._file.close()

    def open(self, storage: str) -> Stream:
        """The bytes after the header. Raises InputError the second time: a stream passes once."""
        if self._opened:
            raise InputError(
                storage,
                found="a stream that has been read already",
                needed="a stream that is read once",
                remedy="Save the stream to a file and give its path.",
            )
        self._opened = True
        return self._begin(storage)

    def _begin(self, storage: str) -> WholeStream:
        return WholeStream(self._file, storage, self._position, self.end, self._close)


class WholeStream(Stream):
    """A stream that is read to byte `end` when it is left without an error; `close` closes the file then, or later."""

    def __init__(self, file: ByteStream, name: str, position: int, end: int, close: bool) -> None:
        super().__init__(file, name, position)
        self._end, self._close = end, close

    def __exit__(self, *exc: object) -> None:
        try:
            if not exc or exc[0] is None:
                self.window(self._end, self._end, np.empty(0, np.uint8))
        finally:
            if self._close:
                self._file.close()


def read_file_header(path: Path) -> tuple[TensorSpec, ...]:
    """The tensors of one file, whose bytes they must cover exactly.

    Raises InputError when the file cannot be opened, CorruptInputError when its header does not describe it.
    """
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            return read_sized_header(f, path, str(path), size)
    except OSError as e:
        raise InputError(
            path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
        ) from e


def read_sized_header(file: ByteStream, where: object, storage: str, size: int) -> tuple[TensorSpec, ...]:
    """The tensors of a file that is read from its beginning and has `size` bytes, which they must cover exactly.

    Raises CorruptInputError when its header does not describe it.
    """
    specs, _, end = read_header(_reader(file, where, size), where, storage, size)
    if size < end:
        raise CorruptInputError(
            where,
            found=f"{size} bytes",
            needed=f"{end} bytes ({end - size} missing)",
            remedy="The file is truncated: copy or download it again.",
        )
    if size > end:
        raise CorruptInputError(
            where,
            found=f"{size - end} bytes after the last tensor",
            needed=f"the end of the file at byte {end}",
            remedy="The header does not cover the file: write it again.",
        )
    return specs


def read_header(
    read: Callable[[int], bytes], where: object, storage: str, size: int | None = None
) -> tuple[tuple[TensorSpec, ...], int, int]:
    """The tensors in byte order, the offset of the first data byte, and the offset after the last.

    `read(n)` returns n bytes or raises. `size`, if known, bounds the header length. Raises CorruptInputError.
    """
    length = struct.unpack("<Q", read(8))[0]
    if length > MAX_HEADER_BYTES or (size is not None and length > size - 8):
        limit = MAX_HEADER_BYTES if size is None else min(MAX_HEADER_BYTES, size - 8)
        raise CorruptInputError(
            where,
            found=f"a header length of {length} bytes",
            needed=f"at most {limit}",
            remedy="The file is truncated or not safetensors: download or write it again.",
        )
    table = load_json(read(length), where, "header")
    table.pop("__metadata__", None)
    start = 8 + length
    specs = [
        _spec(name, entry, f"{where}: tensor {_short.repr(name)}", storage, start) for name, entry in table.items()
    ]
    specs.sort(key=lambda s: (s.offset, s.nbytes))
    position = start
    for spec in specs:
        if spec.offset != position:
            kind = "overlaps the tensor before it" if spec.offset < position else "leaves a hole before it"
            raise CorruptInputError(
                f"{where}: tensor {_short.repr(spec.name)}",
                found=f"data that begins at byte {spec.offset} and {kind}",
                needed=f"data that begins at byte {position}",
                remedy="The header is damaged: write or download the file again.",
            )
        position += spec.nbytes
    return tuple(specs), start, position


def _spec(name: str, entry: Any, where: str, storage: str, start: int) -> TensorSpec:
    fields = entry if isinstance(entry, dict) else {}
    kind, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str):
        raise _malformed(where, f"dtype {_short.repr(kind)}", "a type name such as 'F32'")
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise _malformed(where, f"shape {_short.repr(shape)}", "a list of non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise _malformed(where, f"data_offsets {_short.repr(offsets)}", "two non-negative integers")
    begin, end = offsets
    if begin > end:
        raise _malformed(where, f"data_offsets {_short.repr(offsets)}", "a begin that is not after the end")
    values = 1
    for n in shape:
        values *= n
        if values > MAX_VALUES:
            raise _malformed(where, f"shape {_short.repr(shape)}", "at most 2**64 - 1 values")
    dtype, bits = DTYPES.get(kind, (kind, None))
    if bits is not None and values * bits != 8 * (end - begin):
        raise _malformed(
            where,
            f"{end - begin} bytes",
            f"{values * bits // 8} bytes for {kind} of shape {_short.repr(shape)}"
            if values * bits % 8 == 0
            else f"whole bytes; {kind} of shape {_short.repr(shape)} takes {values * bits} bits",
        )
    if bits is None:
        skip = f"unknown type {_short.repr(kind)}"
    elif kind in NOT_READ_YET:
        skip = f"type {dtype} is not read yet"
    else:
        skip = skip_reason(dtype, tuple(shape))
    return TensorSpec(name, tuple(shape), dtype, storage, start + begin, end - begin, skip)


def _is_size(n: object) -> bool:
    return type(n) is int and 0 <= n <= MAX_VALUES  # a bool is an int, and not a size


def _malformed(where: object, found: str, needed: str) -> CorruptInputError:
    return CorruptInputError(
        where, found=found, needed=needed, remedy="The header is damaged: write or download the file again."
    )


def load_json(raw: bytes, where: object, what: str) -> dict[str, Any]:
    """A JSON object with unique keys, from UTF-8 bytes. Raises CorruptInputError for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            twice = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
            raise ValueError(f"duplicate key {_short.repr(twice)}")
        return table

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if SURROGATE.search(raw):  # an escaped lone one parses, and cannot be printed
            json.dumps(table, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as e:
        raise _malformed(where, f"a {what} that is not JSON in UTF-8 ({e})", "a JSON object") from e
    if not isinstance(table, dict):
        raise _malformed(where, f"a {what} that is a JSON {type(table).__name__}", "a JSON object")
    return table


def read_index(index: Path) -> dict[str, PurePosixPath]:
    """The index's map from tensor name to shard, relative to its directory.

    A shard is refused by its *name* when that leads out of the directory; a symlink inside may lead anywhere, as in
    the Hugging Face cache. Raises InputError, CorruptInputError.
    """
    try:
        with index.open("rb") as f:
            raw = f.read(MAX_HEADER_BYTES + 1)
    except OSError as e:
        raise InputError(
            index, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
        ) from e
    return parse_index(raw, index)


def parse_index(raw: bytes, index: object) -> dict[str, PurePosixPath]:
    """The map that the bytes of an index hold. Raises CorruptInputError."""
    if len(raw) > MAX_HEADER_BYTES:
        raise _malformed(index, "an index of more than 100 MB", "at most 100 MB")
    weight_map = load_json(raw, index, "index").get("weight_map")
    if not isinstance(weight_map, dict):
        raise _malformed(index, f"weight_map {_short.repr(weight_map)}", "an object from tensor name to file name")
    shards: dict[object, PurePosixPath] = {}  # a file is named once a tensor
    found = {}
    for name, file in weight_map.items():
        known = shards.get(file) if isinstance(file, str) else None
        found[name] = shards[file] = known or _shard(index, name, file)
    return found


def _shard(index: object, name: str, file: object) -> PurePosixPath:
    where = f"{index}: tensor {_short.repr(name)}"
    parts = PurePosixPath(file).parts if isinstance(file, str) else ()
    if not isinstance(file, str) or not parts or "\0" in file or max(map(len, parts)) > MAX_FILE_NAME:
        raise _malformed(where, f"shard {_short.repr(file)}", "a file name")
    windows = PureWindowsPath(file)  # splits at both kinds of slash, and knows drives
    if windows.anchor or ".." in windows.parts or PurePosixPath(file).is_absolute():
        raise CorruptInputError(
            where,
            found=f"shard {_short.repr(file)}, which lies outside the directory of the index",
            needed="a shard beside or below the index",
            remedy="Do not trust this index; download the model from its source.",
        )
    return PurePosixPath(file)


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # there, and out of reach: opening it says why
        return False


def _reader(file: ByteStream, where: object, size: int | None = None) -> Callable[[int], bytes]:
    position = 0

    def read(n: int) -> bytes:
        nonlocal position
        pieces: list[bytes] = []
        left = n
        while left:
            try:
                piece = file.read(min(left, PIECE_BYTES))
            except TeleojaxError:
                raise
            except Exception as e:  # whatever a pipe or a decompressor raises
                raise InputError(
                    where,
                    found=f"an error after {position} bytes ({str(e) or type(e).__name__})",
                    needed="a readable safetensors header",
                    remedy="Check the file or the command that feeds the stream.",
                ) from e
            if not piece:
                total = position + n - left if size is None else size
                raise CorruptInputError(
                    where,
                    found="nothing" if total == 0 else f"the end after {total} bytes",
                    needed=f"at least {position + n} bytes ({position + n - total} missing)",
                    remedy="It is empty, truncated or not safetensors: download or make it again.",
                )
            pieces.append(piece)
            left -= len(piece)
        position += n
        return b"".join(pieces)

    return read
