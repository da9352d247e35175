"""One HDF5 dataset: what it is, where its values lie, and how to get at those that cannot be read in place."""

from __future__ import annotations

import math
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError
from teleojax.sources._index import COMPLEX, TensorSpec, skip_reason
from teleojax.sources._ranges import Ranges, boxes
from teleojax.sources._slabs import split_box

MAX_CHUNK_BYTES = 256 << 20  # a chunk is decompressed whole
CACHE_BYTES = 64 << 20  # of chunks that the library keeps, so that one which reaches into the next window is read once
TOUCH_BYTES, TOUCH_CHUNKS = 4 << 20, 64  # of chunks in one call, which takes memory for every row of each
CACHE_SLOTS = 100_003  # a prime, as the library asks
DEFLATE_RATIO = 1032  # the most that a byte of deflate data can become
INFLATE_BYTES = 256 << 20  # what a chunk may become before anyone looks whether it fits its chunk
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100_000  # declared sizes past both are refused
CLASSES = {  # of types, as numbered in the format
    2: "time",
    3: "string",
    4: "bit field",
    5: "opaque",
    6: "structured",
    7: "reference",
    8: "enumerated",
    9: "variable-length",
    10: "array",
    11: "complex",
}
BFLOAT16 = (15, 7, 8, 0, 7)  # sign position, exponent position and size, mantissa position and size; the bias is 127


def library() -> Any:
    """The h5py package, which gives names to most of its parts only when it runs."""
    return import_module("h5py")


def dataset_spec(dataset: Any, name: str, path: Path, base: int) -> TensorSpec:
    """The specification of an h5py DatasetID of the file `path`, whose HDF5 data begins at byte `base`.

    Values that lie in one piece are in the storage of the file, any others in a storage of the dataset's own.
    """
    h5 = library()
    own, plist, space = f"{path}:{name}", dataset.get_create_plist(), dataset.get_space()
    dtype, in_place, reason = _type(dataset)
    if space.get_simple_extent_type() == h5.h5s.NULL:
        return TensorSpec(name, (0,), dtype, own, 0, 0, reason or "empty")
    shape, layout = tuple(int(n) for n in dataset.shape), plist.get_layout()
    reason = reason or (skip_reason(dtype, shape) if dtype not in COMPLEX else None)
    reason = reason or _layout_reason(dataset, plist, layout, shape)
    nbytes = math.prod(shape) * dataset.get_type().get_size()
    offset = dataset.get_offset() if in_place and layout == h5.h5d.CONTIGUOUS and reason is None else None
    reason = reason or skip_reason(dtype, shape)
    if offset is None:
        return TensorSpec(name, shape, dtype, own, 0, nbytes, reason)
    return TensorSpec(name, shape, dtype, str(path), base + offset, nbytes, reason)


def _type(dataset: Any) -> tuple[str, bool, str | None]:
    """Name of the type, whether its bytes are as they must be, and why it cannot be read whatever the shape."""
    h5 = library()
    tid = dataset.get_type()
    kind = tid.get_class()
    if kind == h5.h5t.FLOAT:
        for bits in (16, 32, 64):
            little, big = getattr(h5.h5t, f"IEEE_F{bits}LE"), getattr(h5.h5t, f"IEEE_F{bits}BE")
            if tid.equal(little) or tid.equal(big):
                return f"float{bits}", tid.equal(little), None
        if tid.get_size() == 2 and tid.get_fields() == BFLOAT16 and tid.get_ebias() == 127:
            little = tid.get_order() == h5.h5t.ORDER_LE
            return "bfloat16", little, None if little else "big-endian bfloat16 is not read"
        return "float", False, f"a floating-point type of {tid.get_size()} bytes that is none of IEEE 754's"
    if kind == h5.h5t.OPAQUE and tid.get_size() == 2 and str(h5.Dataset(dataset).attrs.get("dtype")) == "bfloat16":
        return "bfloat16", True, None  # as Keras writes it
    if kind == h5.h5t.INTEGER:
        dtype = f"{'int' if tid.get_sign() else 'uint'}{8 * tid.get_size()}"
        return dtype, False, f"integer type {dtype}"
    if kind == h5.h5t.COMPOUND and (dtype := _complex(tid)) is not None:
        return dtype, True, None
    dtype = CLASSES.get(kind, f"HDF5 class {kind}")
    return dtype, False, f"{dtype} type"


def _complex(tid: Any) -> str | None:
    """The complex type that a structured one is: a real and an imaginary part, little-endian, as h5py writes them."""
    h5 = library()
    if tid.get_nmembers() != 2 or [tid.get_member_name(i) for i in (0, 1)] != [b"r", b"i"]:
        return None
    for bits in (32, 64):
        part = getattr(h5.h5t, f"IEEE_F{bits}LE")
        placed = [tid.get_member_offset(i) for i in (0, 1)] == [0, bits // 8] and tid.get_size() == bits // 4
        if placed and all(tid.get_member_type(i).equal(part) for i in (0, 1)):
            return f"complex{2 * bits}"
    return None


def _layout_reason(dataset: Any, plist: Any, layout: int, shape: tuple[int, ...]) -> str | None:
    h5 = library()
    if layout == h5.h5d.VIRTUAL:
        return "a virtual dataset, which shows values of others"
    if plist.get_external_count():
        return "its values lie in other files"
    stored, itemsize = dataset.get_storage_size(), dataset.get_type().get_size()
    if not stored:
        return "no value was ever written"
    if layout != h5.h5d.CHUNKED:
        return None
    nbytes, chunk = math.prod(shape) * itemsize, math.prod(plist.get_chunk()) * itemsize
    if chunk > MAX_CHUNK_BYTES:
        return f"chunks of {chunk} bytes (at most {MAX_CHUNK_BYTES} are read)"
    if nbytes > BOMB_BYTES and nbytes > BOMB_RATIO * stored:
        return f"{nbytes} bytes of values in {stored} bytes of chunks, which is a decompression bomb"
    codes = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if missing := next((c for c in codes if not h5.h5z.filter_avail(c)), None):
        return f"compressed by filter {missing}, which the HDF5 library here does not have"
    deflate, checksum = h5.h5z.FILTER_DEFLATE, h5.h5z.FILTER_FLETCHER32
    if deflate in codes and any(c != checksum for c in codes[codes.index(deflate) + 1 :]):
        return f"the filters {codes} in an order that is not read"
    return None


def open_dataset(file: Any, raw_path: bytes, name: str) -> Ranges:
    """A dataset of an open h5py File as its C-ordered little-endian bytes. Closes the file in the end.

    Beside the window it holds one chunk, at most MAX_CHUNK_BYTES, compressed and not, and CACHE_BYTES of others.
    Raises CorruptInputError when chunks are not what they are said to be.
    """
    h5 = library()
    access = h5.h5p.create(h5.h5p.DATASET_ACCESS)
    access.set_chunk_cache(CACHE_SLOTS, CACHE_BYTES, 1.0)
    dataset = h5.h5d.open(file.id, raw_path, access)
    _refuse_bombs(dataset, name)
    plist = dataset.get_create_plist()
    tid, shape = dataset.get_type(), tuple(int(n) for n in dataset.shape)
    if tid.get_class() == h5.h5t.FLOAT and tid.get_order() != h5.h5t.ORDER_LE:
        tid = getattr(h5.h5t, f"IEEE_F{8 * tid.get_size()}LE")
    itemsize = tid.get_size()

    chunk = plist.get_chunk() if plist.get_layout() == h5.h5d.CHUNKED else shape
    most = min(TOUCH_CHUNKS, TOUCH_BYTES // max(1, math.prod(chunk) * itemsize))

    def read(start: int, stop: int, out: np.ndarray) -> None:
        for box in boxes(shape, start // itemsize, stop // itemsize):
            part_of_out = out[box.first * itemsize : (box.first + box.size) * itemsize]
            whole = tuple((a, a + n) for a, n in zip(box.start, box.count, strict=True))
            for part in split_box(whole, chunk, most):
                space, memory = dataset.get_space(), h5.h5s.create_simple(box.count or (1,))
                if shape:
                    count = tuple(b - a for a, b in part)
                    space.select_hyperslab(tuple(a for a, _ in part), count)
                    memory.select_hyperslab(tuple(a - o for (a, _), o in zip(part, box.start, strict=True)), count)
                try:
                    dataset.read(memory, space, part_of_out, tid)
                except Exception as e:
                    raise _damaged(name, f"values that cannot be read ({' '.join(str(e).split())[:200]})") from e

    return Ranges(name, math.prod(shape) * itemsize, read, file.close)


def _refuse_bombs(dataset: Any, name: str) -> None:
    """Raise where a chunk becomes more than a chunk: the library would inflate it whole before it looks."""
    h5 = library()
    plist = dataset.get_create_plist()
    if plist.get_layout() != h5.h5d.CHUNKED:
        return
    codes = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    chunk = math.prod(plist.get_chunk()) * dataset.get_type().get_size()
    most = chunk + chunk // 8 + 4096  # what does not compress grows a little
    large: list[tuple[int, ...]] = []

    def look(info: Any) -> None:
        if info.size > most:
            raise _damaged(name, f"a chunk of {chunk} bytes that is stored in {info.size}")
        if h5.h5z.FILTER_DEFLATE in codes and info.size * DEFLATE_RATIO > INFLATE_BYTES:
            large.append(info.chunk_offset)

    dataset.chunk_iter(look)
    for offset in large:
        mask, raw = dataset.read_direct_chunk(offset)
        if not mask >> codes.index(h5.h5z.FILTER_DEFLATE) & 1:
            _refuse_bomb(raw, chunk, name)


def _refuse_bomb(raw: bytes, most: int, name: str) -> None:
    inflater, total, rest = zlib.decompressobj(), 0, raw
    try:
        while rest and not inflater.eof:
            total += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
            if total > most:
                raise _damaged(name, f"a chunk of {most} bytes that becomes more")
    except zlib.error as e:
        raise _damaged(name, f"a chunk that cannot be decompressed ({e})") from e


def _damaged(name: str, found: str) -> CorruptInputError:
    return CorruptInputError(
        name,
        found=found,
        needed="an intact HDF5 dataset",
        remedy="The file is truncated or damaged: copy or write it again.",
    )
