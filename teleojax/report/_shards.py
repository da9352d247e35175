"""A sharded safetensors directory that appears whole or not at all, its tensors filled piece by piece, in any order.

Everything is written to a hidden directory beside the final one, flushed to disk, and renamed. Layout, names and index
are those of the Hugging Face hub, so that whatever reads a sharded checkpoint reads this.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teleojax._errors import OutputError, UsageError
from teleojax.sources._safetensors import DTYPES
from teleojax.stats._bithist import float_dtype

HEADER_ALIGNMENT = 64  # of the first value in a file: devices that read in place want it
SHARD_BYTES = 5 * 10**9  # the hub's usual shard
INDEX = "model.safetensors.index.json"
FORMAT_NAMES = {name: code for code, (name, _) in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written: `dtype` is its NumPy or ml_dtypes name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * float_dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name, its header with the length before it, and where in the file each tensor begins."""

    file: str
    header: bytes
    tensors: tuple[OutputTensor, ...]
    offsets: Mapping[str, int]
    size: int


def plan_shards(
    tensors: Iterable[OutputTensor], *, shard_bytes: int = SHARD_BYTES, metadata: Mapping[str, str] | None = None
) -> tuple[Shard, ...]:
    """Files of at most `shard_bytes` of values, a larger tensor in one of its own, in the order of the tensors.

    Within a file wider types come first, so that every value is aligned to its size.
    """
    groups: list[list[OutputTensor]] = []
    held = 0
    for tensor in tensors:
        if not groups or held + tensor.nbytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += tensor.nbytes
    return tuple(
        _shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", g, metadata) for i, g in enumerate(groups, 1)
    )


def _shard(file: str, tensors: Sequence[OutputTensor], metadata: Mapping[str, str] | None) -> Shard:
    ordered = tuple(sorted(tensors, key=lambda t: -float_dtype(t.dtype).itemsize))
    ends = np.cumsum([0, *(t.nbytes for t in ordered)]).tolist()
    table: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    for tensor, begin, end in zip(ordered, ends[:-1], ends[1:], strict=True):
        dtype, shape = FORMAT_NAMES[tensor.dtype], list(tensor.shape)
        table[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    start = 8 + len(text)
    offsets = {tensor.name: start + begin for tensor, begin in zip(ordered, ends[:-1], strict=True)}
    return Shard(file, struct.pack("<Q", len(text)) + text, ordered, offsets, start + ends[-1])


def index_text(shards: Sequence[Shard]) -> str:
    """The index of the directory, as the hub's own tools write it."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


class ShardWriter:
    """Files being filled; a file is opened at its first piece and is on the disk after its last. For any threads."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder = folder
        self._home = {tensor.name: shard for shard in shards for tensor in shard.tensors}
        self._left = {s.file: sum(t.nbytes for t in s.tensors) for s in shards}
        self._open: dict[str, int] = {}
        self._reserved: set[str] = set()
        self._lock = threading.Lock()

    def write(self, name: str, offset: int, values: np.ndarray) -> None:
        """Bytes of a tensor from byte `offset` of it on. Raises OSError."""
        shard = self._home[name]
        _write_all(self._descriptor(shard), values.data, shard.offsets[name] + offset)
        self._account(shard, len(values))

    def write_transposed(self, name: str, offset: int, values: np.ndarray) -> None:
        """Bytes of a tensor whose values come in Fortran order, from byte `offset` of that order on. Raises OSError."""
        shard = self._home[name]
        descriptor = self._descriptor(shard)
        tensor = next(t for t in shard.tensors if t.name == name)
        itemsize = float_dtype(tensor.dtype).itemsize
        with self._lock:
            if name not in self._reserved and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, shard.offsets[name], tensor.nbytes)  # a full disk kills who writes a map
                self._reserved.add(name)
        path, kind = self._folder / shard.file, np.dtype(f"u{itemsize}")
        mapped = np.memmap(path, kind, "r+", offset=shard.offsets[name], shape=tensor.shape)
        first = offset // itemsize
        mapped.T.flat[first : first + len(values) // itemsize] = values.view(kind)
        self._account(shard, len(values))

    def _descriptor(self, shard: Shard) -> int:
        with self._lock:
            if shard.file not in self._open:
                descriptor = os.open(self._folder / shard.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                self._open[shard.file] = descriptor
                os.ftruncate(descriptor, shard.size)
                _write_all(descriptor, memoryview(shard.header), 0)
            return self._open[shard.file]

    def _account(self, shard: Shard, n_bytes: int) -> None:
        with self._lock:
            self._left[shard.file] -= n_bytes
            if self._left[shard.file]:
                return
            descriptor = self._open.pop(shard.file)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of files that are not complete."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    @property
    def is_complete(self) -> bool:
        """Whether every byte of every tensor has been written."""
        return not any(self._left.values())


@contextmanager
def sharded_output(out: Path, shards: Sequence[Shard], *, force: bool = False) -> Iterator[ShardWriter]:
    """A writer for the shards of a directory that exists, complete and flushed, after the block ends without an error.

    However it ends otherwise there is no new directory, and none of the temporary one unless the process was killed: it
    is named `.OUT.` and some letters. With `force` an earlier directory is replaced by the new one at the end.
    Raises OutputError when there is too little room or writing fails, UsageError as `refuse_output`.
    """
    out = out.resolve()
    refuse_output(out, force=force)
    needed = sum(shard.size for shard in shards)
    try:
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise _not_written(out, f"{free} bytes free", needed)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as e:
        raise _not_written(out, e.strerror or str(e), needed) from e
    writer = ShardWriter(temporary, shards)
    try:
        yield writer
        if not writer.is_complete:
            raise OSError("tensors that were not written in full")
        index = temporary / INDEX
        index.write_text(index_text(shards), encoding="utf-8")
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        _flush(index)
        _flush_folder(temporary)
        _rename(temporary, out)
        _flush_folder(out.parent)
    except OSError as e:
        raise _not_written(out, e.strerror or str(e), needed) from e
    finally:
        writer.close()
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_output(out: Path, *, force: bool, sources: Iterable[str] = ()) -> None:
    """Refuse, before anything is read, an output directory that cannot be made or would replace what it should not.

    Raises UsageError for a file, a directory that is not empty (unless `force`), one that holds one of the `sources`
    (paths) whatever `force` says, and one without a directory to be in.
    """
    out = out.resolve()
    remedy = "Choose another directory for the output."
    if not out.parent.is_dir():
        raise UsageError(out, found=f"no directory {str(out.parent)!r}", needed="a place for it", remedy=remedy)
    if out.exists() and not out.is_dir():
        raise UsageError(out, found="a file", needed="a directory, or nothing yet", remedy=remedy)
    for source in sources:
        if out in Path(source).resolve().parents:
            raise UsageError(out, found="the parameters themselves in it", needed="another directory", remedy=remedy)
    if not force and out.exists() and any(out.iterdir()):
        needed = "an empty directory, or nothing yet"
        raise UsageError(
            out,
            found="a directory that is not empty",
            needed=needed,
            remedy=f"{remedy[:-1]}, or force its replacement.",
        )


def _rename(temporary: Path, out: Path) -> None:
    """Put the directory in its place; an earlier one that is not empty goes first, and comes back on failure."""
    if not (out.exists() and any(out.iterdir())):
        temporary.rename(out)
        return
    earlier = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    out.rename(earlier)
    try:
        temporary.rename(out)
    except OSError:
        earlier.rename(out)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _write_all(descriptor: int, view: memoryview, position: int) -> None:
    while len(view):
        n = os.pwrite(descriptor, view, position)
        if hasattr(os, "posix_fadvise"):  # on its way to the disk while later values are computed
            os.posix_fadvise(descriptor, position, n, os.POSIX_FADV_DONTNEED)
        view, position = view[n:], position + n


def _flush_folder(path: Path) -> None:
    """Flush the names in a directory, where the file system lets directories be flushed."""
    with suppress(OSError):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(out: Path, found: str, n_bytes: int) -> OutputError:
    return OutputError(
        out,
        found=found,
        needed=f"room for {n_bytes} bytes that can be written",
        remedy="Nothing was left there: free some space, or choose another output directory.",
    )
