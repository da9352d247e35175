"""Zarr 2 and 3: an array, or every array of a group, in a directory or a zip archive, read by TensorStore.

TensorStore rather than the zarr package: it knows bfloat16 and float8, reads slabs in bounded memory (`_tensorstore`
says how bounded) and serves Orbax too. Groups are walked here: a node is a directory with `zarr.json`, `.zarray` or
`.zgroup` in it. A chunk that is not there stands for the fill value, as the format has it.
Format: https://zarr-specs.readthedocs.io
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources._formats import zip_members
from teleojax.sources._index import COMPLEX, FLOAT_DTYPES, TensorSpec, natural_key, skip_reason
from teleojax.sources._safetensors import load_json
from teleojax.sources._tensorstore import ArrayLayout, TensorStoreStorage, array_layouts, reading_context

NODES = ("zarr.json", ".zarray", ".zgroup")
MAX_DEPTH = 64  # of groups in groups
MAX_NODES = 1_000_000
MAX_RANK = 64  # NumPy's limit
MAX_JSON_BYTES = 16 << 20  # of the metadata of one node, attributes included
KINDS = {"b": "bool", "i": "int", "u": "uint", "c": "complex", "m": "timedelta", "M": "datetime", "O": "object"}
TYPE2 = re.compile(r"[<>|=]?([a-zA-Z])([0-9]*)(\[[a-z]+\])?")  # of version 2: byte order, kind, bytes a value, unit


class ZarrSource:
    """The arrays of a Zarr directory or zip archive, each a storage of its own, named by their paths: "encoder/w".

    An array at the root is named after the file. Types that are no floating-point numbers are listed as skipped. An
    array that TensorStore cannot open is listed all the same, of type "unknown", and fails alone when it is opened.
    Raises MissingExtraError without TensorStore, InputError when it may not be read, CorruptInputError when metadata
    are damaged, nested more than MAX_DEPTH deep or of more than MAX_NODES nodes.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        try:
            import tensorstore  # noqa: F401
        except ImportError as e:
            raise MissingExtraError(path, package="tensorstore", extra="zarr") from e
        self._context = reading_context(path)
        self.name = name or path.name
        store = _Directory(path) if path.is_dir() else _Archive(path)
        found = list(_arrays(store))
        types = [_type(metadata) for _, _, metadata in found]
        asked = [spec for (_, spec, _), (_, reason) in zip(found, types, strict=True) if reason is None]
        layouts = iter(array_layouts(asked, path, self._context))
        self._arrays = {f"{path}: array {node or '/'!r}": spec for node, spec, _ in found}
        self.specs = tuple(
            _spec(node or Path(self.name).stem, storage, metadata, dtype, next(layouts) if reason is None else reason)
            for storage, (node, _, metadata), (dtype, reason) in zip(self._arrays, found, types, strict=True)
        )
        self.storages = tuple(self._arrays)
        self.files = tuple(dict.fromkeys(store.file(node) for node, _, _ in found))

    def open(self, storage: str) -> TensorStoreStorage:
        """One array. Raises InputError, CorruptInputError: it cannot be read."""
        return TensorStoreStorage(self._arrays[storage], storage, self._context)


def is_node(path: Path, _: Sequence[Path] = ()) -> bool:
    """Whether a directory is a Zarr array or group."""
    return any((path / name).is_file() for name in NODES)


def is_archive(head: bytes, path: Path) -> bool:
    """Whether a file is a zip archive with a Zarr array or group at its root."""
    return not zip_members(head, path).isdisjoint(NODES)


class _Directory:
    """Nodes as directories. An archive answers the same questions."""

    def __init__(self, path: Path) -> None:
        self.where = path
        self._root = path.resolve()  # TensorStore takes absolute paths without ".."
        self._seen = {self._root}

    def read(self, key: str) -> bytes | None:
        """At most MAX_JSON_BYTES + 1 bytes of a file, None if there is none."""
        try:
            with (self._root / key).open("rb") as f:
                return f.read(MAX_JSON_BYTES + 1)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def inside(self, node: str) -> list[str]:
        """Names of what may be nodes in a group."""
        names = []
        for path in (self._root / node).iterdir():
            if not path.name.startswith(".") and path.is_dir() and (target := path.resolve()) not in self._seen:
                self._seen.add(target)  # links may go in circles
                names.append(path.name)
        return names

    def kvstore(self, node: str) -> dict[str, Any]:
        """The node as TensorStore calls it."""
        return {"driver": "file", "path": f"{self._root / node}/"}

    def file(self, node: str) -> Path:
        """The file that tells whether a node is still the same."""
        return next(path for name in NODES if (path := self._root / node / name).is_file())


class _Archive:
    def __init__(self, path: Path) -> None:
        self.where = path
        try:
            self._archive = zipfile.ZipFile(path)
        except OSError as e:
            raise _unreadable(path, e) from e
        except Exception as e:  # zipfile lets struct, Unicode and value errors of a damaged directory through
            raise _damaged(path, f"a zip archive that cannot be read ({str(e) or type(e).__name__})") from e
        self._members = frozenset(self._archive.namelist())
        self._children: dict[str, dict[str, None]] = {}
        for key in self._archive.namelist():
            node, _, name = key.rpartition("/")
            if name in NODES and node:
                parent, _, child = node.rpartition("/")
                self._children.setdefault(parent, {})[child] = None

    def read(self, key: str) -> bytes | None:
        if key not in self._members:
            return None
        with self._archive.open(key) as f:
            return f.read(MAX_JSON_BYTES + 1)

    def inside(self, node: str) -> list[str]:
        return list(self._children.get(node, ()))

    def kvstore(self, node: str) -> dict[str, Any]:
        file = {"driver": "file", "path": str(self.where.resolve())}
        return {"driver": "zip", "base": file, "path": f"{node}/" * bool(node), "cache_pool": "cache_pool#ocdbt"}

    def file(self, node: str) -> Path:  # noqa: ARG002
        return self.where


def _arrays(store: _Directory | _Archive) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Path, TensorStore spec and metadata of every array, in natural order of the paths."""
    stack, n_nodes = [""], 0
    while stack:
        node = stack.pop()
        n_nodes += 1
        if node.count("/") >= MAX_DEPTH or n_nodes > MAX_NODES:
            raise _damaged(store.where, f"groups nested more than {MAX_DEPTH} deep, or more than {MAX_NODES} nodes")
        prefix = f"{node}/" * bool(node)
        for name in NODES:
            metadata = _metadata(store, prefix + name)
            if metadata is None:
                continue
            if name == ".zarray" or metadata.get("node_type") == "array":
                driver = "zarr" if name == ".zarray" else "zarr3"
                yield node, {"driver": driver, "kvstore": store.kvstore(node)}, metadata
            else:
                stack += [prefix + n for n in sorted(store.inside(node), key=natural_key, reverse=True)]
            break


def _metadata(store: _Directory | _Archive, key: str) -> dict[str, Any] | None:
    where = f"{store.where}: {key}"
    try:
        raw = store.read(key)
    except OSError as e:
        raise _unreadable(where, e) from e
    except Exception as e:  # of zipfile: bad local headers, checksums, encryption, compression
        raise _damaged(where, str(e) or type(e).__name__) from e
    if raw is None:
        return None
    if len(raw) > MAX_JSON_BYTES:
        raise _damaged(where, f"more than {MAX_JSON_BYTES} bytes")
    return load_json(raw, where, "metadata file")


def _type(metadata: Mapping[str, Any]) -> tuple[str, str | None]:
    """The type as far as the metadata name it in plain words, and why it cannot be measured; None: ask TensorStore."""
    kind = metadata.get("data_type", metadata.get("dtype"))
    if isinstance(kind, list):
        return "structured", "structured type"
    if isinstance(kind, dict):
        kind = kind.get("name")
    if not isinstance(kind, str) or kind in (*FLOAT_DTYPES, *COMPLEX):
        return "unknown", None
    if "data_type" in metadata:
        return kind, skip_reason(kind, ())
    match = TYPE2.fullmatch(kind)
    if match is None or match[1] == "f":
        return "unknown", None
    if match[1] in KINDS:
        dtype = KINDS[match[1]] + (str(8 * int(match[2] or 0)) if match[1] in "iuc" else "")
        return ("unknown", None) if dtype in COMPLEX else (dtype, skip_reason(dtype, ()))
    dtype = "opaque" if match[1] == "V" else "string"
    return dtype, f"{dtype} type"


def _spec(
    name: str, storage: str, metadata: Mapping[str, Any], dtype: str, found: ArrayLayout | Exception | str
) -> TensorSpec:
    if isinstance(found, ArrayLayout):
        skip = skip_reason(found.dtype, found.shape)
        return TensorSpec(name, found.shape, found.dtype, storage, 0, found.nbytes, skip)
    if isinstance(found, Exception):  # of a byte, so that it is opened, which says what is wrong
        return TensorSpec(name, (), "unknown", storage, 0, 1)
    shape = metadata.get("shape")
    sizes = tuple(n for n in shape[:MAX_RANK] if type(n) is int and 0 <= n < 2**64) if isinstance(shape, list) else ()
    return TensorSpec(name, sizes, dtype[:100], storage, 0, 0, found)


def _unreadable(where: object, e: OSError) -> InputError:
    return InputError(
        where, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
    )


def _damaged(where: object, found: str) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=found,
        needed="Zarr metadata, version 2 or 3",
        remedy="The copy is incomplete or damaged: copy or write it again.",
    )
