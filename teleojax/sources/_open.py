"""Open whatever the caller has: a path, several, a stream or a pytree. Content decides first, the extension second."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from teleojax._errors import InputError
from teleojax.sources._index import Source, Storage, TensorSpec, natural_key
from teleojax.sources._numpy import NpySource, NpzSource
from teleojax.sources._pytree import PytreeSource, is_array
from teleojax.sources._safetensors import INDEX_SUFFIX, SafetensorsSource, SafetensorsStream
from teleojax.sources._storage import ByteStream
from teleojax.sources._tflite import TfliteSource

STDIN = "-"
KNOWN = "safetensors (a file, a directory, an index, a stream), .npy, .npz or .tflite"
READERS = {
    ".safetensors": lambda p: SafetensorsSource([p]),
    ".npy": NpySource,
    ".npz": NpzSource,
    ".tflite": TfliteSource,
}
CONVERT = "Convert it to safetensors."
FOREIGN = (  # content that is recognised in order to say what it is: (pattern at the start, what it is, remedy)
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page", "The download failed; fetch the file itself."),
    (rb"GGUF", "a GGUF file", CONVERT),
    (rb"\x89HDF\r\n", "an HDF5 file (Keras)", CONVERT),
    (rb"\x80[\x02-\x05][^\x00]", "a Python pickle (an old PyTorch file, say), which teleojax never loads", CONVERT),
    (
        rb"\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ|BZh",
        "a compressed file",
        "Decompress it, or pipe it: zcat FILE | teleojax fit -",
    ),
)


def open_source(target: Any) -> Source:
    """Open `target` as a source, reading headers only.

    `target` is a path, "-" for a safetensors stream on standard input, a binary stream of safetensors, a list of
    paths and sources, a source (returned as it is), or a pytree of arrays. A directory is read through its
    `*.safetensors.index.json`, else as its *.safetensors, else as its *.npz, *.npy and *.tflite together. In a list, a
    tensor name that occurs in several paths is prefixed with the file's stem (as much of its path as tells them apart).

    Raises InputError when a path does not exist, may not be opened or holds no known format, CorruptInputError when a
    file is not what its header says, MissingExtraError when a format needs a package that is not installed.
    """
    if isinstance(target, Source):
        return target
    if isinstance(target, str | os.PathLike):
        return _open_path(target)
    if isinstance(target, list | tuple) and all(isinstance(t, str | os.PathLike | Source) for t in target):
        if not target:
            raise _nothing("an empty list")
        return open_source(target[0]) if len(target) == 1 else MergedSource.of(target)
    if callable(getattr(target, "readinto", None)):
        return SafetensorsStream(cast(ByteStream, target), "stream")
    from jax.tree_util import all_leaves

    if target is None or (all_leaves([target]) and not is_array(target)):
        raise _nothing(f"a value of type {type(target).__name__}")
    return PytreeSource(target)


class MergedSource:
    """Several sources read one after the other. Tensor names that occur in more than one are prefixed by label.

    Raises InputError when names are equal even so.
    """

    def __init__(self, sources: Sequence[Source], labels: Sequence[str], name: str) -> None:
        times = Counter(s.name for source in sources for s in source.specs)
        specs: list[TensorSpec] = []
        self._homes: dict[str, tuple[Source, str]] = {}
        for source, label in zip(sources, labels, strict=True):
            ids: dict[str, str] = {}
            for storage in source.storages:
                ids[storage] = storage if storage not in self._homes else f"{label}:{len(self._homes)}:{storage}"
                self._homes[ids[storage]] = (source, storage)
            for s in source.specs:
                unique = s.name if times[s.name] == 1 else f"{label}/{s.name}"
                specs.append(replace(s, name=unique, storage=ids[s.storage]))
        for unique, n in Counter(s.name for s in specs).items():
            if n > 1:
                raise InputError(
                    name,
                    found=f"{n} tensors named {unique!r}",
                    needed="names that differ",
                    remedy="Rename a file or a tensor.",
                )
        self.name, self.specs, self.storages = name, tuple(specs), tuple(self._homes)

    @classmethod
    def of(cls, targets: Sequence[Any], name: str | None = None) -> MergedSource:
        """Open every target and merge them in the order given."""
        files = [Path(t).resolve() for t in targets if not isinstance(t, Source) and os.fspath(t) != STDIN]
        for file, n in Counter(files).items():
            if n > 1:
                raise InputError(file, found=f"{n} mentions", needed="each path once", remedy="Leave the repeats out.")
        sources = [open_source(t) for t in targets]
        short = [s.name for s in sources]
        return cls(
            sources, _labels(targets, short), name or (", ".join(short) if len(short) < 4 else f"{len(short)} paths")
        )

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """Open a storage of the source that it belongs to."""
        source, inner = self._homes[storage]
        return source.open(inner)


def _labels(targets: Sequence[Any], names: Sequence[str]) -> list[str]:
    """The shortest ends of the paths, without extension, that tell the targets apart."""
    parts: list[tuple[str, ...]] = []
    for target, name in zip(targets, names, strict=True):
        path = Path(name if isinstance(target, Source) or os.fspath(target) == STDIN else target)
        parts.append((*path.parts[:-1], path.name if path.is_dir() else path.stem))
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(p[-depth:]) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [n if c == 1 else f"{n}#{i}" for i, n in enumerate(names) for c in [Counter(names)[n]]]


def _open_path(target: str | os.PathLike[Any]) -> Source:
    text = os.fsdecode(target)
    if text == STDIN:
        return _open_stdin()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise InputError(
            text,
            found="a URL",
            needed=f"a local path: {KNOWN}",
            remedy=f"Download it, or: curl -L '{text}' | teleojax fit -",
        )
    path = Path(text)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_directory(path)
        if stat.S_ISFIFO(mode):
            return SafetensorsStream(path.open("rb"), str(path), close=True)
        if not stat.S_ISREG(mode):
            raise InputError(
                path, found="a device or socket", needed=f"a file: {KNOWN}", remedy="Give a path to a file."
            )
        with path.open("rb") as f:
            head = f.read(64)
    except FileNotFoundError as e:
        raise InputError(
            path, found="no such file or directory", needed=KNOWN, remedy="Check the path; nothing is downloaded."
        ) from e
    except PermissionError as e:
        raise InputError(
            path, found="permission denied", needed="a readable path", remedy="Check its owner and mode: ls -ld PATH"
        ) from e
    except (OSError, ValueError) as e:  # a name too long, a loop of links; a zero byte in the name
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise InputError(repr(text), found=reason, needed="a readable path", remedy="Check the path.") from e
    return _open_file(path, head)


def _open_file(path: Path, head: bytes) -> Source:
    if head.startswith(b"\x93NUMPY"):
        return NpySource(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return NpzSource(path)
    if head[4:8] == b"TFL3":
        return TfliteSource(path)
    if path.name.endswith(INDEX_SUFFIX):
        return SafetensorsSource.from_index(path)
    if head[8:9] == b"{":  # after the length of the header
        return SafetensorsSource([path])
    for pattern, found, remedy in FOREIGN:
        if re.match(pattern, head):
            raise InputError(path, found=found, needed=KNOWN, remedy=remedy)
    if path.suffix.lower() in READERS:  # which says what is wrong with it
        return READERS[path.suffix.lower()](path)
    found = f"content that begins with {head[:8]!r}" if head else "an empty file"
    raise InputError(path, found=found, needed=KNOWN, remedy="Convert it to safetensors, or check the path.")


def _open_directory(path: Path) -> Source:
    entries = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))
    name = path.name if path.name not in ("", "..") else path.resolve().name or str(path)
    indexes = [p for p in entries if p.name.endswith(INDEX_SUFFIX)]
    usual = [p for p in indexes if p.name == f"model{INDEX_SUFFIX}"]
    if len(indexes) == 1 or usual:
        return SafetensorsSource.from_index((usual or indexes)[0], name=name)
    if indexes:
        raise InputError(
            path,
            found=f"{len(indexes)} indexes ({', '.join(p.name for p in indexes[:3])}, ...)",
            needed="one index",
            remedy="Give the path of the index to read.",
        )
    files = [p for p in entries if p.suffix.lower() in READERS and not p.is_dir()]
    if shards := [p for p in files if p.suffix.lower() == ".safetensors"]:
        return SafetensorsSource(shards, name=name)
    if len(files) > 1:
        return MergedSource.of(files, name)
    if files:
        return _open_path(files[0])
    shown = ", ".join([p.name for p in entries[:3]] + ["..."] * (len(entries) > 3))
    raise InputError(
        path,
        found=f"a directory of {len(entries)} entries ({shown})" if entries else "an empty directory",
        needed=f"one that holds {KNOWN}",
        remedy="Give the directory or file that holds the parameters.",
    )


def _open_stdin() -> Source:
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:
        raise InputError(
            "stdin", found="no binary standard input", needed="a safetensors stream", remedy="Pipe one in."
        )
    return SafetensorsStream(binary, "stdin")


def _nothing(found: str) -> InputError:
    return InputError(
        "input", found=found, needed=f"a pytree of arrays, or a path to {KNOWN}", remedy="Pass parameters or a path."
    )
