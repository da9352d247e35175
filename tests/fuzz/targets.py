"""What a reader must do with any bytes at all: read them, or refuse them with a TeleojaxError that says why."""

from __future__ import annotations

import io
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_STORAGES, MOST_TENSORS = 8, 16  # opened and read in one run
READ_BYTES = 1 << 16  # of one tensor
FORBIDDEN = (  # while reading
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pickle.find_class"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Finding(AssertionError):
    """What no input may bring about."""


@dataclass(frozen=True, slots=True)
class Target:
    """One reader. `file` is the name that an input is written under ("" where it is a file of a directory).

    `read(path)` opens and reads; `package` is what that needs installed, `instrument` what else is worth coverage.
    """

    name: str
    file: str
    read: Callable[[Path], None]
    package: str = "numpy"
    instrument: tuple[str, ...] = ()


def read_source(path: Path) -> None:
    """Open a path and read the front of every tensor."""
    from teleojax.sources import open_source

    _read(open_source(path))


def read_stream(path: Path) -> None:
    """The same of a stream that does not seek."""
    from teleojax.sources import open_source

    _read(open_source(_Pipe(path.read_bytes())))


def read_statistics(path: Path) -> None:
    """Load statistics, and merge them with themselves."""
    from teleojax.engine._statsfile import dump_statistics, load_statistics, merge_measured

    measured = load_statistics(path)
    _check_names(measured.specs)
    dump_statistics(merge_measured(measured, measured))


def read_journal(path: Path) -> None:
    """Load the journal of a run over the checkpoint beside it."""
    from teleojax.engine._journal import Journal
    from teleojax.sources import open_source

    _check_names(Journal(path, open_source(path.parent / "m.safetensors"), {}).finished)


class _Pipe(io.RawIOBase):
    def __init__(self, raw: bytes) -> None:
        self._file = io.BytesIO(raw)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)


def _read(source: Any) -> None:
    from teleojax._errors import TeleojaxError
    from teleojax.sources._index import by_storage, numpy_dtype

    _check_names([s.name for s in source.specs])
    sum(s.size for s in source.specs)  # as reports do
    buffer = np.empty(READ_BYTES + 64, np.uint8)
    buffer = buffer[-buffer.ctypes.data % 64 :][:READ_BYTES]
    refused: TeleojaxError | None = None
    for storage, specs in list(by_storage(source.specs).items())[:MOST_STORAGES]:
        try:
            with source.open(storage) as opened:
                for spec in specs[:MOST_TENSORS]:
                    if spec.dtype != "unknown" and spec.size * numpy_dtype(spec.dtype).itemsize != spec.nbytes:
                        raise Finding(f"{spec.nbytes} bytes for {spec.dtype} of shape {spec.shape}")
                    if spec.offset < 0 or spec.nbytes <= 0:
                        raise Finding(f"{spec.nbytes} bytes from byte {spec.offset} on")
                    n = min(spec.nbytes, READ_BYTES)
                    half = spec.offset + n // 2 // 8 * 8
                    for start, stop in ((spec.offset, half), (half, spec.offset + n)):
                        got = opened.window(start, stop, buffer)
                        if got.dtype != np.uint8 or got.shape != (stop - start,):
                            raise Finding(f"{got.shape} {got.dtype} for bytes {start} to {stop}")
                        got.tobytes()  # a view past the end of what is mapped would be felt here
        except TeleojaxError as e:  # one tensor that fails does not keep the others from being read
            refused = e
    if refused is not None:
        raise refused


def _check_names(names: Any) -> None:
    for name in list(names)[:1000]:
        name.encode("utf-8")  # what cannot be encoded cannot be printed


def _targets() -> Iterator[Target]:
    tflite = ("tflite", "flatbuffers")
    yield Target("safetensors", "m.safetensors", read_source)
    yield Target("stream", "m.stream", read_stream)
    yield Target("safetensors_index", "", read_source)
    yield Target("npy", "m.npy", read_source)
    yield Target("npz", "m.npz", read_source)
    yield Target("tflite", "m.tflite", read_source, "tflite", tflite)
    yield Target("torch", "m.pt", read_source, "torch")
    yield Target("gguf", "m.gguf", read_source, "gguf")
    yield Target("onnx", "m.onnx", read_source, "onnx")
    yield Target("hdf5", "m.h5", read_source, "h5py")
    yield Target("keras", "m.keras", read_source, "h5py")
    yield Target("flax", "m.msgpack", read_source, "msgpack")
    yield Target("zarr2", "", read_source, "tensorstore")
    yield Target("zarr3", "", read_source, "tensorstore")
    yield Target("zarr_zip", "m.zarr.zip", read_source, "tensorstore")
    yield Target("orbax", "", read_source, "tensorstore")
    yield Target("orbax_zarr3", "", read_source, "tensorstore")
    yield Target("compressed", "m.safetensors.gz", read_source, "zstandard")
    yield Target("unnamed", "m", read_source)
    yield Target("statistics", "m.stats", read_statistics)
    yield Target("journal", "m.journal", read_journal)


TARGETS = {t.name: t for t in _targets()}


class Runner:
    """Runs inputs of one target in a scratch folder; `whole` is the directory that they are files of, if any."""

    def __init__(self, target: Target, scratch: Path, whole: Path | None = None) -> None:
        from tests.fuzz.corpus import SIDECAR, files_of, measured_file

        self.target, self._folder = target, scratch / target.name
        shutil.rmtree(self._folder, ignore_errors=True)
        if target.file:
            self._folder.mkdir(parents=True)
            measured_file(self._folder)
            (self._folder / "m.bin").write_bytes(SIDECAR)
            self.input = self._folder / target.file
        else:
            assert whole is not None
            shutil.copytree(whole, self._folder)
            self._files = [(p, p.read_bytes()) for p in files_of(self._folder)]
            self.input = self._folder

    def __call__(self, data: bytes) -> bool:
        """Whether the input was read; False where it was refused as it should be. Anything else is raised."""
        from teleojax._errors import TeleojaxError

        path, before = self.input, None
        if self.target.file:
            _write(path, data)
        else:
            path, before = self._files[(data[0] if data else 0) % len(self._files)]
            _write(path, data[1:])
        try:
            with guarded():
                self.target.read(self.input)
        except TeleojaxError as e:
            message = str(e)
            if not message.isprintable() or not e.found or not e.needed or not e.remedy:
                raise Finding(f"an error that cannot be printed on a line: {message!r}") from e
            return False
        finally:
            if before is not None:
                _write(path, before)
        return True


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)


_guard: list[str] | None = None


@contextmanager
def guarded() -> Iterator[None]:
    """Raise a Finding for code that is run and things that are written meanwhile, once `watch` has been called."""
    global _guard
    seen = _guard = []
    try:
        yield
    finally:
        _guard = None
    if seen:
        raise Finding(f"while reading: {seen[0]}")


def watch() -> None:
    """Let the interpreter report what reading does, from now on until the process ends."""
    roots = tuple(
        {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[2], os.__file__[:-6])}
    )

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if _guard is None:
            return
        if event == "exec":  # of a module that is imported late, too, which is a file of an installed package
            file = getattr(args[0], "co_filename", "")
            if not file.startswith("<frozen") and not (
                Path(file).is_absolute() and os.path.realpath(file).startswith(roots)
            ):
                _guard.append(f"exec of {file!r}")
        elif event in FORBIDDEN or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
            _guard.append(f"{event} {str(args)[:200]}")

    sys.addaudithook(hook)


def dictionary(tokens: list[str]) -> bytes:
    """Tokens in libFuzzer's form."""
    return b"".join(b'"%s"\n' % "".join(f"\\x{b:02x}" for b in t.encode("latin-1", "replace")).encode() for t in tokens)


def counters(path: Path) -> np.ndarray:
    """What a run has counted, in a file that outlives it; see COUNTED."""
    if not path.exists():
        path.write_bytes(struct.pack(f"<{len(COUNTED)}d", *[0.0] * len(COUNTED)))
    return np.memmap(path, np.float64, "r+", shape=(len(COUNTED),))


COUNTED = ("executions", "read", "slowest_s", "base_mib", "peak_mib")
