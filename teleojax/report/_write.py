"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from teleojax._errors import UsageError
from teleojax.engine import Measured, dump_statistics


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes to a temporary file beside `path`, flush it to disk, and rename it over `path`.

    A device or a pipe is written to as it is: renamed over, it would be gone. Raises UsageError when the place cannot
    be written; an earlier file there is then untouched.
    """
    path, data = Path(path), content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise UsageError(
            path, found=e.strerror or str(e), needed="a place that can be written", remedy="Choose another output file."
        ) from e


def save_statistics(measured: Measured, path: str | Path) -> None:
    """Write what was measured to a statistics file, whole or not at all; `load_statistics` reads it."""
    write_atomically(path, dump_statistics(measured))


def written_or_returned(path: str | Path | None, text: str) -> str | None:
    """The text where there is no path; else nothing, and the file appears whole or not at all."""
    if path is None:
        return text
    write_atomically(path, text)
    return None
