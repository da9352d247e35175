"""The formats that are read, one entry each: how it is recognised and which reader opens it, loaded when it does."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from teleojax._errors import InputError
from teleojax.sources._index import Source
from teleojax.sources._safetensors import INDEX_SUFFIX, MAX_HEADER_BYTES

HEAD_BYTES = 512  # of a file, to recognise it by
TORCH_INDEX = ".bin.index.json"
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # before version 1.6: no archive
ZIP = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True, slots=True)
class Format:
    """One format. Everything here is called with paths that exist; nothing here reads values.

    `name` is shown to users. `recognises(head, path)` decides by content (`head`: the first HEAD_BYTES), or by a name
    that leaves no doubt; a file that no format recognises is opened by the one of its suffix, which says what is wrong.

    In a directory the first format of the table that is there decides: one whose `recognises_directory(path, entries)`
    says so opens it by `open_directory(path, entries, name)`; one without is there where a file has its suffix, and
    all such files are read, with those of the other formats that are `together`. `entries` are in natural order,
    without hidden ones.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes, Path], bool]
    open: Callable[[Path], Source]
    recognises_directory: Callable[[Path, Sequence[Path]], bool] | None = None
    open_directory: Callable[[Path, Sequence[Path], str], Source] | None = None
    together: bool = False

    def has_suffix(self, path: Path) -> bool:
        """Whether the name ends as this format's names do."""
        return path.name.lower().endswith(self.suffixes)


def reader(module: str, name: str) -> Callable[..., Any]:
    """A callable of one of the readers' modules, which is imported by the first call."""
    return lambda *arguments: getattr(import_module(f"teleojax.sources.{module}"), name)(*arguments)


def begins(*magic: bytes, at: int = 0) -> Callable[[bytes, Path], bool]:
    """Recognise by the bytes at one place of the head."""
    return lambda head, _: head.startswith(magic, at)


def zip_members(head: bytes, path: Path) -> frozenset[str]:
    """Names of the members of a zip archive; none of what is not one, or is damaged."""
    if not head.startswith(ZIP):
        return frozenset()
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except Exception:  # zipfile lets struct, Unicode and value errors of a damaged directory through
        return frozenset()


def _is_safetensors(head: bytes, path: Path) -> bool:
    length = int.from_bytes(head[:8], "little")
    return path.name.endswith(INDEX_SUFFIX) or (head[8:9] == b"{" and length <= MAX_HEADER_BYTES)


def _has_safetensors(_: Path, entries: Sequence[Path]) -> bool:
    return any(
        p.name.endswith(INDEX_SUFFIX) or (p.suffix.lower() == ".safetensors" and not p.is_dir()) for p in entries
    )


def is_torch(head: bytes, path: Path) -> bool:
    """Whether a file is PyTorch's: an archive with a description, the kind before that, or an index of shards."""
    if path.name.endswith(TORCH_INDEX) or head.startswith(TORCH_LEGACY):
        return True
    return head.startswith(ZIP) and (
        b"/data.pkl" in head or any(m.endswith("/data.pkl") for m in zip_members(head, path))
    )


def _is_onnx(head: bytes, _: Path) -> bool:
    """A protobuf that begins with a small version of the format and goes on with another field of a model."""
    return len(head) > 2 and head[0] == 8 and 0 < head[1] < 64 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"


FORMATS = (  # the order decides where several recognise a file, and which of several in a directory is read
    Format(
        "safetensors (a file, a directory, an index, a stream)",
        (".safetensors",),
        _is_safetensors,
        reader("_sharded", "open_safetensors"),
        _has_safetensors,
        reader("_sharded", "open_safetensors_directory"),
    ),
    Format(
        "PyTorch (.pt, .pth, .bin, .ckpt)",
        (),  # names that anything may have
        is_torch,
        reader("_sharded", "open_torch"),
        reader("_sharded", "is_torch_directory"),
        reader("_sharded", "open_torch_directory"),
    ),
    Format(".gguf", (".gguf",), begins(b"GGUF"), reader("_gguf", "GgufSource")),
    Format(".onnx", (".onnx",), _is_onnx, reader("_onnx", "OnnxSource")),
    Format(
        "an Orbax checkpoint (a directory)",
        (),
        lambda _, path: path.name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"),
        lambda path: reader("_orbax", "OrbaxSource")(path.parent),
        reader("_orbax", "is_checkpoint"),
        lambda path, *_: reader("_orbax", "OrbaxSource")(path),
    ),
    Format(
        "safetensors compressed by gzip or zstd",
        (".safetensors.gz", ".safetensors.zst"),
        reader("_compressed", "is_compressed"),
        reader("_compressed", "CompressedSource"),
    ),
    Format(
        "a model in the Hugging Face cache",
        (),
        lambda *_: False,
        reader("_hub", "open_cached_model"),
        reader("_hub", "is_cached_model"),
        reader("_hub", "open_cached_model"),
    ),
    Format(".keras", (".keras",), reader("_keras", "is_keras"), reader("_keras", "open_keras")),
    Format("HDF5 (.h5, .hdf5)", (".h5", ".hdf5"), begins(b"\x89HDF\r\n\x1a\n"), reader("_hdf5", "Hdf5Source")),
    Format("Flax (.msgpack)", (".msgpack",), reader("_flax", "is_flax"), reader("_flax", "FlaxSource")),
    Format(
        "Zarr (a directory, .zarr.zip)",
        (".zarr.zip",),
        reader("_zarr", "is_archive"),
        reader("_zarr", "ZarrSource"),
        reader("_zarr", "is_node"),
        lambda path, _, name: reader("_zarr", "ZarrSource")(path, name),
    ),
    Format(".npy", (".npy",), begins(b"\x93NUMPY"), reader("_numpy", "NpySource"), together=True),
    Format(".npz", (".npz",), begins(*ZIP), reader("_numpy", "NpzSource"), together=True),  # after all other archives
    Format(".tflite", (".tflite",), begins(b"TFL3", at=4), reader("_tflite", "TfliteSource"), together=True),
)

CONVERT = "Convert it to safetensors."
FOREIGN = (  # content that is recognised in order to say what it is: (pattern at the start, what it is, remedy)
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page", "The download failed; fetch the file itself."),
    (rb"\x80[\x02-\x05][^\x00]", "a Python pickle (an old PyTorch file, say), which teleojax never loads", CONVERT),
    (
        rb"\xfd7zXZ|BZh",
        "a compressed file",
        "Decompress it, or pipe it: xzcat FILE | teleojax fit -",
    ),
)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


KNOWN = _listed([f.name for f in FORMATS])


def format_of(path: Path, head: bytes) -> Format:
    """The format of a file that begins with `head`: by content, else by suffix. Raises InputError where it has none."""
    for known in FORMATS:
        if known.recognises(head, path):
            return known
    for pattern, found, remedy in FOREIGN:
        if re.match(pattern, head):
            raise InputError(path, found=found, needed=KNOWN, remedy=remedy)
    for known in FORMATS:
        if known.has_suffix(path):
            return known
    found = f"content that begins with {head[:8]!r}" if head else "an empty file"
    raise InputError(path, found=found, needed=KNOWN, remedy="Convert it to safetensors, or check the path.")
