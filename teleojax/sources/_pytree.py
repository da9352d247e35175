"""A pytree in memory as a source: every array leaf is a storage of its own, converted only when it is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from teleojax._errors import InputError
from teleojax.sources._index import TensorSpec, skip_reason
from teleojax.sources._storage import Memory


class PytreeSource:
    """The arrays of any pytree of NumPy and JAX arrays, named by their paths: {"h": [{"w": a}]} gives "h.0.w".

    A bare array is named "array"; a path that repeats gets "#1", "#2", ...; None vanishes. Leaves that are not arrays
    (Python numbers, strings, functions) and random keys are listed as skipped. No value is copied here: opening a
    storage makes a contiguous little-endian view, or a copy when the leaf is not that already (a JAX array on the CPU
    is). Raises InputError for traced arrays and for arrays of which this process holds only a part.
    """

    def __init__(self, tree: Any, name: str = "pytree") -> None:
        from jax.tree_util import tree_flatten_with_path

        try:
            leaves = tree_flatten_with_path(tree)[0]
        except (TypeError, ValueError) as e:
            raise InputError(
                name,
                found=f"a tree that JAX cannot flatten ({' '.join(str(e).split())[:200]})",
                needed="a pytree of arrays",
                remedy="Give dictionaries one type of key, and custom nodes a registration.",
            ) from e
        names = number_repeats(".".join(_key_name(k) for k in path) if path else "array" for path, _ in leaves)
        specs = [(_spec(n, leaf, name), leaf) for n, (_, leaf) in zip(names, leaves, strict=True)]
        self._arrays = {spec.storage: leaf for spec, leaf in specs if spec.skip is None}
        self.name = name
        self.specs = tuple(spec for spec, _ in specs)
        self.storages = tuple(spec.storage for spec in self.specs)

    def open(self, storage: str) -> Memory:
        """The leaf's bytes, none of a skipped leaf. Raises InputError when a JAX array has been deleted or donated."""
        try:
            array = np.asarray(self._arrays.get(storage, np.empty(0, np.uint8)))
        except RuntimeError as e:
            raise InputError(
                f"{self.name}: leaf {storage!r}",
                found=f"an array that cannot be read ({e})",
                needed="an array that is still alive",
                remedy="Keep the array: it was deleted or donated to a computation.",
            ) from e
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        return Memory(np.ascontiguousarray(array))


def number_repeats(names: Iterable[str]) -> Iterator[str]:
    """The names in order, made unique: the first of equal names stays, later ones get "#1", "#2", ..."""
    used: set[str] = set()
    count: dict[str, int] = {}
    for name in names:
        unique = name
        while unique in used:
            count[name] = count.get(name, 0) + 1
            unique = f"{name}#{count[name]}"
        used.add(unique)
        yield unique


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):  # DictKey and FlattenedIndexKey, SequenceKey, GetAttrKey
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is a NumPy or JAX array or scalar."""
    import jax

    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _is_key(leaf: Any) -> bool:
    import jax

    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(name: str, leaf: Any, tree: str) -> TensorSpec:
    import jax
    from jax.core import Tracer

    if not is_array(leaf):
        kind = type(leaf).__name__
        return TensorSpec(name, (), kind, name, 0, 0, f"not an array: {kind}")
    if isinstance(leaf, Tracer):
        raise InputError(
            f"{tree}: leaf {name!r}",
            found="a traced array",
            needed="an array with values",
            remedy="Call teleojax outside jit, grad and vmap.",
        )
    if _is_key(leaf):
        return TensorSpec(name, tuple(leaf.shape), str(leaf.dtype), name, 0, 0, "a random key")
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise InputError(
            f"{tree}: leaf {name!r}",
            found="an array of which this process holds only a part",
            needed="arrays that this process can address in full",
            remedy="Gather it first: jax.experimental.multihost_utils.process_allgather(x, tiled=True).",
        )
    shape, dtype = tuple(leaf.shape), leaf.dtype.name
    skip = "a masked array" if isinstance(leaf, np.ma.MaskedArray) else skip_reason(dtype, shape)
    return TensorSpec(name, shape, dtype, name, 0, leaf.size * leaf.dtype.itemsize, skip)
