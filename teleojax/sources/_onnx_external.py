"""Values of an ONNX tensor in a file beside the model: which bytes of which file, and only of one in its directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from teleojax._errors import CorruptInputError, InputError
from teleojax.sources._onnx_scan import text

MAX_LOCATION = 4096  # characters of a path


def external_extent(
    model: Path, where: str, entries: Iterable[Any], nbytes: int, sizes: dict[Path, int]
) -> tuple[Path, int]:
    """The file and the offset of a tensor's `nbytes` bytes. `sizes` keeps those of the files found so far.

    Links are followed, but not out of the directory of the model, or of the file that it is a link to.
    Raises CorruptInputError for what leads out of it or past the end, InputError for a missing file.
    """
    table = {text(e.key): text(e.value) for e in entries}
    location = table.get("location", "")
    path = _inside(model, where, location)
    if path not in sizes:
        try:
            if not path.is_file():
                raise FileNotFoundError(2, "no such file")
            sizes[path] = path.stat().st_size
        except OSError as e:
            raise InputError(
                where, found=f"{e.strerror or e}: {location!r}", needed="the file that holds its values",
                remedy=f"Put it beside {model.name}.",
            ) from e  # fmt: skip
    offset, length = _number(where, table, "offset", 0), _number(where, table, "length", nbytes)
    if length != nbytes:
        raise _damaged(where, f"{length} bytes of external data", f"{nbytes}, by its type and shape")
    if offset + nbytes > sizes[path]:
        found = f"bytes {offset} to {offset + nbytes} of {location!r}, which has {sizes[path]}"
        raise _damaged(where, found, "bytes that are there")
    return path, offset


def _inside(model: Path, where: str, location: str) -> Path:
    windows = PureWindowsPath(location)  # splits at both kinds of slash, and knows drives
    named = bool(windows.parts) and "\0" not in location and len(location) <= MAX_LOCATION
    if not named or windows.anchor or ".." in windows.parts:
        raise _damaged(where, f"external data in {location[:120]!r}", "a file beside or below the model")
    path = model.parent / location
    try:
        real, homes = path.resolve(), (model.parent.resolve(), model.resolve().parent)
    except (OSError, RuntimeError) as e:  # a loop of links
        raise _damaged(where, f"external data in {location!r} ({e})", "a file beside or below the model") from e
    if not any(real.is_relative_to(home) for home in homes):
        raise _damaged(where, f"external data in {location!r}, a link out of the directory", "a file beside the model")
    return path


def _number(where: str, table: dict[str, str], key: str, default: int) -> int:
    text = table.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise _damaged(where, f"the {key} {text[:40]!r}", "a whole number")
    return int(text)


def _damaged(where: str, found: str, needed: str) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=found,
        needed=needed,
        remedy="Model and data do not belong together, or are damaged: fetch both again.",
    )
