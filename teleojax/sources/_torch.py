"""PyTorch's `torch.save` files, described by `torch.load(weights_only=True)`: no code in them is ever run.

The description is loaded onto the "meta" device, where a storage has no memory but knows the offset of its bytes in the
archive; those are checked against the archive's own directory and read in place. What cannot be described so (an
archive that holds quantised tensors, a version of PyTorch that does not tell offsets) is loaded mapped, tensor by
tensor without a copy. Files from before PyTorch 1.6 are no archives: they are loaded whole, up to LEGACY_BYTES.
"""

from __future__ import annotations

import io
import re
import reprlib
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources._formats import ZIP
from teleojax.sources._index import COMPLEX, Storage, TensorSpec, skip_reason
from teleojax.sources._names import bounded
from teleojax.sources._numpy import stored_offset
from teleojax.sources._pytree import number_repeats
from teleojax.sources._storage import MappedFile, Memory
from teleojax.sources._torch_pickle import check_tuples

LEGACY_BYTES = 1 << 30  # of a file that has to be loaded whole
LEGACY_PICKLES = 5  # in such a file: magic number, version, machine, objects, names of the storages that follow
PICKLE_BYTES = 1 << 28  # of the description: a million tensors take less
MAX_DEPTH, MAX_NODES = 64, 1_000_000  # of nested containers, which a few bytes can make endless
OPTIMIZER = frozenset({"optimizer", "optimizers", "opt", "optim", "optimizer_states", "optimizer_state_dict"})
_short = reprlib.Repr()
_short.maxlevel, _short.maxtuple, _short.maxstring = 2, 8, 80  # a key may hold others, and the same text many times
CONVERT = (
    "In a process that may run the file's code, save its weights alone: torch.save(model.state_dict(), PATH), "
    "or convert them to safetensors."
)


@dataclass(frozen=True, slots=True)
class _Leaf:
    name: str
    tensor: Any
    in_optimizer: bool


class TorchSource:
    """The tensors of one file by their paths: {"state_dict": {"w": t}} gives "state_dict.w"; a bare one by the file.

    Dictionaries, lists and tuples are descended into; whatever else is no tensor is left out. Tensors below a top-level
    key such as "optimizer" are listed as skipped, and so are sparse, quantised and expanded ones. Two names of one
    storage (tied weights) are two tensors. Dense tensors are read in place, in C or Fortran order; other views are
    copied when their turn comes, one at a time.
    Raises MissingExtraError without `torch`, InputError for a file that holds more than weights, is a TorchScript
    archive, big-endian, or of the old kind and larger than LEGACY_BYTES, CorruptInputError for one that is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise MissingExtraError(path, package="torch", extra="torch") from e
        self._path = path
        self.name = path.name
        self._members = _members(path)
        leaves = None if self._members is None else list(_leaves(_load(path, "meta", mapped=True), path))
        if leaves is None or not all(_is_placed(leaf.tensor) for leaf in leaves):
            leaves = list(self._loaded.values())
        self.specs = tuple(self._spec(leaf) for leaf in leaves)
        self.storages = tuple(dict.fromkeys(s.storage for s in self.specs))
        self.files = (path,)

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """The archive, mapped read-only, or the values of one tensor."""
        if storage == str(self._path):
            return MappedFile(self._path)
        name = storage.removeprefix(f"{self._path}:")
        return Memory(_bytes_of(self._loaded[name].tensor))

    @cached_property
    def _loaded(self) -> dict[str, _Leaf]:
        """Tensors with values: views of the mapped archive; of a file that is none, in memory."""
        tree = _load(self._path, "cpu", mapped=self._members is not None)
        return {leaf.name: leaf for leaf in _leaves(tree, self._path)}

    def _spec(self, leaf: _Leaf) -> TensorSpec:
        import torch  # pyright: ignore[reportMissingImports]

        t = leaf.tensor
        own = f"{self._path}:{leaf.name}"
        dtype = str(t.dtype).removeprefix("torch.")
        shape = () if t.is_nested else tuple(t.shape)
        spec = TensorSpec(leaf.name, shape, dtype, own, 0, 0)
        if t.is_nested or t.layout != torch.strided:
            skip = "nested" if t.is_nested else f"sparse ({t.layout})".replace("torch.", "")
            return replace(spec, storage=str(self._path), skip=skip)
        spec = replace(spec, nbytes=t.numel() * t.element_size())
        order, base = _order(t), _offset(t)
        skip = (
            "optimizer state"
            if leaf.in_optimizer
            else f"quantised {dtype} (not read yet)"
            if t.is_quantized
            else (skip_reason(dtype, shape) if dtype not in COMPLEX else None)
            or ("saved without values (a meta tensor)" if base is None and t.device.type == "meta" else None)
            or ("an expanded view, which repeats its values" if order is None and _repeats(t) else None)
        )
        if skip is not None:
            return replace(spec, storage=str(self._path), skip=skip)
        self._check(leaf)
        spec = replace(spec, skip=skip_reason(dtype, shape))
        if base is None or order is None or t.is_neg():  # the modulus does not mind a conjugate
            return spec
        return replace(spec, storage=str(self._path), offset=base + t.storage_offset() * t.element_size(), order=order)

    def _check(self, leaf: _Leaf) -> None:
        """That a tensor lies in its storage, and this in a member of the archive that holds as many bytes."""
        if self._members is None:
            return  # loaded whole, by PyTorch, which checks it
        t, base = leaf.tensor, _offset(leaf.tensor)
        nbytes = t.untyped_storage().nbytes()
        last = t.storage_offset() + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        held = nbytes in self._members.values() if base is None else self._members.get(base) == nbytes
        if not held or t.storage_offset() < 0 or (last + 1) * t.element_size() > nbytes:
            raise CorruptInputError(
                f"{self._path}: tensor {leaf.name[:120]!r}",
                found=f"a storage of {nbytes} bytes" + ("" if base is None else f" from byte {base} on"),
                needed="one that holds the tensor, and is one member that is stored as it is",
                remedy="The archive is damaged or was packed by another program: write it again with torch.save.",
            )


def _members(path: Path) -> dict[int, int] | None:
    """Offset and size of every stored member with values, in an archive fit to be loaded; None for no archive."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(0)
            if not f.read(4).startswith(ZIP):
                if size > LEGACY_BYTES:
                    raise InputError(
                        path,
                        found=f"{size} bytes in the format from before PyTorch 1.6",
                        needed=f"at most {LEGACY_BYTES} of that format, which cannot be read in parts",
                        remedy="Save it again: torch.save(torch.load(PATH, weights_only=True), NEW).",
                    )
                f.seek(0)
                check_tuples(f, LEGACY_PICKLES)
                return None
            with zipfile.ZipFile(f) as archive:
                infos = {i.filename.partition("/")[2]: i for i in archive.infolist()}
                _require_weights(path, archive, infos)
                if "byteorder" in infos and archive.read(infos["byteorder"].filename) == b"big":
                    raise InputError(
                        path, found="big-endian values", needed="little-endian ones",
                        remedy="Save it on a little-endian machine.",
                    )  # fmt: skip
            values = [i for n, i in infos.items() if n.startswith("data/") and i.compress_type == zipfile.ZIP_STORED]
            return {stored_offset(f, i, size, f"{path}: member {i.filename!r}"): i.file_size for i in values}
    except (InputError, OSError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(
            path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
        ) from e
    except Exception as e:  # zipfile lets struct, Unicode and value errors of a damaged directory through
        raise _damaged(path, e) from e


def _require_weights(path: Path, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> None:
    if "constants.pkl" in infos:
        raise InputError(
            path, found="a TorchScript archive, which is a program", needed="weights alone",
            remedy="Save them: torch.save(torch.jit.load(PATH).state_dict(), NEW).",
        )  # fmt: skip
    # PyTorch takes the version and whatever else it looks at whole into memory, as it does the description
    described = [i for i in archive.infolist() if not i.filename.partition("/")[2].startswith("data/")]
    if (size := max((i.file_size for i in described), default=0)) > PICKLE_BYTES:
        raise CorruptInputError(
            path, found=f"a description of {size} bytes", needed=f"at most {PICKLE_BYTES}",
            remedy="Save the tensors alone, without other objects.",
        )  # fmt: skip
    for info in described:
        if info.filename.lower().endswith("data.pkl"):  # PyTorch looks for the name in any case
            check_tuples(io.BytesIO(archive.read(info)), 1)
        elif info.filename.lower().endswith(".storage_alignment"):
            text = archive.read(info)[:40]
            if not re.fullmatch(rb"0*[1-9][0-9]{0,8}", text):  # PyTorch divides by it, and 0 ends the process
                raise ValueError(f"a storage alignment of {text!r}")


def _load(path: Path, device: str, *, mapped: bool = False) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own classes in old files
        try:
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped)
        except Exception as e:
            if isinstance(e, NotImplementedError) and device == "meta":  # quantised tensors need their values
                return _load(path, "cpu", mapped=True)
            if found := re.search(r"GLOBAL (\S+)", str(e)):
                raise InputError(
                    path,
                    found=f"objects that are no weights ({found[1]}), which could run code",
                    needed="tensors in dictionaries, lists and tuples",
                    remedy=CONVERT,
                ) from e
            raise _damaged(path, e) from e


def _leaves(tree: Any, path: Path) -> Iterator[_Leaf]:
    found = list(_walk(tree, (), path))
    joined = (".".join(keys) if keys else path.stem for keys, _ in found)
    names = number_repeats(bounded(joined, str, path))
    whole = isinstance(tree, dict) and {"state", "param_groups"} <= set(tree)  # an optimizer saved by itself
    for name, (keys, tensor) in zip(names, found, strict=True):
        yield _Leaf(name, tensor, whole or (len(keys) > 1 and keys[0] in OPTIMIZER))


def _walk(tree: Any, keys: tuple[str, ...], path: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and tensors, in the order of the containers."""
    import torch  # pyright: ignore[reportMissingImports]

    visited = 0
    stack: list[tuple[tuple[str, ...], Any]] = [(keys, tree)]
    while stack:
        keys, node = stack.pop()
        visited += 1
        if len(keys) > MAX_DEPTH or visited > MAX_NODES:
            raise CorruptInputError(
                path, found=f"containers nested {len(keys)} deep, with {visited} members so far",
                needed=f"at most {MAX_DEPTH} and {MAX_NODES}", remedy="Save the weights alone.",
            )  # fmt: skip
        if isinstance(node, torch.Tensor):
            yield keys, node
        elif isinstance(node, dict):
            stack += [((*keys, _key_name(k)), v) for k, v in reversed(node.items())]
        elif isinstance(node, list | tuple):
            stack += [((*keys, str(i)), v) for i, v in reversed(list(enumerate(node)))]


def _key_name(key: Any) -> str:
    """A key as part of a name: on its own terms if it is text, else in short."""
    return key.encode("utf-8", "backslashreplace").decode() if isinstance(key, str) else _short.repr(key)


def _is_placed(t: Any) -> bool:
    """Whether a description says where the values are, or there are none to place."""
    import torch  # pyright: ignore[reportMissingImports]

    return t.is_nested or t.layout != torch.strided or t.numel() == 0 or _offset(t) is not None


def _offset(t: Any) -> int | None:
    """Where the storage of a described tensor begins in the archive."""
    return getattr(t.untyped_storage(), "_checkpoint_offset", None) if t.device.type == "meta" else None


def _order(t: Any) -> Any:
    """ "C" or "F" where the values lie one after another in that order, else None."""
    lengths = [(n, s) for n, s in zip(t.shape, t.stride(), strict=True) if n != 1]
    for order, dims in (("C", lengths[::-1]), ("F", lengths)):
        step, dense = 1, True
        for n, stride in dims:
            dense, step = dense and stride == step, step * n
        if dense:
            return order
    return None


def _repeats(t: Any) -> bool:
    """Whether a view has a value twice, or more values than its storage holds: it could be endless."""
    expanded = any(n > 1 and stride == 0 for n, stride in zip(t.shape, t.stride(), strict=True))
    return expanded or t.numel() * t.element_size() > t.untyped_storage().nbytes()


def _bytes_of(t: Any) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    return t.detach().resolve_neg().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy()


def _damaged(path: Path, e: Exception) -> CorruptInputError:
    lines = [line for line in str(e).splitlines() if line.strip() and "Weights only load failed" not in line]
    return CorruptInputError(
        path,
        found=f"a PyTorch file that cannot be read ({(lines or [type(e).__name__])[0][:200]})",
        needed="a file as torch.save writes it",
        remedy="It is truncated or damaged: copy or write it again.",
    )
