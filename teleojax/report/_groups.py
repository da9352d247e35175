"""Tensors by role, depth or model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from teleojax._errors import UsageError
from teleojax.report._result import TensorFit

GROUPINGS = ("tensor", "role", "depth", "model")
UNKNOWN = "unknown"  # the group of tensors whose role or depth is not known; it comes last


def grouped(results: Iterable[TensorFit], by: str, *, model: str = "model") -> dict[Any, list[TensorFit]]:
    """The results by role or depth in rising order, None last, or all of them under the name of the model.

    Raises UsageError for another key.
    """
    if by not in GROUPINGS[1:]:
        raise UsageError(
            "grouping", found=repr(by), needed=f"one of {', '.join(GROUPINGS[1:])}", remedy="Choose one of them."
        )
    groups: dict[Any, list[TensorFit]] = {}
    for result in results:
        groups.setdefault(model if by == "model" else getattr(result, by), []).append(result)
    return {value: groups[value] for value in sorted(groups, key=lambda v: (v is None, v))}


def group_name(value: Any) -> str:
    """The name of a group."""
    return UNKNOWN if value is None else str(value)


def described(
    name: str, members: Sequence[TensorFit], *, role: str | None = None, depth: int | None = None
) -> dict[str, Any]:
    """The fields that describe a group; its type is "mixed" where the members' differ."""
    dtypes = {m.dtype for m in members}
    return {
        "name": name,
        "role": role,
        "depth": depth,
        "shape": None,
        "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
        "size": sum(m.size for m in members),
        "tensors": len(members),
    }
