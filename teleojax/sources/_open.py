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
from teleojax.sources._compressed import open_stream
from teleojax.sources._formats import FORMATS, HEAD_BYTES, KNOWN, format_of, reader
from teleojax.sources._index import Source, Storage, TensorSpec, files_of, natural_key
from teleojax.sources._models import is_foreign, unfolded
from teleojax.sources._pytree import PytreeSource, is_array
from teleojax.sources._storage import ByteStream

STDIN = "-"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def open_source(target: Any) -> Source:
    """Open `target` as a source, reading headers only.

    `target` is a path, a URL of safetensors ("https://...", "s3://...", "hf://org/name@revision"), "-" for a
    safetensors stream (compressed or not) on standard input, a binary stream of safetensors, a list of paths and
    sources, a source (returned as it is), a pytree of arrays or PyTorch tensors, or a live model (a PyTorch, Keras or
    Flax NNX module, an Equinox module or Linen variables, which are pytrees). A directory is read in the first format
    of the table (`_formats.FORMATS`) that is there: through its `*.safetensors.index.json`, else as its *.safetensors,
    ..., at last as its *.npz, *.npy and *.tflite together. In a list, a tensor name that occurs in several paths is
    prefixed with the file's stem (as much of its path as tells them apart).

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
        return open_stream(cast(ByteStream, target), "stream")
    from jax.tree_util import all_leaves

    if target is None or (all_leaves([target]) and not (is_array(target) or is_foreign(target))):
        raise _nothing(f"a value of type {type(target).__name__}")
    return PytreeSource(unfolded(target))


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
        self.files = tuple(file for source in sources for file in files_of(source))

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
    if URL.match(text):
        return _open_url(text)
    path = Path(text)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_directory(path)
        if stat.S_ISFIFO(mode):
            return open_stream(path.open("rb"), str(path), close=True)
        if not stat.S_ISREG(mode):
            raise InputError(
                path, found="a device or socket", needed=f"a file: {KNOWN}", remedy="Give a path to a file."
            )
        with path.open("rb") as f:
            head = f.read(HEAD_BYTES)
    except FileNotFoundError as e:
        if (inner := reader("_orbax", "open_within")(path)) is not None:
            return inner
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
    return format_of(path, head).open(path)


def _open_url(url: str) -> Source:
    return reader("_hub", "open_hub")(url) if url.startswith("hf://") else reader("_remote", "RemoteSource")(url)


def _open_directory(path: Path) -> Source:
    entries = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))
    name = path.name if path.name not in ("", "..") else path.resolve().name or str(path)
    for known in FORMATS:
        if known.recognises_directory is not None and known.open_directory is not None:
            if known.recognises_directory(path, entries):
                return known.open_directory(path, entries, name)
            continue
        alike = [f for f in FORMATS if f.together] if known.together else [known]
        if files := [p for p in entries if any(f.has_suffix(p) for f in alike) and not p.is_dir()]:
            return MergedSource.of(files, name) if len(files) > 1 else _open_path(files[0])
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
    return open_stream(binary, "stdin")


def _nothing(found: str) -> InputError:
    return InputError(
        "input", found=found, needed=f"a pytree of arrays, or a path to {KNOWN}", remedy="Pass parameters or a path."
    )
