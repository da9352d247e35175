"""Storages: a memory-mapped file, a forward-only stream, an array in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from teleojax._errors import CorruptInputError, InputError

ALIGNMENT = 64  # of memory that a device reads in place
AHEAD_BYTES = 4 << 20  # a cold file is read into the page cache in pieces of this size
PIECE_BYTES = 1 << 20  # a decompressor makes all of a piece before it copies it
SKIP_BYTES = 1 << 20  # a gap in a stream is read and dropped in pieces of this size


@runtime_checkable
class ByteStream(Protocol):
    """What a stream needs to offer: BinaryIO without seek, tell and descriptor."""

    def read(self, n: int, /) -> bytes | None:
        """At most n bytes, none at the end."""
        ...

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill the front of `buffer`; how many bytes were read, 0 at the end."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class MappedFile:
    """A regular file mapped read-only: windows are views of the page cache, nothing is copied.

    As with any mapped file, the system ends the process (SIGBUS) when the file is cut short while it is being read.
    """

    mapped: bool = True
    size: int | None
    position: int = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        file = None
        try:
            self._file = file = path.open("rb")
            self.size = self._size = file.seek(0, 2)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._size else None
        except OSError as e:
            if file is not None:
                file.close()
            raise InputError(
                path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
            ) from e
        self._bytes = np.frombuffer(self._map, np.uint8) if self._map is not None else np.empty(0, np.uint8)

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and drop this object's hold on the map, which closes when the last view of it goes."""
        self._file.close()
        self._bytes, self._map = np.empty(0, np.uint8), None

    def prepare(self, start: int, stop: int) -> None:
        """Bring bytes [start, stop) into the page cache, by reading them, where they are not there yet.

        Reading is up to twice as fast as the page faults it saves; of a file that is in the cache it costs nothing.
        Does nothing on systems that cannot say what is in the cache.
        """
        scratch = [bytearray(1)]
        for offset in range(start, stop, AHEAD_BYTES):
            try:
                os.preadv(self._file.fileno(), scratch, offset, os.RWF_NOWAIT)
            except BlockingIOError:
                os.pread(self._file.fileno(), min(AHEAD_BYTES, stop - offset), offset)
            except (AttributeError, OSError):
                return

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:  # noqa: ARG002
        """A view of bytes [start, stop)."""
        if stop > self._size:
            raise CorruptInputError(
                self.path,
                found=f"{self.size} bytes",
                needed=f"{stop} bytes",
                remedy="The file is truncated: copy or download it again.",
            )
        return self._bytes[start:stop]


class Stream:
    """A forward-only stream of bytes (a pipe, a compressed archive member): never seeks, holds nothing back."""

    mapped: bool = False
    size: int | None = None

    def __init__(self, file: ByteStream, name: str, position: int) -> None:
        self._file, self._name = file, name
        self.position = position

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the underlying file to whoever opened it."""

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: a stream is read when its window is."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Read bytes [start, stop) into `buffer`; what lies before the present position is left as it was."""
        if buffer is None:
            raise TypeError("a stream needs a buffer to read into")
        scratch = memoryview(bytearray(min(SKIP_BYTES, max(0, start - self.position))))
        while self.position < start:
            self._fill(scratch[: min(len(scratch), start - self.position)])
        out = buffer[: stop - start]
        if stop > self.position:
            self._fill(out.data[self.position - start :])
        return out

    def _fill(self, view: memoryview) -> None:
        want = self.position + len(view)
        while len(view):
            try:
                got = self._file.readinto(view[:PIECE_BYTES])
            except Exception as e:  # a decompressor raises its own kinds (zlib.error, BadZipFile, OSError)
                raise CorruptInputError(
                    self._name,
                    found=f"an error after {self.position} bytes ({str(e) or type(e).__name__})",
                    needed=f"at least {want} bytes",
                    remedy="The stream is damaged: make or fetch it again.",
                ) from e
            if not got:
                raise CorruptInputError(
                    self._name,
                    found=f"the end after {self.position} bytes",
                    needed=f"at least {want} bytes",
                    remedy="The stream was cut short: run the command that feeds it again.",
                )
            self.position += got
            view = view[got:]


class Memory:
    """The bytes of an array that is already in memory.

    Mapped where its address is aligned; elsewhere (as NumPy allocates large arrays) windows are copied to aligned
    buffers, which a device that needs alignment would do itself, more slowly.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._bytes = array.reshape(-1, order="A").view(np.uint8)
        self.size: int | None = self._bytes.size
        self.mapped = self._bytes.ctypes.data % ALIGNMENT == 0
        self.position = self._bytes.size

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: the bytes are there."""

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop): a view, or a copy in `buffer`."""
        view = self._bytes[start:stop]
        if self.mapped or buffer is None:
            return view
        np.copyto(buffer[: stop - start], view)
        return buffer[: stop - start]
