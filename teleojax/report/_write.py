"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from teleojax._errors import UsageError


def write_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a temporary file beside `path`, flush it to disk, and rename it over `path`.

    Raises UsageError when the place cannot be written; an earlier file there is then untouched.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(text)
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
