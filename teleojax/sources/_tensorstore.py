"""Arrays that TensorStore reads (zarr 2 and 3, plain or in OCDBT), as the bytes they have in C order.

Memory: a window is filled from slabs of whole chunks (see `_slabs`). Slabs that lie in the window are decompressed
straight into it; the one that crosses its end is held, HOLD_BYTES at most, until the next window has taken its rest.
Each chunk is then read once, unless a row of chunks is larger than HOLD_BYTES: it is read as few times as slabs of that
size allow. TensorStore keeps no chunk (its cache is for the index of OCDBT alone) and is asked for TOUCH_BYTES of
chunks at a time. A chunk of more than HOLD_BYTES is decompressed whole all the same, as both formats need: it is held
instead, and reading takes three times its bytes (compressed, decompressed, held). Past MAX_CHUNK_BYTES it is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources._slabs import plan_slabs, split_box

HOLD_BYTES = 64 << 20  # of the slab that crosses the end of a window; so large for sharded layers of a few GB
TOUCH_BYTES = 64 << 20  # of chunks that TensorStore decompresses at once
MAX_CHUNK_BYTES = 2 << 30  # where Orbax itself cuts chunks by default (its ocdbt_target_data_file_size)
MAX_ARRAY_BYTES = 1 << 46  # 64 TiB: a damaged shape must not plan more windows than there is memory for
INDEX_BYTES = 16 << 20  # of OCDBT's index in TensorStore's cache
OPEN_AT_ONCE = 256  # arrays whose metadata is asked for together
READS_AT_ONCE = 16  # files; one disk gains nothing from more, and each takes memory for what it reads


NOTHING = (0, np.empty(0, np.uint8))  # held: the first byte, the bytes


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What the metadata of an array say: no values. `dtype` is the NumPy / ml_dtypes name, or TensorStore's own.

    A chunk may be longer than the array.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, decompressed."""
        return math.prod(self.chunk) * self.itemsize


class TensorStoreStorage:
    """The values of one array in C order, little-endian, from byte 0 on.

    `spec` is a TensorStore spec in JSON form, `where` what errors call the array, `context` one of `reading_context`
    for arrays that share a cache. Any driver will do; a zarr directory is

        TensorStoreStorage({"driver": "zarr3", "kvstore": {"driver": "file", "path": "/data/w/"}}, "/data: tensor 'w'")

    with an absolute path that ends in a slash, and "zarr" for version 2. A chunk that is not there stands for its fill
    value, as zarr has it; with `"fill_missing_data_reads": False` in the spec it is an error. Windows may come in any
    order; rising ones read no chunk twice that memory could hold.

    Raises MissingExtraError without TensorStore, InputError when the array may not be opened or its chunks are larger
    than MAX_CHUNK_BYTES, CorruptInputError when metadata or chunks are missing or damaged.
    """

    mapped: bool = False
    size: int | None

    def __init__(self, spec: Mapping[str, Any], where: str, context: Any = None) -> None:
        (found,) = _opened([spec], where, context or reading_context(where))
        layout = _layout(found)
        if isinstance(layout, Exception):
            raise failure(where, layout) from layout
        if layout.chunk_bytes > MAX_CHUNK_BYTES:
            raise InputError(
                where,
                found=f"chunks of {layout.chunk_bytes} bytes (shape {layout.chunk}), which are decompressed whole",
                needed=f"chunks of at most {MAX_CHUNK_BYTES} bytes",
                remedy="Write it again in smaller chunks (in Orbax: SaveArgs(chunk_byte_size=2**26)).",
            )
        self._where, self._layout = where, layout
        self._store = found if layout.shape else found[None]
        self._dtype = found.dtype.numpy_dtype
        shape, hold = tuple(max(1, n) for n in layout.shape) or (1,), max(HOLD_BYTES, layout.chunk_bytes)
        chunk = tuple(min(c, n) for c, n in zip(layout.chunk or (1,), shape, strict=True))
        self._slabs = plan_slabs(shape, chunk, hold // layout.itemsize)
        self._held = NOTHING
        self._begun: list[Any] = []
        self.size = self._size = layout.nbytes
        self.position = 0

    def __enter__(self) -> TensorStoreStorage:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what is held."""
        self._held, self._begun = NOTHING, []

    def prepare(self, start: int, stop: int) -> None:
        """Nothing: an array is read when its window is."""

    def begin(self) -> None:
        """Read the whole array in the background and hold it until its windows have taken it."""
        if self._layout.chunk_bytes <= HOLD_BYTES:  # chunks may be longer than the array
            held = np.empty(self._size, np.uint8)
            self._held = (0, held)
            self._begun = list(self._read(0, self._size, held))

    def window(self, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Bytes [start, stop), read into `buffer`. Raises CorruptInputError, InputError: the array cannot be read."""
        if buffer is None:
            raise TypeError("chunks need a buffer to be read into")
        if stop > self._size:
            raise changed(self._where, self._size, stop)
        out = buffer[: stop - start]
        at = start
        while at < stop:
            here = out[at - start :]
            slab, slab_stop = self._slab(at)
            whole = self._size if stop == self._size else self._slab(stop)[0]
            first, held = self._held
            if first <= at < first + len(held):
                self._wait()
                whole = min(stop, first + len(held))
                here[: whole - at] = held[at - first : whole - first]
                if whole == first + len(held):
                    self._held = NOTHING
            elif at == slab and whole > at and here.ctypes.data % self._dtype.alignment == 0:
                for pending in self._read(at, whole, here):
                    self._end(pending)
            else:
                self._held = NOTHING  # before there is another
                held, whole = np.empty(slab_stop - slab, np.uint8), at
                for pending in self._read(slab, slab_stop, held):
                    self._end(pending)
                self._held = (slab, held)
            self.position = at = whole
        return out

    def _slab(self, byte: int) -> tuple[int, int]:
        first, last = self._slabs.around(byte // self._layout.itemsize)
        return first * self._layout.itemsize, last * self._layout.itemsize

    def _wait(self) -> None:
        while self._begun:
            self._end(self._begun.pop())

    def _end(self, pending: Any) -> None:
        try:
            pending.result()
        except Exception as e:  # TensorStore raises ValueError and others for whatever a disk can hold
            self._held = NOTHING
            raise failure(self._where, e) from e

    def _read(self, start: int, stop: int, out: np.ndarray) -> Iterator[Any]:
        """Read whole slabs, bytes [start, stop), into the front of `out`: futures of parts, each begun when taken."""
        import tensorstore

        itemsize, chunk, done = self._layout.itemsize, self._slabs.chunk, 0
        most = TOUCH_BYTES // self._layout.chunk_bytes
        for box in self._slabs.boxes(start // itemsize, stop // itemsize):
            extents = tuple(b - a for a, b in box)
            n = math.prod(extents) * itemsize
            target = tensorstore.array(out[done : done + n].view(self._dtype).reshape(extents), copy=False)
            for part in split_box(box, chunk, most):
                inside = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(part, box, strict=True))
                yield target[inside].write(self._store[tuple(slice(a, b) for a, b in part)])
            done += n


def reading_context(where: object) -> Any:
    """A TensorStore context that caches no chunks. Raises MissingExtraError without TensorStore."""
    try:
        import tensorstore
    except ImportError as e:
        raise MissingExtraError(where, package="tensorstore", extra="orbax") from e
    return tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "cache_pool#ocdbt": {"total_bytes_limit": INDEX_BYTES},
            "file_io_concurrency": {"limit": READS_AT_ONCE},
        }
    )


def array_layouts(
    specs: Sequence[Mapping[str, Any]], where: object, context: Any = None
) -> Iterator[ArrayLayout | Exception]:
    """The layouts of many arrays, in order, or why one cannot be opened. Raises MissingExtraError."""
    context = context or reading_context(where)
    for first in range(0, len(specs), OPEN_AT_ONCE):
        for found in _opened(specs[first : first + OPEN_AT_ONCE], where, context):
            yield _layout(found)


def _layout(store: Any) -> ArrayLayout | Exception:
    """The layout of an open TensorStore, or the error there was instead. Without chunks the array is one."""
    if isinstance(store, Exception):
        return store
    shape = tuple(int(n) for n in store.shape)
    chunk = tuple(max(1, int(c) or n) for c, n in zip(store.chunk_layout.read_chunk.shape or shape, shape, strict=True))
    layout = ArrayLayout(shape, chunk, store.dtype.name, store.dtype.numpy_dtype.itemsize)
    if layout.nbytes > MAX_ARRAY_BYTES:
        return OverflowError(f"an array of {layout.nbytes} bytes, of shape {shape}")
    return layout


def failure(where: object, e: Exception) -> InputError:
    """What TensorStore's exception means for whoever has the files."""
    text = " ".join(re.sub(r"\[(tensorstore_spec|source locations)=.*", "", str(e), flags=re.DOTALL).split())[:300]
    code, _, reason = text.partition(": ")
    text = reason if code.isupper() else text or type(e).__name__
    if code == "PERMISSION_DENIED" or "Permission denied" in text:
        return InputError(
            where,
            found=f"permission denied ({text})",
            needed="files that may be read",
            remedy="Check their owner and mode: ls -l",
        )
    missing = code == "NOT_FOUND"
    return CorruptInputError(
        where,
        found=text if missing else f"data that cannot be read ({text})",
        needed="every chunk of the array, as it was written",
        remedy="The copy is incomplete: copy or save it again."
        if missing
        else "The files are truncated or damaged: copy or save them again.",
    )


def changed(where: str, size: int | None, needed: int) -> CorruptInputError:
    """The array is not as long as it was when it was listed."""
    return CorruptInputError(
        where,
        found=f"{size} bytes",
        needed=f"{needed} bytes",
        remedy="The array was written again since it was listed: start again.",
    )


def _opened(specs: Sequence[Mapping[str, Any]], where: object, context: Any) -> list[Any]:
    try:
        import tensorstore
    except ImportError as e:
        raise MissingExtraError(where, package="tensorstore", extra="orbax") from e

    def begin(spec: Mapping[str, Any]) -> Any:
        try:
            return tensorstore.open(dict(spec), context=context, read=True, open=True)
        except Exception as e:  # a spec that does not parse: a path that leads out of its directory, say
            return e

    def end(begun: Any) -> Any:
        try:
            return begun if isinstance(begun, Exception) else begun.result()
        except Exception as e:  # its own kinds, of which ValueError is the commonest
            return e

    return [end(begun) for begun in [begin(spec) for spec in specs]]
