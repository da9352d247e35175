"""Orbax checkpoints: the tree from Orbax's own JSON (`_METADATA`), the arrays through TensorStore; nothing is restored.

Orbax itself is not imported: its metadata files name every leaf, and TensorStore knows shape, type and chunks.
Layouts: a tree of arrays (`_METADATA` beside zarr 2 or 3 arrays, in OCDBT or in directories of their own), a step (a
tree, or items that are trees), and a directory of steps.
Format: https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError, InputError
from teleojax.sources._complex import is_measurable
from teleojax.sources._index import TensorSpec, skip_reason
from teleojax.sources._pytree import number_repeats
from teleojax.sources._readahead import ReadAhead
from teleojax.sources._safetensors import load_json
from teleojax.sources._storage import Memory
from teleojax.sources._tensorstore import ArrayLayout, TensorStoreStorage, array_layouts, reading_context

TREE, STEP, OCDBT = "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of directories that are still being written
STEP_NAME = re.compile(r"(?:(.*)_)?([0-9]+)")  # 10, step_10, step_00000010
TREE_HANDLERS = ("StandardCheckpointHandler", "PyTreeCheckpointHandler", "PyTreeHandler")
OPTIMIZER = frozenset({"opt_state", "optimizer", "optimizer_state", "opt"})
MAX_JSON_BYTES = 1 << 30  # about 200 bytes a leaf


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One leaf: the keys that lead to it, what Orbax says it is, the tree's directory, a TensorStore spec."""

    keys: tuple[str, ...]
    kind: str
    is_optimizer: bool
    tree: Path
    spec: Mapping[str, Any]

    @property
    def is_array(self) -> bool:
        return self.kind not in ("string", "scalar")


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """The step that is read: its trees and its other items, by what names begin with, which may be nothing."""

    step: Path
    trees: dict[str, Path]
    others: dict[str, str]  # item -> what it is instead


class OrbaxSource:
    """The arrays of an Orbax checkpoint, each a storage of its own, named by their keys as in a pytree: "params.h.0.w".

    `path` is a directory of steps (the newest finished step is read, and `name` says which: "run/1000"), a step, or an
    item of one. In a step of several trees names begin with the item ("state.params.w"), save in the item "default".
    Items that are no trees of arrays (JSON, say), strings and Python numbers are listed as skipped; None and empty
    containers vanish. What lies under a top-level key (or in an item) opt_state, optimizer, optimizer_state or opt is
    skipped as "optimizer state", unless it is asked for by `within`.

    `within` restricts the source to the leaves under these keys, an item's name first. Given to `open_source` it
    continues the checkpoint's path: "run/1000/opt_state/0/mu".

    An array whose metadata cannot be read is listed with the type "unknown" and fails alone when it is opened. So does
    one of which chunks are missing: Orbax stores every chunk, unless `_METADATA` says that those of zeros were left
    out, as old versions did (no `store_array_data_equal_to_fill_value`). Values in zarr 2 have no checksum: what still
    decompresses is taken as it is.

    Raises MissingExtraError without TensorStore, InputError for a checkpoint that is not finished, is several, holds no
    tree or may not be read, CorruptInputError when its metadata are damaged or missing.
    """

    def __init__(self, path: Path, within: tuple[str, ...] = ()) -> None:
        path = path.resolve()  # TensorStore takes absolute paths, without ".."
        try:
            found = _find(path)
            leaves = [leaf for item, tree in found.trees.items() for leaf in _leaves(tree, item)]
        except OSError as e:
            raise InputError(
                e.filename or path,
                found=e.strerror or str(e),
                needed="a readable checkpoint",
                remedy="Check the path and its permissions.",
            ) from e
        if within:
            leaves = [leaf for leaf in leaves if f"{'/'.join(leaf.keys)}/".startswith(f"{'/'.join(within)}/")]
            if not leaves:
                raise InputError(
                    found.step,
                    found=f"no leaf under the keys {'/'.join(within)!r}",
                    needed="keys that the checkpoint has",
                    remedy="Give the checkpoint's own path to see all of them.",
                )
        self.name = found.step.name if found.step == path else f"{path.name}/{found.step.name}"
        context = reading_context(path)
        listed = list(_list(leaves, context, bool(within)))
        self.specs = (*(s for s, _ in listed), *(_other(path, *o) for o in found.others.items() if not within))
        self.storages = tuple(s.storage for s in self.specs)
        read = [(s, leaf) for s, leaf in listed if s.skip is None or is_measurable(s)]
        read = [(s, leaf) for s, leaf in listed if s.skip is None or is_measurable(s)]
        self._wanted = {s.storage: (leaf.spec, s.storage, s.nbytes) for s, leaf in read}
        self._arrays = ReadAhead(self._wanted, context)
        marks = (folder / mark for folder in (found.step, *found.trees.values()) for mark in (STEP, TREE, OCDBT))
        self.files = tuple(dict.fromkeys(m for m in marks if m.exists()))  # the last save wrote all of them

    def open(self, storage: str) -> TensorStoreStorage | Memory:
        """The array, no bytes of a skipped one. Raises InputError, CorruptInputError: it cannot be read."""
        return self._arrays.open(storage) if storage in self._wanted else Memory(np.empty(0, np.uint8))


def is_checkpoint(path: Path, entries: Sequence[Path]) -> bool:
    """Whether a directory with these entries was written by Orbax, finished or not."""
    names = {p.name for p in entries}
    return (
        UNFINISHED in path.name
        or not names.isdisjoint((TREE, STEP, OCDBT))
        or any(UNFINISHED in p.name or _is_part(p) for p in entries if p.is_dir())
    )


def open_within(path: Path) -> OrbaxSource | None:
    """The leaves under the keys that follow a checkpoint in a path that does not exist; None if no checkpoint is there.

    Raises what OrbaxSource raises.
    """
    depth, parent = next((d, p) for d, p in enumerate(path.parents, 1) if p.is_dir())
    if not is_checkpoint(parent, _listed(parent)):
        return None
    try:
        _find(parent)
    except (InputError, OSError):  # several checkpoints, say, beside which another was looked for
        return None
    return OrbaxSource(parent, path.parts[-depth:])


def _is_part(path: Path) -> bool:
    """Whether a directory is a step or an item of one."""
    if _has(path, TREE) or _has(path, STEP):
        return True
    return STEP_NAME.fullmatch(path.name) is not None and any(_has(p, TREE) for p in _listed(path))


def _has(path: Path, mark: str) -> bool:
    try:
        return (path / mark).exists()
    except OSError:  # a directory that may not be searched, as one beside the files that are wanted
        return False


def _listed(path: Path) -> tuple[Path, ...]:
    """What is in a directory; nothing of one that may not be listed."""
    try:
        return tuple(path.iterdir())
    except OSError:
        return ()


def _find(path: Path) -> _Checkpoint:
    if UNFINISHED in path.name:
        raise _unfinished(path, "a checkpoint that was never finished")
    if (path / TREE).exists():
        return _Checkpoint(path, {"": path}, {})
    inside = [p for p in path.iterdir() if p.is_dir()]
    if (path / STEP).exists():
        return _step(path, inside)
    finished = [p for p in inside if UNFINISHED not in p.name]
    steps = [(m[1], int(m[2]), p) for p in finished if (m := STEP_NAME.fullmatch(p.name)) and _is_part(p)]
    if len({prefix for prefix, _, _ in steps}) > 1:
        raise _several(path, [p for _, _, p in steps])
    if steps:
        return _find(max(steps, key=lambda s: s[1])[2])
    parts = [p for p in finished if _is_part(p)]
    if len(parts) < len(inside) and any(UNFINISHED in p.name for p in inside):
        raise _unfinished(path, "only checkpoints that were never finished")
    if any((p / STEP).exists() for p in parts):  # items have none, checkpoints do
        raise _several(path, parts)
    return _step(path, inside)


def _step(path: Path, inside: Sequence[Path]) -> _Checkpoint:
    handlers = _read_json(path / STEP).get("item_handlers") if (path / STEP).exists() else None
    by_item = handlers if isinstance(handlers, dict) else {p.name: "" for p in inside if (p / TREE).exists()}
    trees, others = {}, {}
    for item, handler in sorted(by_item.items()):
        kind = str(handler).rpartition(".")[2]
        if any(p.name == item and (p / TREE).exists() for p in inside):
            trees[item] = path / item
        elif kind in TREE_HANDLERS:
            raise _no_tree(path / "".join(c for c in item if c.isprintable() and c != "/"))
        else:
            others[item] = kind
    if not trees and others:
        raise InputError(
            path,
            found=f"only items that are no trees of arrays ({', '.join(others)})",
            needed="an item saved by StandardSave or PyTreeSave",
            remedy="Give the checkpoint that holds the parameters.",
        )
    if not trees:
        raise _no_tree(path)
    alone = len(trees) == 1
    return _Checkpoint(path, {"" if alone or i == "default" else i: tree for i, tree in trees.items()}, others)


def _leaves(tree: Path, item: str) -> Iterator[_Leaf]:
    """The leaves of one tree in the order of its metadata, without None and empty containers."""
    metadata = _read_json(tree / TREE)
    ocdbt, zarr3 = metadata.get("use_ocdbt"), metadata.get("use_zarr3") is True
    if ocdbt is None:
        ocdbt = (tree / OCDBT).exists()
    if ocdbt and not (tree / OCDBT).exists():
        raise CorruptInputError(
            tree,
            found=f"no {OCDBT}",
            needed=f"the {OCDBT} that {TREE} speaks of",
            remedy="The copy is incomplete, or the save was cut off: copy or save it again.",
        )
    fill = metadata.get("store_array_data_equal_to_fill_value") is not True
    try:
        for entry in metadata["tree_metadata"].values():
            keys = tuple(str(key["key"]) for key in entry["key_metadata"])
            value = entry["value_metadata"]
            if value["skip_deserialize"] is not True:
                spec = _tensorstore_spec(tree, ".".join(keys), ocdbt, zarr3, fill)
                optimizer = not OPTIMIZER.isdisjoint((item, *keys[:1]))
                yield _Leaf((item, *keys) if item else keys, str(value["value_type"]), optimizer, tree, spec)
    except (KeyError, TypeError, AttributeError) as e:
        raise CorruptInputError(
            tree / TREE,
            found=f"tree metadata of an unknown form ({type(e).__name__}: {e})",
            needed="keys and a type for every leaf, as Orbax writes them",
            remedy="The file is damaged: copy or save the checkpoint again.",
        ) from e


def _list(leaves: Sequence[_Leaf], context: Any, with_optimizer: bool) -> Iterator[tuple[TensorSpec, _Leaf]]:
    names = number_repeats(".".join(leaf.keys) or "array" for leaf in leaves)
    arrays = [leaf.spec for leaf in leaves if leaf.is_array]
    layouts = array_layouts(arrays, "orbax", context)
    for leaf, name in zip(leaves, names, strict=True):
        storage = f"{leaf.tree}: tensor {name!r}"
        if leaf.is_array:
            reason = "optimizer state" if leaf.is_optimizer and not with_optimizer else None
            yield _spec(name, storage, next(layouts), reason), leaf
        else:
            yield TensorSpec(name, (), leaf.kind, storage, 0, 0, f"not an array: {leaf.kind}"), leaf


def _tensorstore_spec(tree: Path, parameter: str, ocdbt: bool, zarr3: bool, fill: bool) -> dict[str, Any]:
    file = {"driver": "file", "path": f"{tree}/" if ocdbt else f"{tree}/{parameter}/"}
    within = {"driver": "ocdbt", "base": file, "path": f"{parameter}/", "cache_pool": "cache_pool#ocdbt"}
    return {
        "driver": "zarr3" if zarr3 else "zarr",
        "kvstore": within if ocdbt else file,
        "fill_missing_data_reads": fill,
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


def _spec(name: str, storage: str, layout: ArrayLayout | Exception, reason: str | None) -> TensorSpec:
    if isinstance(layout, Exception):  # of a byte, so that it is opened, which says what is wrong
        return TensorSpec(name, (), "unknown", storage, 0, 1, reason)
    skip = reason or skip_reason(layout.dtype, layout.shape)
    return TensorSpec(name, layout.shape, layout.dtype, storage, 0, layout.nbytes, skip)


def _other(path: Path, item: str, kind: str) -> TensorSpec:
    return TensorSpec(item, (), "item", f"{path}: item {item!r}", 0, 0, f"not a tree of arrays: {kind or 'unknown'}")


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as f:
        raw = f.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise CorruptInputError(
            path,
            found=f"more than {MAX_JSON_BYTES} bytes",
            needed="metadata of a checkpoint",
            remedy="The file is damaged: copy or save the checkpoint again.",
        )
    return load_json(raw, path, "metadata file")


def _unfinished(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=f"{found} ({UNFINISHED!r} in the name)",
        needed="a checkpoint that Orbax has committed",
        remedy="Wait until it is saved (Checkpointer.wait_until_finished), or give an earlier step.",
    )


def _several(path: Path, parts: Sequence[Path]) -> InputError:
    names = sorted(p.name for p in parts)
    return InputError(
        path,
        found=f"{len(names)} {'checkpoints' if names[1:] else 'checkpoint'} ({', '.join(names[:3])}"
        + (", ...)" if names[3:] else ")"),
        needed="a checkpoint, or the steps of one run",
        remedy="Give the directory of the checkpoint to read.",
    )


def _no_tree(path: Path) -> CorruptInputError:
    return CorruptInputError(
        path,
        found=f"no {TREE}",
        needed=f"the {TREE} that names the arrays of a checkpoint",
        remedy="The copy is incomplete, or Orbax was too old: copy it again, or restore it and save it anew.",
    )
