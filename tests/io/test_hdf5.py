"""HDF5: files that h5py writes, in every layout, and what may be wrong with them."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import _hdf5_datasets as datasets
from teleojax.sources import open_source
from teleojax.sources._hdf5 import Hdf5Source
from teleojax.sources._ranges import Ranges, boxes
from tests.io.twin import assert_measured, read_all

RNG = np.random.default_rng(7)


def normal(*shape: int, dtype: str = "<f4") -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def bfloat16_type() -> h5py.h5t.TypeFloatID:
    tid = h5py.h5t.IEEE_F32LE.copy()
    tid.set_fields(15, 7, 8, 0, 7)
    tid.set_size(2)
    tid.set_ebias(127)
    return tid


def write_raw(file: h5py.File, name: str, tid: h5py.h5t.TypeID, values: np.ndarray, chunks: tuple | None) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if chunks:
        plist.set_chunk(chunks)
        plist.set_deflate(4)
    dataset = h5py.h5d.create(file.id, name.encode(), tid, h5py.h5s.create_simple(values.shape), plist)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values).view(f"V{values.itemsize}"), tid)


LAYOUTS = {
    "contiguous/f4": (normal(40, 30), {}),
    "contiguous/f2": (normal(3, 5, dtype="<f2"), {}),
    "contiguous/f8": (normal(17, dtype="<f8"), {}),
    "contiguous/scalar": (np.array(2.5, "<f4"), {}),
    "chunked/plain": (normal(70, 50), {"chunks": (16, 16)}),
    "chunked/gzip": (normal(70, 50, 3), {"chunks": (16, 7, 2), "compression": "gzip"}),
    "chunked/all": (normal(64, 9), {"chunks": (10, 4), "compression": "gzip", "shuffle": True, "fletcher32": True}),
    "chunked/lzf": (normal(100, dtype="<f2"), {"chunks": (9,), "compression": "lzf"}),
    "chunked/big": (normal(20, 20, dtype=">f8"), {"chunks": (3, 20), "shuffle": True}),
    "big/f4": (normal(11, 3, dtype=">f4"), {}),
    "big/f2": (normal(11, dtype=">f2"), {}),
    "name\nwith\tcontrol é": (normal(4), {}),
}


@pytest.fixture
def layouts(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        for name, (values, options) in LAYOUTS.items():
            f.create_dataset(name, data=values, **options)
        odd = normal(33, 5).astype(ml_dtypes.bfloat16)
        write_raw(f, "bf16", bfloat16_type(), odd, None)
        write_raw(f, "bf16 chunked", bfloat16_type(), odd, (10, 2))
        f.create_dataset("keras", data=odd).attrs["dtype"] = "bfloat16"
        part = f.create_dataset("part", (10, 4), "<f4", chunks=(4, 4), fillvalue=0.5)
        part[:4] = 3
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        compact = h5py.h5d.create(f.id, b"compact", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((6,)), plist)
        compact.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(6, dtype="<f4"))
    arrays = {name: values for name, (values, _) in LAYOUTS.items()}
    arrays |= {"bf16": odd, "bf16 chunked": odd, "keras": odd, "compact": np.arange(6, dtype="<f4")}
    arrays["part"] = np.where(np.arange(10)[:, None] < 4, np.full((10, 4), 3, "<f4"), np.float32(0.5))
    return path, arrays


def test_every_layout(layouts):
    path, arrays = layouts
    source = assert_measured(path, arrays)
    in_place = {s.name for s in source.specs if s.storage == str(path)}
    assert in_place == {*(n for n in arrays if n.startswith("contiguous")), "name\nwith\tcontrol é", "bf16", "keras"}
    assert (source.name, source.files) == ("m.h5", (path,))


def test_a_user_block_before_the_data(tmp_path):
    path, values = tmp_path / "m.hdf5", normal(9)
    with h5py.File(path, "w", userblock_size=1024) as f:
        f["w"] = values
        f.create_dataset("c", data=values, chunks=(4,))
    assert_measured(path, {"w": values, "c": values})


def test_what_is_no_number_or_lies_elsewhere_is_skipped(tmp_path):
    path, other, values = tmp_path / "m.h5", tmp_path / "other.h5", normal(4)
    with h5py.File(other, "w") as f:
        f["w"] = values
    with h5py.File(path, "w") as f:
        f["w"] = values
        f["again"] = f["w"]  # a second path of it
        f["soft"] = h5py.SoftLink("/w")
        f["dangling"] = h5py.SoftLink("/nothing")
        f["loop/soft"] = h5py.SoftLink("/loop")
        f["loop/hard"] = f["loop"]
        f["loop/inside"] = values
        f["link"] = h5py.ExternalLink("other.h5", "/w")
        f["int"] = np.arange(3)
        f["bool"] = np.array([True])
        f["text"] = "hello"
        f["texts"] = np.array(["a", "b"], dtype=object)
        f["fixed"] = np.array([b"ab"])
        f["complex"] = np.ones(2, np.complex64)
        f["record"] = np.zeros(2, [("a", "<f4")])
        f["opaque"] = np.zeros(2, "V3")
        f["reference"] = np.array([f.ref], h5py.ref_dtype)
        f["long"] = np.ones(2, np.longdouble)
        f["null"] = h5py.Empty("f4")
        f["empty"] = np.zeros((0, 3), "f4")
        f.create_dataset("unwritten", (1 << 40,), "f4")
        f.create_dataset("unwritten chunks", (1 << 40,), "f4", chunks=(1 << 20,))
        f.create_dataset("external", (4,), "f4", external=[("raw.bin", 0, 16)])
        view = h5py.VirtualLayout((4,), "f4")
        view[:] = h5py.VirtualSource(other, "w", (4,))
        f.create_virtual_dataset("virtual", view)
        f.create_dataset("large", (1 << 28,), "f4", chunks=(1 << 27,))[:2] = 1
        f["optimizer/vars/1"] = values
        f["optimizer_weights/adam/m"] = values
        f["optimizer/w"] = values
    opaque, nothing = "no value was ever written", "a virtual dataset, which shows values of others"
    source = open_source(path)
    assert {s.name: s.skip for s in source.specs} == {
        "again": None,  # the first of its paths
        "loop/inside": None,
        "optimizer/w": None,
        "link": "a link out of the file (other.h5 /w)",
        "int": "integer type int64",
        "bool": "enumerated type",
        "text": "string type",
        "texts": "string type",
        "fixed": "string type",
        "complex": "complex type complex64: only its modulus can be measured",
        "record": "structured type",
        "opaque": "opaque type",
        "reference": "reference type",
        "long": "a floating-point type of 16 bytes that is none of IEEE 754's",
        "null": "empty",
        "empty": "empty",
        "unwritten": opaque,
        "unwritten chunks": opaque,
        "external": "its values lie in other files",
        "virtual": nothing,
        "large": f"chunks of {1 << 29} bytes (at most {1 << 28} are read)",
        "optimizer/vars/1": "optimizer state",
        "optimizer_weights/adam/m": "optimizer state",
    }
    other.unlink()
    assert read_all(source) == dict.fromkeys(("again", "loop/inside", "optimizer/w"), values.tobytes())


# Ranges of chunked values


@given(st.lists(st.integers(1, 5), max_size=4).map(tuple), st.data())
def test_boxes_are_the_range_in_c_order(shape, data):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    start = data.draw(st.integers(0, values.size))
    stop = data.draw(st.integers(start, values.size))
    found = boxes(shape, start, stop)
    pieces = [values[tuple(slice(a, a + n) for a, n in zip(b.start, b.count, strict=True))] for b in found]
    np.testing.assert_array_equal(np.concatenate([[], *(p.reshape(-1) for p in pieces)]), np.arange(start, stop))
    assert [b.first for b in found] == np.cumsum([0, *(p.size for p in pieces)])[:-1].tolist()
    assert len(found) <= 2 * len(shape) + 1


def test_windows_of_a_chunked_dataset_in_any_order(tmp_path):
    path, values = tmp_path / "m.h5", normal(23, 19, 7)
    with h5py.File(path, "w") as f:
        f.create_dataset("w", data=values, chunks=(4, 8, 3), compression="gzip")
    raw, buffer = values.tobytes(), np.empty(values.nbytes, np.uint8)
    (spec,) = (source := open_source(path)).specs
    with source.open(spec.storage) as opened:
        assert isinstance(opened, Ranges)
        assert (opened.mapped, opened.size) == (False, len(raw))
        for start, stop in RNG.integers(0, values.size + 1, (60, 2)).tolist():
            a, b = 4 * min(start, stop), 4 * max(start, stop)
            assert opened.window(a, b, buffer).tobytes() == raw[a:b]
        with pytest.raises(CorruptInputError, match="bytes"):
            opened.window(0, len(raw) + 4, buffer)


def test_a_layer_much_larger_than_the_cache_is_read_right(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CACHE_BYTES", 1 << 12)
    path, values = tmp_path / "m.h5", normal(300, 2000)
    with h5py.File(path, "w") as f:
        f.create_dataset("w", data=values, chunks=(300, 10), shuffle=True)
    assert_measured(path, {"w": values})


# Damage


def test_truncation_anywhere(layouts):
    path, _ = layouts
    raw = path.read_bytes()
    for n in (0, 1, 7, 8, 20, 96, *range(200, len(raw), len(raw) // 60), len(raw) - 1):
        path.write_bytes(raw[:n])
        with pytest.raises(CorruptInputError, match=r"m\.h5"):
            open_source(path)


def test_damage_anywhere_is_an_error_of_ours_or_none(layouts):
    path, _ = layouts
    raw = path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(raw)
        damaged[RNG.integers(len(raw))] = RNG.integers(256)
        path.write_bytes(damaged)
        try:
            read_all(open_source(path))
        except TeleojaxError:
            refused += 1
    assert refused > 5


def test_a_damaged_chunk_fails_alone(layouts):
    path, arrays = layouts
    with h5py.File(path, "r") as f:
        chunk = f["chunked/gzip"].id.get_chunk_info(3)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + 4 : chunk.byte_offset + chunk.size] = b"\xff" * (chunk.size - 4)
    path.write_bytes(raw)
    measured = tj.measure(path)
    assert set(measured.failed) == {"chunked/gzip"}
    assert set(measured) == set(arrays) - {"chunked/gzip"}


@pytest.mark.parametrize("declared", [1 << 10, 1 << 16])
def test_a_chunk_that_becomes_more_than_a_chunk_is_refused(tmp_path, declared, monkeypatch):
    monkeypatch.setattr(datasets, "INFLATE_BYTES", 1 << 24)
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        d = f.create_dataset("w", (declared,), "f4", chunks=(declared,), compression="gzip")
        d.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 26), 9))  # 64 KiB that become 64 MiB
    with pytest.raises(CorruptInputError, match=r"a chunk of .* bytes that (is stored in|becomes more)"):
        read_all(open_source(path))


def test_much_said_in_few_bytes_is_not_read(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("w", (1 << 40,), "f4", chunks=(1 << 16,), compression="gzip")[:9] = 1
    (spec,) = open_source(path).specs
    assert "decompression bomb" in spec.skip


def test_values_that_overlap_are_refused(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        f["a"], f["b"] = normal(100), normal(100)
        first, second = (f[n].id.get_offset() for n in "ab")
    raw = path.read_bytes()
    assert raw.count(second.to_bytes(8, "little")) == 1
    path.write_bytes(raw.replace(second.to_bytes(8, "little"), (first + 8).to_bytes(8, "little")))
    with pytest.raises(CorruptInputError, match="overlap"):
        open_source(path)


def test_deep_groups_are_refused(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        group = f
        for _ in range(2000):
            group = group.create_group("g")
    with pytest.raises(CorruptInputError, match="nested more than 64 deep"):
        open_source(path)


def test_names_that_are_no_unicode(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        f[b"\xff\xfe"] = f[b"\\xff\\xfe"] = normal(3)
        f["x"] = normal(3)
        del f[b"\\xff\\xfe"]
        f[b"\\xff\\xfe"] = normal(3)
    assert {s.name for s in open_source(path).specs} == {"\\xff\\xfe", "\\xff\\xfe#1", "x"}


def test_without_h5py(tmp_path, monkeypatch):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        f["x"] = normal(3)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"teleojax\[hdf5\]"):
        open_source(path)


def test_a_file_that_may_not_be_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "m.h5")
    with pytest.raises(InputError, match=r"m\.h5"):
        Hdf5Source(tmp_path / "m.h5")


def test_long_paths_of_many_datasets_are_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as f:
        group = f
        for _ in range(40):
            group = group.create_group("x" * 60_000)
        for i in range(40):
            group[str(i)] = np.zeros(1, np.float32)
    with pytest.raises(CorruptInputError, match="names without end"):
        open_source(tmp_path / "m.h5")
