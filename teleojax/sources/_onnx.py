"""ONNX: the weights of a model's graphs, read where they lie in the mapped file or in the files beside it.

The model is cut into the messages of its tensors and nodes, and each of those, its values left out where they are many,
is parsed by the `onnx` package: no model is ever parsed or copied whole.
Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from teleojax._errors import CorruptInputError, MissingExtraError
from teleojax.sources._index import COMPLEX, Storage, TensorSpec, skip_reason
from teleojax.sources._onnx_external import external_extent
from teleojax.sources._onnx_scan import DOUBLES, FLOATS, RAW, Found, Scan, text
from teleojax.sources._pytree import number_repeats
from teleojax.sources._storage import MappedFile, Memory

TYPED_BYTES = 1 << 26  # of a tensor whose values are written as numbers, of one to ten bytes each
MAX_RANK = 64  # NumPy's limit


class OnnxSource:
    """Initializers of all graphs, those in nodes too, and tensors of Constant nodes, which are named by their output.

    Names that repeat in different graphs get "#1", "#2", ... int8 behind a DequantizeLinear with one positive scale and
    no zero point is read as numbers; other integers, sparse tensors and those of less than a byte a value are listed as
    skipped. Values written as numbers, not as bytes, are parsed when their turn comes, up to TYPED_BYTES of them.
    Raises MissingExtraError without `onnx`, InputError when a file cannot be opened or is missing, CorruptInputError
    when one is damaged, when two tensors of a graph share a name, or when external data lie outside the model's
    directory.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnx  # noqa: F401
        except ImportError as e:
            raise MissingExtraError(path, package="onnx", extra="onnx") from e
        self._path = path
        self._typed: dict[str, Found] = {}
        self._sizes: dict[Path, int] = {}
        with MappedFile(path) as file:
            raw = file.window(0, file.size or 0, None)
            try:
                scan = Scan(raw.data)
                found = sorted(scan.model(), key=lambda f: f.graph)  # a graph before those in its nodes
                scales = [scan.scale(f) for f in found]
            except Exception as e:  # of the scan and of the package, whose DecodeError is no ValueError
                raise _damaged(path, str(e) or type(e).__name__) from e
        if not scan.graphs:
            raise _damaged(path, f"{raw.size} bytes without a graph")
        named = [text(f.message.name) for f in found]
        for (_, name), n in Counter((f.graph, name) for f, name in zip(found, named, strict=True) if name).items():
            if n > 1:
                raise _damaged(f"{path}: tensor {name[:120]!r}", f"{n} tensors of that name in one graph")
        names = number_repeats(name or f"tensor{i}" for i, name in enumerate(named))
        self.specs = tuple(
            _with_scale(self._spec(name, f), scale) for name, f, scale in zip(names, found, scales, strict=True)
        )
        self.name, self.files = path.name, (path, *self._sizes)
        self.storages = tuple(dict.fromkeys(s.storage for s in self.specs))

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """A file, mapped read-only, or the values of one tensor that are written as numbers."""
        if storage not in self._typed:
            return MappedFile(Path(storage))
        import onnx

        found = self._typed[storage]
        with MappedFile(self._path) as file:
            raw = file.window(found.field.start, found.field.stop, None).tobytes()
        try:
            array = onnx.numpy_helper.to_array(onnx.TensorProto.FromString(raw))
        except Exception as e:  # of the package: the numbers do not fit the shape
            raise _damaged(storage, str(e) or type(e).__name__) from e
        return Memory(np.ascontiguousarray(array))

    def _spec(self, name: str, found: Found) -> TensorSpec:
        from onnx import TensorProto

        message, where = found.message, f"{self._path}: tensor {name[:120]!r}"
        shape = tuple(message.dims)
        if min(shape, default=0) < 0 or len(shape) > MAX_RANK:
            raise _damaged(where, f"the shape {shape[:8]}")
        dtype, itemsize = _type_of(message.data_type)
        reason = "sparse" if found.sparse else "a string" if dtype == "string" else skip_reason(dtype, shape)
        spec = TensorSpec(name, shape, dtype, str(self._path), 0, math.prod(shape) * itemsize, reason)
        if reason not in (None, "integer type int8") and (dtype not in COMPLEX or found.sparse):
            return spec
        if message.data_location == TensorProto.EXTERNAL:
            file, offset = external_extent(self._path, where, message.external_data, spec.nbytes, self._sizes)
            return replace(spec, storage=str(file), offset=offset)
        values = found.values
        if values is None or (values.number, dtype) not in ((RAW, dtype), (FLOATS, "float32"), (DOUBLES, "float64")):
            return self._written(spec, found, where)
        if values.stop - values.start != spec.nbytes:
            raise _damaged(where, f"{values.stop - values.start} bytes of values for {dtype} of shape {shape[:8]}")
        return replace(spec, offset=values.start)

    def _written(self, spec: TensorSpec, found: Found, where: str) -> TensorSpec:
        """Of a tensor whose values are written as numbers."""
        n_bytes = found.field.stop - found.field.start
        if n_bytes > TYPED_BYTES:
            return replace(spec, skip=f"{n_bytes} bytes of numbers, of which at most {TYPED_BYTES} are parsed")
        if spec.size > n_bytes:  # each takes at least one
            raise _damaged(where, f"{n_bytes} bytes for {spec.size} values")
        storage = f"{self._path}:{spec.name}"
        self._typed[storage] = found
        return replace(spec, storage=storage)


def _type_of(number: int) -> tuple[str, int]:
    """NumPy or ml_dtypes name of a type, and bytes a value; of types of less than a byte, 1."""
    from onnx import TensorProto, helper

    try:
        name = TensorProto.DataType.Name(number)
        if name == "STRING":
            return "string", 0
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(number))
        return dtype.name, dtype.itemsize
    except (ValueError, KeyError, TypeError):
        return f"type {number}", 0


def _with_scale(spec: TensorSpec, scale: float | str | None) -> TensorSpec:
    """An int8 tensor as the numbers that it stands for, or with the reason why not."""
    if spec.skip != "integer type int8" or scale is None:
        return spec
    return replace(spec, skip=scale) if isinstance(scale, str) else replace(spec, skip=None, scale=scale)


def _damaged(where: object, found: str) -> CorruptInputError:
    return CorruptInputError(
        where,
        found=found,
        needed="an intact ONNX model",
        remedy="The file is truncated or damaged: copy or export it again.",
    )
