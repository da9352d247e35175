"""HDF5, which Keras writes too (`.weights.h5`, `.h5`): every floating-point dataset, named by its path in the file.

Contiguous values are read where they lie in the mapped file; chunked, compact and big-endian ones go through the HDF5
library. No link out of the file is followed, and nothing that a file holds becomes code.
Format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources._hdf5_datasets import dataset_spec, library, open_dataset
from teleojax.sources._index import Storage, TensorSpec
from teleojax.sources._names import bounded
from teleojax.sources._pytree import number_repeats
from teleojax.sources._storage import MappedFile

MAX_DEPTH = 64  # of groups in groups; Keras stays below 20
OPTIMIZER = (b"optimizer_weights/", b"optimizer/vars/")  # of Keras: paths that begin so are no parameters


class Hdf5Source:
    """Every dataset of an HDF5 file, by its path without the leading slash; one that has several paths is listed once.

    Datasets that are no floating-point numbers, hold nothing, are views of others, lie in other files or belong to
    Keras's optimizer are listed as skipped, as are links to other files. Soft links are not followed: what they lead to
    has a path of its own. `section` is where in the file the HDF5 data lies (begin, end), if not all of it.
    Raises MissingExtraError without the `h5py` package, InputError when the file cannot be opened, CorruptInputError
    when it is damaged.
    """

    def __init__(self, path: Path, *, section: tuple[int, int] | None = None) -> None:
        self._path, self._section, self.files = path, section, (path,)
        with _opened(path, section) as file:
            try:
                tensors = _tensors(path, section[0] if section else 0, file.id)
                found = list(bounded(tensors, lambda t: t[0].name, path))
            except TeleojaxError:
                raise
            except Exception as e:  # the library's errors come out as Key, Value, Type, Runtime and OSError
                raise _damaged(path, e) from e
        end = section[1] if section else path.stat().st_size
        _refuse_overlaps(path, [s for s, _ in found if s.storage == str(path)], end)
        names = number_repeats(s.name for s, _ in found)
        self._datasets = {s.storage: raw for s, raw in found if s.storage != str(path)}
        self.specs = tuple(replace(s, name=n) for n, (s, _) in zip(names, found, strict=True))
        self.name, self.storages = path.name, tuple(dict.fromkeys(s.storage for s in self.specs))

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """The file, mapped read-only, or one dataset in ranges that the HDF5 library makes."""
        if storage not in self._datasets:
            return MappedFile(self._path)
        file = _opened(self._path, self._section)
        try:
            return open_dataset(file, self._datasets[storage], storage)
        except TeleojaxError:
            file.close()
            raise
        except Exception as e:  # the file changed since it was scanned, or is damaged
            file.close()
            raise _damaged(storage, e) from e


def _opened(path: Path, section: tuple[int, int] | None) -> Any:
    try:
        h5 = library()
    except ImportError as e:
        raise MissingExtraError(path, package="h5py", extra="hdf5") from e
    try:
        if section is None:
            return h5.File(path, "r", locking=False)
        return h5.File(_Section(path, *section), "r")
    except OSError as e:
        if e.errno is not None and not str(e).startswith("Unable to synchronously open"):
            raise InputError(
                path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
            ) from e
        raise _damaged(path, e) from e
    except Exception as e:
        raise _damaged(path, e) from e


class _Section(io.RawIOBase):
    """Bytes [begin, end) of a file, as a file."""

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self._file, self._begin, self._size = path.open("rb"), begin, end - begin
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._begin + self._position)
        n = self._file.readinto(view)
        self._position += n
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _tensors(path: Path, base: int, root: Any) -> Iterator[tuple[TensorSpec, bytes]]:
    """Every dataset that hard links lead to, and every link out of the file, each with its path in the file."""
    h5 = library()
    seen = {_identity(h5.h5o.get_info(root))}
    stack: list[tuple[bytes, Any, int]] = [(b"", root, 0)]
    while stack:
        prefix, group, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise CorruptInputError(
                path,
                found=f"groups nested more than {MAX_DEPTH} deep",
                needed=f"at most {MAX_DEPTH}",
                remedy="Write the file again with a flatter structure.",
            )
        inner: list[tuple[bytes, Any, int]] = []
        for link in group:
            full = prefix + link
            name = full.decode("utf-8", errors="backslashreplace")
            kind = group.links.get_info(link).type
            if kind == h5.h5l.TYPE_SOFT:
                continue
            if kind != h5.h5l.TYPE_HARD:
                target = b" ".join(group.links.get_val(link)) if kind == h5.h5l.TYPE_EXTERNAL else b"somewhere else"
                text = target.decode("utf-8", errors="backslashreplace")
                yield TensorSpec(name, (), "link", str(path), 0, 0, f"a link out of the file ({text})"), full
                continue
            info = h5.h5o.get_info(group, link)
            if _identity(info) in seen:
                continue
            seen.add(_identity(info))
            if info.type == h5.h5o.TYPE_GROUP:
                inner.append((full + b"/", h5.h5g.open(group, link), depth + 1))
            elif info.type == h5.h5o.TYPE_DATASET:
                spec = dataset_spec(h5.h5d.open(group, link), name, path, base)
                mine = full.startswith(OPTIMIZER) and spec.skip is None
                yield (replace(spec, skip="optimizer state") if mine else spec), full
        stack += reversed(inner)


def _identity(info: Any) -> tuple[int, int]:
    return info.fileno, info.addr


def _refuse_overlaps(path: Path, specs: list[TensorSpec], end: int) -> None:
    position = 0
    for spec in sorted((s for s in specs if s.skip is None), key=lambda s: s.offset):
        if spec.offset < position or spec.offset + spec.nbytes > end:
            where = "that overlap another dataset's" if spec.offset < position else f"past the end at byte {end}"
            raise CorruptInputError(
                f"{path}: dataset {spec.name!r}",
                found=f"values from byte {spec.offset} to {spec.offset + spec.nbytes}, {where}",
                needed="values that lie in the file and belong to one dataset",
                remedy="The file is truncated or damaged: copy or write it again.",
            )
        position = spec.offset + spec.nbytes


def _damaged(where: object, e: Exception) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=f"something that the HDF5 library cannot read ({' '.join(str(e).split())[:200] or type(e).__name__})",
        needed="an intact HDF5 file",
        remedy="The file is truncated, damaged or still being written: copy or write it again.",
    )
