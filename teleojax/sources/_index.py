"""What a source is: tensors with a name, a type and a place, and storages to read their bytes from."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a source: what it is and where its bytes lie. No values are read to make one.

    `dtype` is the NumPy / ml_dtypes name ("float32", "bfloat16", "float8_e4m3fn", "int64", ...).
    `storage` names the storage that holds the values, contiguous in `order` and little-endian, from byte `offset` on.
    `skip` says why the tensor cannot be measured ("integer type int64", "empty"); None if it can.
    Quantised integers stand for themselves times `scale`. `stored_as` names how the file holds values that are read as
    `dtype` ("q4_0" of float32); None where that is the same. `role` and `depth` are those that a user's rules give it;
    None where the name tells them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    offset: int
    nbytes: int
    skip: str | None = None
    order: Literal["C", "F"] = "C"
    scale: float = 1.0
    stored_as: str | None = None
    role: str | None = None
    depth: int | None = None

    @property
    def size(self) -> int:
        """Number of values: the product of the shape, 1 for a scalar."""
        return math.prod(self.shape)


@runtime_checkable
class Storage(Protocol):
    """The bytes of one file, pipe, archive member or array, read in windows of rising offset.

    `mapped` is True when `window` returns a view of memory that already exists and no buffer is needed.
    `size` is the number of readable bytes, None when it is unknown until the end is reached (a pipe). `position` is how
    far a storage that is not mapped has been read, after an error too.
    """

    mapped: bool
    size: int | None
    position: int

    def prepare(self, start: int, stop: int) -> None:
        """Make a later `window` of a mapped storage quick, if that takes anything; may be called from any thread."""
        ...

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop) as a uint8 array of that length.

        A mapped storage returns a view and ignores `buffer`. Any other storage fills `buffer` (uint8, at least
        stop - start long) and returns its front; bytes before the position already reached are left as they are, and
        windows must come in rising order. Raises CorruptInputError when the bytes end early.
        """
        ...


ROUNDED_BYTES = 1024  # 256 float32 values: no type has larger blocks, and theirs divide it


@runtime_checkable
class Rounded(Storage, Protocol):
    """A storage of float32 values that were rounded to levels whose spacing it knows."""

    def spacing(self, start: int, stop: int) -> np.ndarray | None:
        """Of each of the equal parts of bytes [start, stop), how far apart its levels lie; None if that is not known.

        `start` and `stop` are multiples of ROUNDED_BYTES from the tensor's start, or its end.
        """
        ...


@runtime_checkable
class Uneven(Rounded, Protocol):
    """One whose levels may have unequal spacing: a value has a part, and a cell, of its own."""

    def middles(self, start: int, stop: int) -> np.ndarray | None:
        """Of each value in bytes [start, stop) the middle of its cell, sign dropped; None: the values themselves."""
        ...


@runtime_checkable
class Source(Protocol):
    """Tensors that can be measured. `storages` lists the storages in reading order."""

    name: str
    specs: tuple[TensorSpec, ...]
    storages: tuple[str, ...]

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """Open one storage for one pass. Raises InputError when it cannot be opened."""
        ...


FLOAT_DTYPES = frozenset(
    {
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
    }
)  # the types whose values are read as they are; anything else is skipped with its reason


COMPLEX = {"complex64": "float32", "complex128": "float64"}  # and the types of their moduli, which are measured


def skip_reason(dtype: str, shape: tuple[int, ...]) -> str | None:
    """Why a tensor of this type and shape cannot be measured as it is, or None if it can."""
    if dtype.startswith(("int", "uint")):
        return f"integer type {dtype}"
    if dtype in COMPLEX:
        return f"complex type {dtype}: only its modulus can be measured"
    if dtype not in FLOAT_DTYPES:
        return f"type {dtype} is not read"
    if math.prod(shape) == 0:
        return "empty"
    return None


def files_of(source: Source) -> tuple[Path, ...]:
    """The files that a source was read from, whose sizes and times of change tell whether it is still the same.

    Its `files` if it has them, else those of its storages that are named by a path; none for a stream or for arrays.
    """
    files: tuple[Path, ...] | None = getattr(source, "files", None)
    if files is not None:
        return files
    return tuple(Path(s) for s in source.storages if os.path.isfile(s))  # noqa: PTH113  # false for what is no path


def by_storage(specs: Iterable[TensorSpec]) -> dict[str, list[TensorSpec]]:
    """The measurable tensors of each storage that has any, in file order."""
    groups: dict[str, list[TensorSpec]] = {}
    for spec in sorted((s for s in specs if s.skip is None), key=lambda s: (s.offset, s.name)):
        groups.setdefault(spec.storage, []).append(spec)
    return groups


def numpy_dtype(name: str) -> np.dtype:
    """The type of that name in NumPy or ml_dtypes."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders the numbers in names as numbers: layer.2 before layer.10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((1, len(p.lstrip("0")), p.lstrip("0")) if p.isdecimal() else (0, 0, p) for p in parts if p)
