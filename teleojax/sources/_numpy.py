"""NumPy's `.npy` and `.npz`: headers are read with NumPy's own readers; nothing is ever unpickled.

Values in Fortran order are left in the order of the file, which the specification names. A stored member of an archive
is read from the mapped archive itself, without its checksum; a compressed one is a stream whose checksum is verified.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from teleojax._errors import CorruptInputError, InputError
from teleojax.sources._index import Storage, TensorSpec, skip_reason
from teleojax.sources._storage import MappedFile, Stream

MAX_HEADER_BYTES = 40_000  # NumPy's own limit of 10,000 characters, in the longest UTF-8
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, ..., lengths of name and extra field
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0, (3, 0): npy.read_array_header_2_0}
# version 3 is version 2 with UTF-8 in the names of structured fields, which are not looked at here


class NpySource:
    """The one array of a `.npy` file, named after the file, mapped.

    Raises InputError when the file cannot be opened, CorruptInputError when its header is malformed or does not
    describe its bytes.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as f:
                size = f.seek(0, os.SEEK_END)
                f.seek(0)
                spec = _spec(f.read, path.stem, path, str(path), 0, size)
        except OSError as e:
            raise _unreadable(path, e) from e
        self.name, self.specs, self.storages = path.name, (spec,), (str(path),)

    def open(self, storage: str) -> MappedFile:
        """The file, mapped read-only."""
        return MappedFile(Path(storage))


class NpzSource:
    """The arrays of a `.npz` archive, named after their members.

    Stored members share one storage, the mapped archive; each compressed member is a storage of its own. Members that
    are not `.npy` are listed as skipped. Raises InputError when the archive cannot be opened or holds no array,
    CorruptInputError when archive or header are malformed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.files = path, (path,)
        self._compressed: dict[str, zipfile.ZipInfo] = {}
        self.name = path.name
        try:
            with path.open("rb") as f:
                specs = tuple(self._scan(f))
        except OSError as e:
            raise _unreadable(path, e) from e
        self.specs = specs
        self.storages = tuple(dict.fromkeys(s.storage for s in specs))

    def _scan(self, f: io.BufferedReader) -> Iterator[TensorSpec]:
        size = f.seek(0, os.SEEK_END)
        try:
            archive = zipfile.ZipFile(f)
        except OSError:
            raise
        except Exception as e:  # zipfile lets struct, Unicode and value errors of a damaged directory through
            raise _damaged(self._path, e) from e
        members = [m for m in archive.infolist() if not m.filename.endswith("/")]
        _require_arrays(self._path, [m.filename for m in members])
        seen: set[str] = set()
        for member in members:
            where = f"{self._path}: member {member.filename!r}"
            name = member.filename.removesuffix(".npy")
            if name in seen:
                raise CorruptInputError(
                    where,
                    found="a second member of that name",
                    needed="names that are unique",
                    remedy="Write the archive again with distinct array names.",
                )
            seen.add(name)
            stored = member.compress_type == zipfile.ZIP_STORED
            base = stored_offset(f, member, size, where) if stored else 0
            storage = str(self._path) if stored else f"{self._path}:{member.filename}"
            if not stored:
                self._compressed[storage] = member
            if name == member.filename:
                n = member.file_size
                yield TensorSpec(name, (n,), "uint8", storage, base, n, "not an array: the member is no .npy file")
                continue
            try:
                head = archive.open(member)
            except Exception as e:  # a bad local header, an encrypted member, an unknown compression
                raise _damaged(where, e) from e
            with head:
                yield _spec(head.read, name, where, storage, base, member.file_size)

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """The archive, mapped read-only, or a forward-only stream of one compressed member."""
        return self._member(self._compressed[storage]) if storage in self._compressed else MappedFile(Path(storage))

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    @contextmanager
    def _member(self, member: zipfile.ZipInfo) -> Iterator[Stream]:
        where = f"{self._path}: member {member.filename!r}"
        try:
            file = self._archive.open(member)
        except OSError as e:
            raise _unreadable(self._path, e) from e
        except Exception as e:  # the archive changed since it was scanned
            raise _damaged(where, e) from e
        with file:
            yield Stream(file, where, 0)  # pyright: ignore[reportArgumentType]


def _require_arrays(path: Path, members: list[str]) -> None:
    if not members or any(m.endswith(".npy") for m in members):
        return
    raise InputError(
        path,
        found=f"a zip archive without .npy members (the first of {len(members)} is {members[0]!r})",
        needed="an .npz archive",
        remedy="Unpack it, or convert it to safetensors.",
    )


def stored_offset(f: io.BufferedReader, member: zipfile.ZipInfo, size: int, where: str) -> int:
    f.seek(member.header_offset)
    raw = f.read(LOCAL_HEADER.size)
    signature, n_name, n_extra = LOCAL_HEADER.unpack(raw) if len(raw) == LOCAL_HEADER.size else (b"", 0, 0)
    offset = member.header_offset + LOCAL_HEADER.size + n_name + n_extra
    if signature != b"PK\x03\x04" or member.file_size != member.compress_size or offset + member.file_size > size:
        raise CorruptInputError(
            where,
            found=f"{member.file_size} bytes from byte {offset} on in a file of {size}",
            needed="a stored member that lies in the file",
            remedy="The archive is truncated or damaged: copy or write it again.",
        )
    return offset


def _spec(read: Callable[[int], bytes], name: str, where: object, storage: str, base: int, size: int) -> TensorSpec:
    try:
        dtype, shape, fortran, start = _read_header(read)
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape {shape} is not valid")
    except OSError:
        raise
    except Exception as e:  # NumPy evaluates the header as a Python literal: any error of a parser comes out
        raise CorruptInputError(
            where,
            found=f"a malformed header ({' '.join(str(e).split())[:200] or type(e).__name__})",
            needed="an array as numpy.save writes it",
            remedy="The file is truncated or damaged: copy or write it again.",
        ) from e
    nbytes = size - start if dtype.hasobject else math.prod(shape) * dtype.itemsize
    if start + nbytes != size:
        missing = start + nbytes - size
        raise CorruptInputError(
            where,
            found=f"{size - start} bytes of data",
            needed=f"{nbytes} for {dtype} of shape {shape} ({abs(missing)} {'missing' if missing > 0 else 'too many'})",
            remedy="Truncated, or several arrays in one file: copy it again, or save each array on its own.",
        )
    reason, order = _reason(dtype, shape), "F" if fortran else "C"
    return TensorSpec(name, shape, _dtype_name(dtype), storage, base + start, nbytes, reason, order)


def _read_header(read: Callable[[int], bytes]) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    first = read(12)
    prefix, field = (10, "<H") if first[6:7] == b"\x01" else (12, "<I")
    if len(first) < 12:
        raise ValueError(f"the end after {len(first)} bytes")
    length = struct.unpack_from(field, first, 8)[0]
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header length of {length} bytes, at most {MAX_HEADER_BYTES} is read")
    raw = first + read(max(0, prefix + length - 12))
    head = io.BytesIO(raw.replace(b"'<f1'", b"'|V1'"))  # float8_e5m2 is saved under a name that NumPy cannot read
    version = npy.read_magic(head)
    if version not in READERS:
        raise ValueError(f"version {version} of the format")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header by Python 2, an odd escape in a literal
        shape, fortran, dtype = READERS[version](head)
    return dtype, shape, fortran, head.tell()


def _dtype_name(dtype: np.dtype) -> str:
    return "object" if dtype.hasobject else dtype.name


def _reason(dtype: np.dtype, shape: tuple[int, ...]) -> str | None:
    if dtype.hasobject:
        return "needs unpickling, which teleojax never does"
    if dtype.names is not None or dtype.subdtype is not None:
        return "structured type"
    if dtype.kind in "SU":
        return "string type"
    if dtype.kind == "V":
        return f"type lost: raw {dtype.itemsize}-byte values (NumPy does not keep bfloat16 or float8; use safetensors)"
    if dtype.byteorder == ">":
        return f"big-endian {dtype.name} is not read"
    if dtype.kind == "f" and dtype.itemsize > 8:
        return f"type {dtype.name} is not read"
    return skip_reason(dtype.name, shape)


def _unreadable(path: Path, e: OSError) -> InputError:
    return InputError(
        path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
    )


def _damaged(where: object, e: Exception) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=f"a zip archive that cannot be read ({str(e) or type(e).__name__})",
        needed="an intact .npz archive",
        remedy="The archive is truncated, damaged or encrypted: copy or write it again.",
    )
