"""The journal of a run: the statistics of each tensor as soon as it is finished, so that nothing is read twice.

    teleojax journal 1\n         magic
    record*                      as in a statistics file (see stats/_codec.py)

The first record says which checkpoint and options they are of, each other one holds a tensor. Records are appended and
flushed to disk; a last one that is torn, by a crash or a full disk, is cut off and its tensor read again. Of several
processes each writes a file of its own: FILE, FILE.1, FILE.2, ...; all of them are read.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, OutputError, UsageError
from teleojax.sources import Source
from teleojax.sources._config import config_digests
from teleojax.sources._index import files_of
from teleojax.stats import TensorStats
from teleojax.stats._codec import each_record, pack, record, unpack

MAGIC = b"teleojax journal 1\n"
FLUSH_SECONDS = 0.5  # between flushes to disk: a process that is killed loses nothing, a machine so much at most


class Journal:
    """The finished tensors of earlier runs, in `finished`, and the file that this process adds its own to.

    `options` are those that the statistics depend on. Raises UsageError when the files are of another checkpoint, of
    one that has changed since, or of other options; CorruptInputError when they are no journal; OutputError when they
    cannot be written.
    """

    def __init__(self, path: str | Path, source: Source, options: dict[str, Any], *, process: int = 0) -> None:
        self.path = Path(path)
        self._run = {"kind": "run", "checkpoint": identity(source), "options": options}
        self._own = self.path if process == 0 else Path(f"{self.path}.{process}")
        self._end = 0  # of the last whole record of the own file
        self._flushed = time.monotonic()
        self._file: Any = None
        self.finished: dict[str, TensorStats] = {}
        for file in self._files():
            end = self._load(file)
            if file == self._own:
                self._end = end

    def _files(self) -> list[Path]:
        mine = re.compile(re.escape(self.path.name) + r"(\.[0-9]+)?")
        folder = self.path.parent
        return sorted(p for p in (folder.iterdir() if folder.is_dir() else ()) if mine.fullmatch(p.name))

    def _load(self, file: Path) -> int:
        """Read one file; where its last whole record ends."""
        try:
            raw = memoryview(file.read_bytes())
        except OSError as e:
            raise UsageError(
                file, found=e.strerror or str(e), needed="a journal that can be read", remedy="Choose another file."
            ) from e
        if bytes(raw[: len(MAGIC)]) != MAGIC[: len(raw)]:
            raise CorruptInputError(
                file,
                found=f"a file that begins with {bytes(raw[: len(MAGIC)])!r}",
                needed="the journal of an earlier run, or no file",
                remedy="Choose another file for --resume.",
            )
        end = 0
        for number, (stop, payload) in enumerate(each_record(raw, len(MAGIC))):
            header, stats = unpack(payload, str(file))
            if number == 0:
                self._refuse_another(header, file)
            elif stats is not None:
                self.finished[str(header.get("name"))] = stats
            end = stop
        return end

    def _refuse_another(self, run: dict[str, Any], file: Path) -> None:
        then, now, options = run.get("checkpoint"), self._run["checkpoint"], run.get("options")
        if not isinstance(then, dict) or not isinstance(options, dict):
            raise CorruptInputError(
                file,
                found="a first record that does not say which run it is of",
                needed="the journal of an earlier run, or no file",
                remedy="Choose another file for --resume.",
            )
        if options != self._run["options"]:
            raise UsageError(
                file,
                found=f"a run with {_listed(options)}",
                needed=f"one with {_listed(self._run['options'])}",
                remedy="Give the same options, or another file for --resume.",
            )
        if then == now:
            return
        kind = next((k for k in ("files", "beside") if then.get(k) != now[k]), None)
        what = "other tensors" if kind is None else f"another {_changed(then.get(kind), now[kind])}"
        raise UsageError(
            file,
            found=f"a run on {what} than there is now (size, time of change, header or configuration differ)",
            needed="the checkpoint that the run began with",
            remedy=f"If the change is meant, remove {file} and begin again; else restore the checkpoint.",
        )

    def __enter__(self) -> Journal:
        try:
            self._file = self._own.open("r+b" if self._end else "wb")
            self._file.truncate(self._end)
            self._file.seek(self._end)
            if not self._end:
                self._write(MAGIC + record(pack(self._run)))
                self._flush()
        except OSError as e:
            if self._file is not None:
                self._file.close()
            raise self._error(e) from e
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
        except OSError as e:
            raise self._error(e) from e
        finally:
            self._file.close()

    def add(self, name: str, stats: TensorStats) -> None:
        """Append a finished tensor."""
        try:
            self._write(record(pack({"kind": "tensor", "name": name}, stats)))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._flush()
        except OSError as e:
            raise self._error(e) from e

    def _write(self, raw: bytes) -> None:
        """All of it, or none: a record that does not fit is taken back."""
        view = memoryview(raw)
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError:
            os.ftruncate(self._file.fileno(), self._end)
            raise
        self._end += len(raw)

    def _flush(self) -> None:
        os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def _error(self, e: OSError) -> OutputError:
        return OutputError(
            self._own,
            found=e.strerror or str(e),
            needed="a place where the journal can be written",
            remedy="Make room there and run the same command again: finished tensors are not read again.",
        )


def identity(source: Source) -> dict[str, Any]:
    """What tells a checkpoint from another, and from itself after a change: its files' names, sizes and times of
    change, a digest of what their headers say (and rules make of it), and of the configurations beside them.

    Raises UsageError for a source without files.
    """
    found = [[p.name, (status := p.stat()).st_size, status.st_mtime_ns] for p in files_of(source)]
    if not found:
        raise UsageError(
            "resume", found=f"{source.name}, which is read once", needed="a checkpoint in files",
            remedy="Save it to a file first, or leave --resume out.",
        )  # fmt: skip
    digest = hashlib.sha256()
    for spec in source.specs:
        described = {k: v for k, v in asdict(spec).items() if k != "storage"}
        digest.update(repr(described).encode())
    return {"files": found, "header": digest.hexdigest(), "beside": config_digests(source)}


def _changed(then: Any, now: list[list[Any]]) -> str:
    """The name of the first entry that was not there, or is not any more."""
    before = [e for e in then if isinstance(e, list) and e] if isinstance(then, list) else []
    found = [e for e in now if e not in before] or [e for e in before if e not in now] or now
    return str(found[0][0])


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())
