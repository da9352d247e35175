"""A model in several files of one directory: the index that says which of them holds a tensor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from teleojax._errors import CorruptInputError, InputError
from teleojax.sources._formats import HEAD_BYTES, TORCH_INDEX, is_torch
from teleojax.sources._index import Source, Storage, TensorSpec, natural_key
from teleojax.sources._open import MergedSource
from teleojax.sources._quantised import dequantised, without_quantised
from teleojax.sources._safetensors import INDEX_SUFFIX, SafetensorsSource, read_index
from teleojax.sources._torch import TorchSource

TRAINER = re.compile(r"(training_args|optimizer|optim|scheduler|scaler|rng_state.*|random_states.*)\.[a-z]+")


def open_safetensors(path: Path) -> Source:
    """The tensors of one file, or of the shards that an index names; quantised ones as what they stand for."""
    indexed = path.name.endswith(INDEX_SUFFIX)
    return dequantised(SafetensorsSource.from_index(path) if indexed else SafetensorsSource([path]))


def open_safetensors_directory(path: Path, entries: Sequence[Path], name: str) -> Source:
    """The tensors that the directory's index names, else those of all its `*.safetensors`, as `open_safetensors` does.

    Raises InputError where there are several indexes and none of them has the usual name.
    """
    if index := index_of(path, entries, INDEX_SUFFIX, "model"):
        return dequantised(SafetensorsSource.from_index(index, name=name))
    shards = [p for p in entries if p.suffix.lower() == ".safetensors" and not p.is_dir()]
    return dequantised(SafetensorsSource(shards, name=name))


def index_of(path: Path, entries: Sequence[Path], suffix: str, usual: str) -> Path | None:
    """The one index among the entries, or the one named `usual` + `suffix`; None where there is none.

    Raises InputError where there are several and none of them has the usual name.
    """
    indexes = [p for p in entries if p.name.endswith(suffix)]
    preferred = [p for p in indexes if p.name == usual + suffix]
    if len(indexes) > 1 and not preferred:
        raise InputError(
            path,
            found=f"{len(indexes)} indexes ({', '.join(p.name for p in indexes[:3])}, ...)",
            needed="one index",
            remedy="Give the path of the index to read.",
        )
    return next(iter(preferred or indexes), None)


@dataclass(slots=True)
class Part:
    """Some of the tensors of a source."""

    whole: Source
    name: str
    specs: tuple[TensorSpec, ...]
    storages: tuple[str, ...]

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """What the source opens."""
        return self.whole.open(storage)


def open_torch_index(index: Path, *, name: str | None = None) -> MergedSource:
    """The PyTorch shards that a Hugging Face `*.bin.index.json` names, all in or below its directory.

    The index decides which shard a tensor is read from; tensors it does not name are read where they are.
    Raises CorruptInputError for an index that is malformed, points outside its directory or promises a tensor that its
    shard does not hold, InputError for a missing shard.
    """
    home = read_index(index)
    parts: list[Part] = []
    for shard in sorted(set(home.values()), key=lambda s: natural_key(str(s))):
        source = _torch(index.parent / shard)
        promised = {tensor for tensor, file in home.items() if file == shard}
        if absent := sorted(promised - {s.name for s in source.specs}):
            raise CorruptInputError(
                index.parent / shard,
                found=f"no tensor {absent[0][:120]!r}" + (f" nor {len(absent) - 1} more" if absent[1:] else ""),
                needed=f"the {len(promised)} tensors that {index.name} promises",
                remedy="Index and shards belong to different models: download both again.",
            )
        specs = tuple(s for s in source.specs if home.get(s.name, shard) == shard)
        parts.append(Part(source, source.name, specs, source.storages))
    return MergedSource(parts, [p.name for p in parts], name or index.parent.resolve().name)


def open_torch(path: Path) -> Source:
    """The tensors of one PyTorch file, or of the shards that an index names."""
    return open_torch_index(path) if path.name.endswith(TORCH_INDEX) else _torch(path)


def _torch(path: Path) -> Source:
    return without_quantised(TorchSource(path), "not dequantised from a PyTorch file: convert it to safetensors")


def is_torch_directory(_: Path, entries: Sequence[Path]) -> bool:
    """Whether there are PyTorch weights: an index, or files of any usual name that begin as PyTorch's do."""
    return any(p.name.endswith(TORCH_INDEX) for p in entries) or bool(_torch_files(entries))


def open_torch_directory(path: Path, entries: Sequence[Path], name: str) -> Source:
    """The tensors that the directory's index names, else those of all its PyTorch files but a trainer's own."""
    if index := index_of(path, entries, TORCH_INDEX, "pytorch_model"):
        return open_torch_index(index, name=name)
    files = _torch_files(entries)
    return MergedSource.of(files, name) if len(files) > 1 else _torch(files[0])


def _torch_files(entries: Sequence[Path]) -> list[Path]:
    files = []
    for p in entries:
        if p.suffix.lower() in (".pt", ".pth", ".bin", ".ckpt") and not TRAINER.fullmatch(p.name) and not p.is_dir():
            with p.open("rb") as f:
                files += [p] if is_torch(f.read(HEAD_BYTES), p) else []
    return files
