"""What a layout of quantised tensors says of one: the values that its parts stand for, or why they are not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from teleojax.sources._dequantised import Grid
from teleojax.sources._index import TensorSpec

Arrays = Mapping[str, np.ndarray]  # of each part its values, in its shape
Config = Mapping[str, Any]
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
SCALES = ("float32", "bfloat16", "float16", "float64")
MAIN = "main"


class UnlikeLayout(Exception):
    """Parts that do not make up what their names say; the message is the reason why the tensor is skipped."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One tensor as it is measured, and how the arrays of its parts become a grid of its values."""

    shape: tuple[int, ...]
    stored_as: str
    grid: Callable[[Arrays], Grid]


@dataclass(frozen=True, slots=True)
class Parts:
    """What lies beside each other in a file: `main` has the codes, `beside` the rest, by suffix.

    `read` gives the values of a small part, None where values cannot be read ahead.
    """

    main: TensorSpec
    beside: Mapping[str, TensorSpec]
    config: Config
    read: Callable[[TensorSpec], np.ndarray | None]

    def need(self, key: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> TensorSpec:
        """The part of that suffix; of one of these types and, if any are given, shapes. Raises UnlikeLayout."""
        spec = self.main if key == MAIN else self.beside.get(key)
        called = key.strip("._") if key != MAIN else self.main.name.rpartition(".")[2]
        if spec is None:
            raise UnlikeLayout(f"no {called}")
        if spec.dtype not in dtypes:
            raise UnlikeLayout(f"{called} of type {spec.dtype}, not {' or '.join(dtypes)}")
        if shapes and spec.shape not in shapes:
            raise UnlikeLayout(f"{called} of shape {spec.shape}, not {' or '.join(map(str, shapes))}")
        return spec

    def small(self, key: str) -> np.ndarray:
        """The values of a part. Raises UnlikeLayout where they cannot be read ahead."""
        found = self.read(self.beside[key])
        if found is None:
            raise UnlikeLayout(f"{key.strip('._')} cannot be read before the values")
        return found

    def config_number(self, *keys: str) -> int | None:
        """What the configuration has under the first of these keys that it has. Raises UnlikeLayout for no integer."""
        for key in keys:
            if self.config.get(key) is not None:
                if type(self.config[key]) is not int:
                    raise UnlikeLayout(f"{key} {str(self.config[key])[:40]!r} in the configuration")
                return self.config[key]
        return None


@dataclass(frozen=True, slots=True)
class Layout:
    """Which names make up a quantised tensor: one that ends with `main` and others that end with the keys of `beside`.

    The measured tensor's name ends with `derived` in its place. It is taken for one where it has one of the types and
    one of the `marks` is beside it, or where there are no marks. `beside` says what the others are.
    """

    label: str
    main: str
    derived: str
    dtypes: tuple[str, ...]
    marks: tuple[str, ...]
    beside: Mapping[str, str] = field(repr=False)
    plan: Callable[[Parts], Plan]


def group_length(columns: int, groups: int, given: int | None) -> int:
    """Columns a group, where `given` is what a configuration says (-1 for one group). Raises UnlikeLayout."""
    if given is None:
        if not groups or columns % groups:
            raise UnlikeLayout(f"{groups} groups of {columns} inputs")
        return columns // groups
    if given != -1 and given < 1:
        raise UnlikeLayout(f"group_size {given}")
    length = columns if given == -1 else min(given, columns)
    if -(-columns // length) != groups:
        raise UnlikeLayout(f"{groups} groups where group_size {given} makes {-(-columns // length)}")
    return length


def weights_of(config: Config, key: str) -> list[Any]:
    """What the groups of a compressed-tensors configuration say of weights under a key, each once."""
    groups = config.get("config_groups")
    each = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    found: list[Any] = []
    for weights in each:
        value = weights.get(key) if isinstance(weights, dict) else None
        if value is not None and value not in found:
            found.append(value)
    return found


def in_range(groups: np.ndarray, n: int) -> np.ndarray:
    """The groups of inputs as indices below n. Raises UnlikeLayout."""
    if groups.size and not 0 <= int(groups.min()) <= int(groups.max()) < n:
        raise UnlikeLayout(f"inputs in groups {groups.min()} to {groups.max()} of {n}")
    return groups.astype(np.int64)
