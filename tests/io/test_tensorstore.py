"""Arrays that TensorStore writes, read back as their C-order bytes: every chunk once, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore

from teleojax._errors import CorruptInputError, InputError
from teleojax.sources import Storage, _readahead, _tensorstore
from teleojax.sources._readahead import ReadAhead
from teleojax.sources._tensorstore import TensorStoreStorage, array_layouts, reading_context


def plain(path: Path, driver: str = "zarr", **more) -> dict:
    return {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}, **more}


def write(path: Path, array: np.ndarray, chunk: tuple[int, ...], *, zarr3: bool = False, shard=None) -> dict:
    if zarr3:
        inner = {"name": "regular", "configuration": {"chunk_shape": shard or chunk}}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
        if shard:
            codecs = [{"name": "sharding_indexed", "configuration": {"chunk_shape": chunk, "codecs": codecs}}]
        metadata = {"shape": array.shape, "chunk_grid": inner, "codecs": codecs, "data_type": array.dtype.name}
    else:
        kind = array.dtype.str if array.dtype.kind == "f" else array.dtype.name
        metadata = {"shape": array.shape, "chunks": chunk, "compressor": {"id": "zstd", "level": 1}, "dtype": kind}
    spec = plain(path, "zarr3" if zarr3 else "zarr")
    tensorstore.open({**spec, "metadata": metadata}, create=True).result().write(array).result()
    return spec


def read(storage: Storage, step: int, buffer: np.ndarray | None = None) -> bytes:
    buffer, size = np.empty(step, np.uint8) if buffer is None else buffer, storage.size or 0
    return b"".join(storage.window(a, min(a + step, size), buffer).tobytes() for a in range(0, size, step))


def files_read() -> int:
    """Reads of files by TensorStore so far, in this process."""
    (metric,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/read")[:1]
    return metric["values"][0]["value"]


def values(shape: tuple[int, ...], dtype="float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("hold", [1, 100, 1000, 10**6])  # bytes: slabs along the last, the second, the first axis
@pytest.mark.parametrize("step", [7, 320, 10_000])
@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        ("float32", {}),
        ("float32", {"zarr3": True}),
        ("float16", {"zarr3": True, "shard": (16, 8, 6)}),
        (ml_dtypes.bfloat16, {}),
        (ml_dtypes.float8_e4m3fn, {}),
        (">f8", {}),
    ],
)
def test_bytes_are_those_of_the_array(tmp_path, monkeypatch, hold, step, dtype, how):
    monkeypatch.setattr(_tensorstore, "HOLD_BYTES", hold)
    array = values((21, 11, 5), dtype)
    spec = write(tmp_path, array, (8, 4, 3), **how)
    with TensorStoreStorage(spec, "w") as storage:
        assert isinstance(storage, Storage)
        assert (storage.mapped, storage.size) == (False, array.nbytes)
        assert read(storage, step) == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert storage.position == array.nbytes


def test_windows_may_begin_anywhere(tmp_path):
    array = values((50, 30))
    storage = TensorStoreStorage(write(tmp_path, array, (8, 7)), "w")
    for start, stop in ((3000, 5000), (123, 456), (5999, 6000), (0, 6000)):
        got = storage.window(start, stop, np.empty(6000, np.uint8))
        assert got.tobytes() == array.tobytes()[start:stop]


@pytest.mark.parametrize("step", [400, 1000, 4096, 10**6])
def test_every_chunk_is_read_once(tmp_path, step):
    array = values((100, 25))
    storage = TensorStoreStorage(write(tmp_path, array, (8, 10)), "w")
    before = files_read()
    assert read(storage, step) == array.tobytes()
    assert files_read() - before == 13 * 3


def test_rows_of_chunks_that_do_not_fit_are_read_as_often_as_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensorstore, "HOLD_BYTES", 64 * 16 * 4)  # a quarter of a row of chunks
    array = values((128, 64))
    storage = TensorStoreStorage(write(tmp_path, array, (64, 16)), "w")
    before = files_read()
    assert read(storage, 3000) == array.tobytes()
    assert files_read() - before == 8 * 4


def test_one_chunk_at_a_time_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensorstore, "TOUCH_BYTES", 1)
    array = values((64, 64))
    storage = TensorStoreStorage(write(tmp_path, array, (16, 16)), "w")
    before = files_read()
    assert storage.window(0, array.nbytes, np.zeros(array.nbytes, np.uint8)).tobytes() == array.tobytes()
    assert files_read() - before == 16


def test_one_value_and_chunks_longer_than_the_array(tmp_path):
    scalar = np.array(2.5, np.float32)
    assert read(TensorStoreStorage(write(tmp_path / "s", scalar, ()), "s"), 4) == scalar.tobytes()
    short = values((3, 5))
    assert read(TensorStoreStorage(write(tmp_path / "l", short, (100, 2)), "l"), 16) == short.tobytes()


def test_layouts_of_many_arrays_come_in_order_and_errors_with_them(tmp_path):
    specs = [write(tmp_path / str(i), values((i + 1, 2)), (2, 2)) for i in range(3)]
    found = list(array_layouts([*specs, plain(tmp_path / "none")], "here"))
    assert [layout.shape for layout in found[:3]] == [(1, 2), (2, 2), (3, 2)]
    assert isinstance(found[3], Exception)


def test_a_chunk_too_large_to_decompress_is_refused_by_its_metadata(tmp_path):
    spec = plain(tmp_path)
    metadata = {"shape": [2**29, 2], "chunks": [2**29, 2], "dtype": "<f4", "compressor": None}
    tensorstore.open({**spec, "metadata": metadata}, create=True).result()
    with pytest.raises(InputError, match=r"dir: tensor 'w'.*4294967296 bytes.*at most 2147483648.*chunk_byte_size"):
        TensorStoreStorage(spec, "dir: tensor 'w'")


def test_a_missing_chunk_is_an_error_where_the_writer_stores_all(tmp_path):
    array = values((40, 4))
    spec = write(tmp_path, array, (10, 4))
    (tmp_path / "2.0").unlink()
    storage = TensorStoreStorage({**spec, "fill_missing_data_reads": False}, "w")
    buffer = np.empty(160, np.uint8)
    assert storage.window(0, 160, buffer).tobytes() + storage.window(160, 320, buffer).tobytes() == array[:20].tobytes()
    with pytest.raises(CorruptInputError, match=r"w: found chunk \{2, 0\}.*missing.*incomplete"):
        storage.window(320, 480, buffer)
    assert storage.position == 320
    filled = np.where(np.arange(40)[:, None] // 10 == 2, 0, array)  # as zarr has it
    assert read(TensorStoreStorage(spec, "w"), 160) == filled.tobytes()


@pytest.mark.parametrize("damage", ["truncated", "scrambled"])
def test_a_damaged_chunk_is_an_error(tmp_path, damage):
    spec = write(tmp_path, values((40, 40)), (10, 40))
    raw = (tmp_path / "1.0").read_bytes()
    (tmp_path / "1.0").write_bytes(raw[:100] if damage == "truncated" else bytes(len(raw)))
    with pytest.raises(CorruptInputError, match=r"w: found data that cannot be read .*1\.0.*damaged"):
        read(TensorStoreStorage(spec, "w"), 500)


def test_a_path_that_leads_out_is_refused(tmp_path):
    write(tmp_path / "b", values((2,)), (2,))
    with pytest.raises(CorruptInputError, match="Invalid file path"):
        TensorStoreStorage(plain(tmp_path / "a" / ".." / "b"), "w")


def series(tmp_path: Path, n: int, rows: int = 8) -> tuple[list[np.ndarray], dict]:
    arrays = [values((rows, 16), seed=i) for i in range(n)]
    specs = [write(tmp_path / str(i), a, (8, 16)) for i, a in enumerate(arrays)]
    return arrays, {str(i): (s, str(i), a.nbytes) for i, (s, a) in enumerate(zip(specs, arrays, strict=True))}


def test_arrays_in_a_row_are_read_ahead_once(tmp_path):
    arrays, table = series(tmp_path, 6)
    ahead = ReadAhead(table, reading_context("t"))
    before = files_read()
    for name, array in zip(table, arrays, strict=True):
        with ahead.open(name) as storage:
            assert read(storage, 100) == array.tobytes()
    assert files_read() - before == 2 * len(arrays)  # metadata and chunk of each
    again = [read(ahead.open(name), 1000) for name in table]
    assert again == [a.tobytes() for a in arrays]


def test_reading_ahead_keeps_to_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_readahead, "AHEAD_BYTES", 1100)
    arrays, table = series(tmp_path, 6)  # of 512 bytes
    ahead = ReadAhead(table, reading_context("t"))
    for left, (name, array) in zip((5, 4, 3, 2, 1, 0), zip(table, arrays, strict=True), strict=True):
        assert read(ahead.open(name), 1000) == array.tobytes()
        assert len(ahead._begun) == min(2, left)


def test_arrays_that_nobody_wants_stop_the_reading_ahead(tmp_path):
    arrays, table = series(tmp_path, 40)
    ahead = ReadAhead(table, reading_context("t"))
    assert read(ahead.open("0"), 1000) == arrays[0].tobytes()
    assert read(ahead.open("39"), 1000) == arrays[39].tobytes()  # four for nothing
    before = files_read()
    assert read(ahead.open("9"), 1000) == arrays[9].tobytes()
    assert files_read() - before == 2


def test_an_array_that_was_written_again_is_refused(tmp_path):
    _, table = series(tmp_path, 1)
    tensorstore.open(table["0"][0]).result().resize(exclusive_max=[16, 16]).result()
    with pytest.raises(CorruptInputError, match="0: found 1024 bytes; needed 512 bytes"):
        ReadAhead(table, reading_context("t")).open("0")


def test_what_is_wrong_with_a_later_array_is_said_when_it_is_opened(tmp_path):
    arrays, table = series(tmp_path, 4)
    (tmp_path / "1" / ".zarray").unlink()
    (tmp_path / "2" / "0.0").write_bytes(b"nonsense")
    ahead = ReadAhead(table, reading_context("t"))
    assert read(ahead.open("0"), 1000) == arrays[0].tobytes()
    with pytest.raises(CorruptInputError, match=r"1: found.*zarray"):
        ahead.open("1")
    with pytest.raises(CorruptInputError, match="2: found"):
        read(ahead.open("2"), 1000)
    assert read(ahead.open("3"), 1000) == arrays[3].tobytes()


PEAK = """
import resource, sys
import numpy as np
from teleojax.sources._tensorstore import TensorStoreStorage
spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": sys.argv[1] + "/"}}
storage, buffer = TensorStoreStorage(spec, "w"), np.ones(16 << 20, np.uint8)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
storage.window(0, 4096, buffer)
before, total = peak(), 0
for start in range(0, storage.size, len(buffer)):
    total += int(storage.window(start, min(start + len(buffer), storage.size), buffer).view(np.uint32).sum())
print(total, peak() - before, storage.size)
"""


def test_peak_memory_is_that_of_a_row_of_chunks_not_of_the_array(tmp_path):
    array = np.arange(48 << 20, dtype=np.uint32).reshape(1536, -1).view(np.float32)  # 192 MiB in rows of 16 MiB
    write(tmp_path, array, (128, 8192))
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, grown, size = map(int, done.stdout.split())
    assert total == int(array.view(np.uint32).astype(np.uint64).sum())
    assert grown < 64 << 20 < size
