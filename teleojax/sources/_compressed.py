"""Safetensors compressed by gzip or zstd, as a stream or a file: decompressed as it is read, in bounded memory.

A decompressor keeps at most 128 MiB (a zstd window; gzip's has 32 KiB). Before the last values are handed over the rest
is read: the checksum at the end of compressed data must be right, and nothing may follow the last tensor.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources._complex import without_moduli
from teleojax.sources._index import TensorSpec
from teleojax.sources._quantised import undecoded
from teleojax.sources._safetensors import SafetensorsStream, WholeStream
from teleojax.sources._storage import ByteStream

GZIP = re.compile(rb"\x1f\x8b\x08", re.DOTALL)
ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)  # a frame, or one to be skipped (pzstd's)
HEAD_BYTES = 9  # the length of a safetensors header and the brace that follows it
NO_MODULI = "its modulus is measured of what can be read twice: give the path of the file, not compressed"
NOT_DECODED = "not dequantised from a stream, which passes once: give the path of the file, not compressed"
WINDOW_BYTES = 1 << 27  # of zstd: its own default limit, which only --ultra --long=28 and more goes past


class CompressedSource:
    """The tensors of one compressed safetensors file, which is decompressed anew, from the start, for each pass.

    Raises MissingExtraError for zstd without `zstandard`, InputError when the file cannot be opened or holds something
    else, CorruptInputError when header or compression are damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.files = path, (path,)
        stream = open_stream(self._file(), str(path), close=True)
        self.name, self.specs, self.storages = path.name, stream.specs, stream.storages
        self._end = stream.end

    def open(self, storage: str) -> WholeStream:
        """The decompressed bytes, forward only. Raises InputError when the file is gone."""
        file = self._file()
        try:
            return _CheckedStream(decompressed(file, storage), storage, 0, self._end, self.specs, close=True)
        except BaseException:
            file.close()
            raise

    def _file(self) -> ByteStream:
        try:
            return self._path.open("rb")
        except OSError as e:
            raise InputError(
                self._path,
                found=e.strerror or str(e),
                needed="a readable file",
                remedy="Check the path and its permissions.",
            ) from e


class _CompressedStream(SafetensorsStream):
    """A stream of which nothing may follow the last tensor."""

    def __init__(self, file: ByteStream, name: str, *, close: bool) -> None:
        super().__init__(file, name, close=close)
        if not self.specs:  # nothing will be read, so that a damaged header would not be noticed
            _require_end(file, name, self.end)

    def _begin(self, storage: str) -> WholeStream:
        return _CheckedStream(self._file, storage, self._position, self.end, self.specs, close=self._close)


class _CheckedStream(WholeStream):
    def __init__(
        self, file: ByteStream, name: str, position: int, end: int, specs: Iterable[TensorSpec], *, close: bool
    ) -> None:
        super().__init__(file, name, position, end, close)
        self._last = max((s.offset + s.nbytes for s in specs if s.skip is None), default=end)
        self._checked = False

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """The bytes; those of the last tensor that is measured once all is read, or an error as if there were none."""
        before = self.position
        out = super().window(start, stop, buffer)
        if self.position >= self._last and not self._checked:
            try:
                super().window(self._end, self._end, np.empty(0, np.uint8))
                _require_end(self._file, self._name, self._end)
            except InputError:
                self.position = before
                raise
            self._checked = True
        return out


def _require_end(file: ByteStream, name: str, end: int) -> None:
    try:
        more = file.read(1)
    except Exception as e:  # of the decompressor: the checksum, above all
        raise CorruptInputError(
            name,
            found=f"an error at its end ({str(e) or type(e).__name__})",
            needed="compressed data with the right checksum",
            remedy="Some tensor is damaged, nobody knows which: make or fetch it again.",
        ) from e
    if more:
        raise CorruptInputError(
            name,
            found="bytes after the last tensor",
            needed=f"the end after {end} bytes",
            remedy="The header does not cover the data: make or fetch it again.",
        )


def is_compressed(head: bytes, _: Path) -> bool:
    """Whether a file begins as gzip and zstd data do."""
    return (GZIP.match(head) or ZSTD.match(head)) is not None


def open_stream(file: ByteStream, name: str, *, close: bool = False) -> SafetensorsStream:
    """A safetensors stream, plain or compressed, as a source. `close` hands the file over, also when this raises.

    Raises what SafetensorsStream and `decompressed` raise.
    """
    try:
        stream = decompressed(file, name)
        kind = _CompressedStream if isinstance(stream, _Inside) else SafetensorsStream
        source = kind(stream, name, close=close)
        source.specs = without_moduli(undecoded(source.specs, NOT_DECODED), NO_MODULI)
        return source
    except BaseException:
        if close:
            file.close()
        raise


def decompressed(file: ByteStream, where: object) -> ByteStream:
    """The bytes of a stream, decompressed if they are compressed safetensors.

    Raises MissingExtraError for zstd without `zstandard`, InputError for compressed data of another kind or a stream
    that cannot be read.
    """
    plain = _Replayed(file, where, HEAD_BYTES)
    if GZIP.match(plain.head) and plain.head[8:] != b"{":  # a header of that length is as good
        reader, tool = gzip.GzipFile(fileobj=cast(Any, plain)), "gzip"
    elif ZSTD.match(plain.head):
        try:
            zstandard = import_module("zstandard")
        except ImportError as e:
            raise MissingExtraError(where, package="zstandard", extra="zstd") from e
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        reader, tool = decompressor.stream_reader(plain, read_across_frames=True), "zstd"
    else:
        return plain
    inside = _Inside(_Decompressor(reader, file), where, HEAD_BYTES)
    if len(inside.head) == HEAD_BYTES and inside.head[8:] != b"{":
        raise InputError(
            where,
            found=f"compressed data that begin with {inside.head[:8]!r}",
            needed="safetensors, the one format that is read compressed",
            remedy=f"Decompress it: {tool} -d PATH, and give what comes out.",
        )
    return inside


class _Replayed:
    """A stream whose first bytes have been looked at."""

    def __init__(self, file: ByteStream, where: object, n: int) -> None:
        self._file, self.head = file, b""
        try:
            while len(self.head) < n and (piece := file.read(n - len(self.head))):
                self.head += piece
        except Exception as e:  # whatever a pipe or a decompressor raises
            raise InputError(
                where,
                found=f"an error after {len(self.head)} bytes ({str(e) or type(e).__name__})",
                needed="a readable safetensors header",
                remedy="Check the file or the command that feeds the stream.",
            ) from e
        self._left = self.head

    def read(self, n: int, /) -> bytes | None:
        if not self._left:
            return self._file.read(n)
        piece, self._left = self._left[:n], self._left[n:]
        return piece

    def readinto(self, buffer: Any, /) -> int | None:
        if not self._left:
            return self._file.readinto(buffer)
        view = memoryview(buffer).cast("B")
        n = min(len(view), len(self._left))
        view[:n], self._left = self._left[:n], self._left[n:]
        return n

    def close(self) -> None:
        self._file.close()


class _Inside(_Replayed):
    """What has been decompressed."""


class _Decompressor:
    """A decompressor as a stream that closes the file it reads."""

    def __init__(self, reader: Any, file: ByteStream) -> None:
        self._reader, self._file = reader, file

    def read(self, n: int, /) -> bytes:
        return self._reader.read(n)

    def readinto(self, buffer: Any, /) -> int:
        return self._reader.readinto(buffer)

    def close(self) -> None:
        self._file.close()
