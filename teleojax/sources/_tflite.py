"""TensorFlow Lite: the constant tensors of a `.tflite` flatbuffer, read where they lie in the mapped file.

Schema: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError, MissingExtraError, TeleojaxError
from teleojax.sources._index import TensorSpec, skip_reason
from teleojax.sources._names import bounded
from teleojax.sources._pytree import number_repeats
from teleojax.sources._storage import MappedFile

IDENTIFIER = b"TFL3"  # at bytes 4 to 8
MAX_RANK = 64  # NumPy's limit; TensorFlow Lite itself stops at 8
TYPES = {  # TensorType: (NumPy / ml_dtypes name, bytes a value; 0 where that is no whole number)
    0: ("float32", 4),
    1: ("float16", 2),
    2: ("int32", 4),
    3: ("uint8", 1),
    4: ("int64", 8),
    5: ("string", 0),
    6: ("bool", 1),
    7: ("int16", 2),
    8: ("complex64", 8),
    9: ("int8", 1),
    10: ("float64", 8),
    11: ("complex128", 16),
    12: ("uint64", 8),
    13: ("resource", 0),
    14: ("variant", 0),
    15: ("uint32", 4),
    16: ("uint16", 2),
    17: ("int4", 0),
    18: ("bfloat16", 2),
}


class TfliteSource:
    """Every tensor of every subgraph that has a constant buffer; tensors that share a buffer are listed once.

    Names are kept as they are (";" joins the names of fused operations); a name that repeats gets "#1", "#2", ...
    int8 with one scale and no zero point is read as numbers. Other integers, sparse tensors and tensors whose buffer
    does not fit their shape are listed as skipped.
    Raises MissingExtraError without the `tflite` package, InputError when the file cannot be opened,
    CorruptInputError when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tflite
        except ImportError as e:
            raise MissingExtraError(path, package="tflite", extra="tflite") from e
        with MappedFile(path) as file:
            raw = file.window(0, file.size or 0, None)
            if bytes(raw[4:8]) != IDENTIFIER:
                raise CorruptInputError(
                    path,
                    found=f"the identifier {bytes(raw[4:8])!r} in a file of {file.size} bytes",
                    needed=f"{IDENTIFIER!r} at bytes 4 to 8",
                    remedy="The file is truncated or not TensorFlow Lite: copy or convert it again.",
                )
            try:
                model = tflite.Model.GetRootAs(raw, 0)
                specs = list(bounded(_Scan(path, raw).tensors(model), attrgetter("name"), path))
            except TeleojaxError:
                raise
            except Exception as e:  # flatbuffers follows any offset: struct, index, type and value errors come out
                raise _damaged(path, f"an offset that leads out of the file ({str(e) or type(e).__name__})") from e
        _refuse_overlaps(path, specs)
        names = number_repeats(s.name for s in specs)
        self.specs = tuple(replace(s, name=n) for s, n in zip(specs, names, strict=True))
        self.name, self.storages = path.name, (str(path),)

    def open(self, storage: str) -> MappedFile:
        """The file, mapped read-only."""
        return MappedFile(Path(storage))


@dataclass
class _Scan:
    path: Path
    raw: np.ndarray

    def tensors(self, model: Any) -> Iterator[TensorSpec]:
        limit = self.raw.size // 4  # each takes at least the four bytes of its entry in a vector
        seen: set[tuple[int, int]] = set()
        visited = 0
        for i in range(model.SubgraphsLength()):
            subgraph = model.Subgraphs(i)
            for j in range(subgraph.TensorsLength()):
                visited = _bounded(self.path, visited + 1, limit, "tensors")  # subgraphs may share a vector
                tensor = subgraph.Tensors(j)
                extent = self.extent(model, tensor.Buffer())
                if extent[1] and extent not in seen:
                    seen.add(extent)
                    yield self.spec(tensor, f"subgraph{i}.tensor{j}", *extent)

    def extent(self, model: Any, index: int) -> tuple[int, int]:
        """Offset and length of a buffer in the file; length 0 for a tensor that is computed."""
        _bounded(self.path, index + 1, model.BuffersLength(), "buffers")
        buffer = model.Buffers(index)
        if buffer.Offset() > 1:  # a model past 2 GB keeps its values after the flatbuffer; 0 and 1 mean it does not
            offset, nbytes = buffer.Offset(), buffer.Size()
            if offset + nbytes > self.raw.size:
                raise CorruptInputError(
                    self.path,
                    found=f"{self.raw.size} bytes",
                    needed=f"{offset + nbytes} for buffer {index} ({offset + nbytes - self.raw.size} missing)",
                    remedy="The file is truncated: copy or download it again.",
                )
            return offset, nbytes
        if buffer.DataLength() == 0:
            return 0, 0
        data = buffer.DataAsNumpy()  # raises when it does not lie in the file
        return data.__array_interface__["data"][0] - self.raw.__array_interface__["data"][0], data.size

    def spec(self, tensor: Any, fallback: str, offset: int, nbytes: int) -> TensorSpec:
        name = tensor.Name()
        name = name.decode("utf-8", errors="backslashreplace") if name else fallback
        rank = _bounded(f"{self.path}: tensor {name!r}", tensor.ShapeLength(), MAX_RANK, "dimensions")
        shape = tuple(int(n) for n in tensor.ShapeAsNumpy()) if rank else ()
        if min(shape, default=0) < 0:
            raise _damaged(f"{self.path}: tensor {name!r}", f"a constant of shape {shape}")
        dtype, itemsize = TYPES.get(tensor.Type(), (f"type {tensor.Type()}", 0))
        skip = _reason(tensor, dtype, itemsize, shape, nbytes)
        scale = float(tensor.Quantization().Scale(0)) if dtype == "int8" and skip is None else 1.0
        return TensorSpec(name, shape, dtype, str(self.path), offset, nbytes, skip, scale=scale)


def _reason(tensor: Any, dtype: str, itemsize: int, shape: tuple[int, ...], nbytes: int) -> str | None:
    if tensor.Sparsity() is not None:
        return "sparse"
    if dtype.startswith(("int", "uint")):
        quantisation = tensor.Quantization()
        n_scales = 0 if quantisation is None else quantisation.ScaleLength()
        if quantisation is None or not n_scales:
            return skip_reason(dtype, shape)
        if dtype != "int8" or n_scales > 1:
            return f"quantised {dtype} with {n_scales} scales (not read yet)"
        if quantisation.ZeroPointLength() and quantisation.ZeroPoint(0):
            return "quantised int8 with a zero point that is not 0"
        if not 0 < quantisation.Scale(0) < math.inf:
            return f"quantised int8 with the scale {quantisation.Scale(0)}"
        return _size_reason(dtype, itemsize, shape, nbytes)
    if not itemsize:
        return f"{dtype} is not a number" if not dtype.startswith("type") else f"unknown {dtype}"
    return _size_reason(dtype, itemsize, shape, nbytes) or skip_reason(dtype, shape)


def _size_reason(dtype: str, itemsize: int, shape: tuple[int, ...], nbytes: int) -> str | None:
    if math.prod(shape) * itemsize != nbytes:
        return f"{nbytes} bytes of {dtype} do not fill the shape {shape}"
    return None


def _bounded(where: object, n: int, limit: int, what: str) -> int:
    if n > limit:
        raise _damaged(where, f"{n} {what}, where at most {limit} can be")
    return n


def _refuse_overlaps(path: Path, specs: list[TensorSpec]) -> None:
    end = 0
    for spec in sorted(specs, key=lambda s: s.offset):
        if spec.offset < end:
            raise _damaged(f"{path}: tensor {spec.name!r}", "a buffer that overlaps another")
        end = spec.offset + spec.nbytes


def _damaged(where: object, found: str) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=found,
        needed="an intact TensorFlow Lite flatbuffer",
        remedy="The file is truncated or damaged: copy or convert it again.",
    )
