"""Which tensor of one network is which of another: by name, by name without prefixes, by place and shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from teleojax.report._result import TensorFit

# what wrappers put before the names of a network
PREFIXES = ("base_model.model.", "base_model.", "model.", "module.", "_orig_mod.", "transformer.")


class Pair(NamedTuple):
    """Two tensors taken for the same one, and by what: "name", "prefix" or "shape"."""

    a: TensorFit
    b: TensorFit
    matched: str


class Matches(NamedTuple):
    """The pairs, in the order of the first network; what only one of them has."""

    pairs: list[Pair]
    only_a: list[TensorFit]
    only_b: list[TensorFit]


def match(a: Iterable[TensorFit], b: Iterable[TensorFit]) -> Matches:
    """Pair tensors by equal name; then by the name without PREFIXES; then by shape, role and depth.

    Each rule sees what those before left, and pairs only what is unambiguous: one tensor of that key on either side.
    The last needs a known role.
    """
    left, right = list(a), list(b)
    order = {r.name: i for i, r in enumerate(left)}
    pairs: list[Pair] = []
    for rule, key in KEYS.items():
        theirs = _unique(right, key)
        found = [Pair(mine, theirs[k], rule) for k, mine in _unique(left, key).items() if k in theirs]
        pairs += found
        taken_a, taken_b = {p.a.name for p in found}, {p.b.name for p in found}
        left = [r for r in left if r.name not in taken_a]
        right = [r for r in right if r.name not in taken_b]
    return Matches(sorted(pairs, key=lambda p: order[p.a.name]), left, right)


def without_prefixes(name: str) -> str:
    """The name without PREFIXES, repeated ones too."""
    while True:
        shorter = next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), None)
        if not shorter:
            return name
        name = shorter


def _place(result: TensorFit) -> Hashable:
    return None if result.role is None or result.shape is None else (result.shape, result.role, result.depth)


def _unique(results: list[TensorFit], key: Callable[[TensorFit], Hashable]) -> dict[Hashable, TensorFit]:
    keys = [key(r) for r in results]
    count = Counter(keys)
    return {k: r for k, r in zip(keys, results, strict=True) if k is not None and count[k] == 1}


KEYS: dict[str, Callable[[TensorFit], Hashable]] = {
    "name": lambda r: r.name,
    "prefix": lambda r: without_prefixes(r.name),
    "shape": _place,
}
