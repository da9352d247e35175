"""A pytree in memory as a source: every array leaf is a storage of its own, converted only when it is opened."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from teleojax._errors import InputError
from teleojax.sources._array_memory import ShardedMemory, on_host
from teleojax.sources._index import TensorSpec, skip_reason
from teleojax.sources._storage import Memory
from teleojax.sources._torch_tensor import Elsewhere, Tied, Unread


class PytreeSource:
    """The arrays of any pytree of NumPy and JAX arrays, named by their paths: {"h": [{"w": a}]} gives "h.0.w".

    A bare array is named "array"; a path that repeats gets "#1", "#2", ...; None vanishes. Leaves that are not arrays
    (Python numbers, strings, functions) and random keys are listed as skipped. A variable of Flax NNX is named without
    the ".value" of its array, and its later names are listed as tied to the first. No value is copied here: opening a
    storage makes a contiguous little-endian view, or a copy when the leaf is not that already (a JAX array on the CPU
    is). `leaf` gives the array itself, to be worked on where it lies. Raises InputError for traced arrays.
    """

    def __init__(self, tree: Any, name: str = "pytree") -> None:
        try:
            leaves = list(_flat(tree))
        except (TypeError, ValueError) as e:
            raise InputError(
                name,
                found=f"a tree that JAX cannot flatten ({' '.join(str(e).split())[:200]})",
                needed="a pytree of arrays",
                remedy="Give dictionaries one type of key, and custom nodes a registration.",
            ) from e
        names = number_repeats(".".join(_key_name(k) for k in path) if path else "array" for path, _ in leaves)
        named = [(n, leaf) for n, (_, leaf) in zip(names, leaves, strict=True)]
        first = {id(leaf): n for n, leaf in reversed(named)}
        specs = [(_spec(n, leaf, name, first), leaf) for n, leaf in named]
        self._arrays = {spec.storage: leaf for spec, leaf in specs if _has_numbers(spec, leaf)}
        self.name, self.files = name, ()
        self.specs = tuple(spec for spec, _ in specs)
        self.storages = tuple(spec.storage for spec in self.specs)

    def leaf(self, storage: str) -> Any:
        """The array itself, None of a leaf that holds no numbers or holds them masked."""
        return self._arrays.get(storage)

    def open(self, storage: str) -> Memory | ShardedMemory:
        """The leaf's bytes, none where `leaf` is None.

        Raises InputError when a JAX array has been deleted or donated, or is one of which this process holds only a
        part.
        """
        import jax

        leaf = self.leaf(storage)
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise self._error(storage, "a deleted array", "Keep the array: it was deleted or donated to a computation.")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            remedy = "Gather it first: jax.experimental.multihost_utils.process_allgather(x, tiled=True)."
            raise self._error(storage, "an array of which this process holds only a part", remedy)
        if isinstance(leaf, jax.Array) and on_host(leaf) and len({str(s.index) for s in leaf.addressable_shards}) > 1:
            return ShardedMemory(leaf)
        array = np.asarray(np.empty(0, np.uint8) if leaf is None else leaf)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        return Memory(np.ascontiguousarray(array))

    def _error(self, storage: str, found: str, remedy: str) -> InputError:
        where, needed = f"{self.name}: leaf {storage!r}", "an array that this process can read in full"
        return InputError(where, found=found, needed=needed, remedy=remedy)


def _flat(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Paths and leaves as JAX finds them, but for the variables of Flax NNX."""
    from jax.tree_util import tree_flatten_with_path

    variables: set[int] = set()
    for path, node in tree_flatten_with_path(tree, is_leaf=_is_variable)[0]:
        if not _is_variable(node):
            yield path, node
            continue
        for inner, leaf in tree_flatten_with_path(node)[0]:
            yield (*path, *inner[1:]), Tied(leaf) if id(node) in variables else leaf
        variables.add(id(node))


def _is_variable(node: Any) -> bool:
    """Whether it is a variable of Flax NNX, which is not imported to find out."""
    return "flax.nnx" in sys.modules and any(
        base.__name__ == "Variable" and base.__module__.startswith("flax.nnx") for base in type(node).__mro__
    )


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


def _has_numbers(spec: TensorSpec, leaf: Any) -> bool:
    """Whether it is measured, or would be were it not for its type: codes and scales of what is quantised, say."""
    if spec.skip is None:
        return True
    dtype = getattr(leaf, "dtype", None)  # text of what is Unread
    return spec.skip == skip_reason(spec.dtype, spec.shape) and isinstance(dtype, np.dtype) and dtype.kind not in "OSUT"


def _spec(name: str, leaf: Any, tree: str, first: Mapping[int, str]) -> TensorSpec:
    """`first` gives the name under which a leaf is found first, by its identity."""
    from jax.core import Tracer

    if isinstance(leaf, Tied):
        return replace(_spec(name, leaf.first, tree, first), skip=f"tied to {first[id(leaf.first)]}")
    if isinstance(leaf, Unread):
        return TensorSpec(name, leaf.shape, leaf.dtype, name, 0, leaf.nbytes, leaf.reason)
    if not (is_array(leaf) or isinstance(leaf, Elsewhere)):
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
    shape, dtype = tuple(leaf.shape), leaf.dtype.name
    skip = "a masked array" if isinstance(leaf, np.ma.MaskedArray) else skip_reason(dtype, shape)
    return TensorSpec(name, shape, dtype, name, 0, leaf.size * leaf.dtype.itemsize, skip)
