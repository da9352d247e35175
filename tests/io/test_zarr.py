"""Zarr 2 and 3: directories and archives that the zarr package writes (bfloat16 by TensorStore), then damaged."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from numcodecs import Zstd
from zarr.storage import ZipStore

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import open_source
from teleojax.sources._zarr import ZarrSource
from tests.io.twin import assert_measured, read_all

RNG = np.random.default_rng(5)
pytestmark = pytest.mark.filterwarnings(
    "ignore::zarr.errors.ZarrUserWarning", "ignore::zarr.errors.UnstableSpecificationWarning"
)


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


ARRAYS = {
    "encoder/w": (normal(100, 70), (30, 32)),
    "encoder/deep/er/w": (normal(7, 6, 5, dtype="float64"), (2, 6, 3)),
    "half": (normal(33, dtype="float16"), (33,)),
    "layer10": (normal(9), (4,)),
    "layer2": (normal(9), (4,)),
    "scalar": (np.array(2.5, np.float32), ()),
}
OTHERS = {
    "int": (np.arange(4, dtype=np.int32), "integer type int32"),
    "flag": (np.array([True]), "type bool is not read"),
    "complex": (np.ones(3, np.complex64), "complex type complex64: only its modulus can be measured"),
}


def write(store: Any, version: int) -> None:
    group = zarr.open_group(store, mode="w", zarr_format=version)
    for name, (values, chunks) in ARRAYS.items():
        made = group.create_array(name, shape=values.shape, chunks=chunks or "auto", dtype=values.dtype)
        made[...] = values
    for name, (values, _) in OTHERS.items():
        group.create_array(name, shape=values.shape, dtype=values.dtype)[...] = values


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize("kind", ["params.zarr", "params", "params.zarr.zip"])
def test_groups_of_either_version(tmp_path, version, kind):
    path = tmp_path / kind
    if path.suffix == ".zip":
        with ZipStore(path, mode="w") as store:
            write(store, version)
    else:
        write(path, version)
    arrays = {name: values for name, (values, _) in ARRAYS.items()}
    source = assert_measured(path, arrays, {name: reason for name, (_, reason) in OTHERS.items()})
    assert (type(source), source.name) == (ZarrSource, kind)
    names = [s.name for s in source.specs]
    assert names.index("layer2") < names.index("layer10")
    assert all(f.is_file() for f in source.files)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", ">f4"])
def test_one_array_as_tensorstore_writes_it(tmp_path, version, dtype):
    values = normal(50, 40).astype(getattr(ml_dtypes, dtype, dtype))
    endian = "big" if dtype == ">f4" else "little"
    metadata = {"shape": [50, 40], "chunks": [16, 40], "dtype": dtype} if version == 2 else {
        "shape": [50, 40], "data_type": "float32" if dtype == ">f4" else dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [16, 40]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": endian}}, {"name": "zstd"}],
    }  # fmt: skip
    driver = "zarr" if version == 2 else "zarr3"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{tmp_path}/w.zarr/"}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(values.astype(values.dtype.newbyteorder("="))).result()
    assert_measured(tmp_path / "w.zarr", {"w": values})


def test_a_chunk_that_is_not_there_is_its_fill_value(tmp_path, version):
    path = tmp_path / "w.zarr"
    part = zarr.create_array(path, shape=(10, 4), chunks=(4, 4), dtype="float32", fill_value=0.5, zarr_format=version)
    part[:4] = 3
    expected = np.where(np.arange(10)[:, None] < 4, np.full((10, 4), 3, np.float32), np.float32(0.5))
    assert_measured(path, {"w": expected})


def test_text_and_records_are_skipped(tmp_path, version):
    group = zarr.open_group(tmp_path / "g", mode="w", zarr_format=version)
    group.create_array("fixed", shape=(2,), dtype="S4")
    group.create_array("time", shape=(2,), dtype="M8[s]")
    if version == 2:
        group.create_array("record", shape=(2,), dtype=[("a", "<f4"), ("b", "<i4")])
    group.create_array("w", shape=(2,), dtype="float32")[:] = 1
    reasons = {s.name: s.skip for s in open_source(tmp_path / "g").specs}
    assert reasons.pop("w") is None
    assert all(reasons.values())
    assert len(reasons) == (3 if version == 2 else 2)


def test_links_in_circles_are_followed_once(tmp_path, version):
    write(tmp_path / "g", version)
    (tmp_path / "g" / "again").symlink_to(tmp_path / "g", target_is_directory=True)
    (tmp_path / "g" / "encoder" / "up").symlink_to("..", target_is_directory=True)
    assert {s.name for s in open_source(tmp_path / "g").specs} == {*ARRAYS, *OTHERS}


# Damage


def node(path: Path, version: int) -> Path:
    return path / ("zarr.json" if version == 3 else ".zarray")


@pytest.fixture
def array(tmp_path: Path, version: int) -> Path:
    path = tmp_path / "g"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name in ("a", "b"):
        group.create_array(name, shape=(64, 8), chunks=(16, 8), dtype="float32")[:] = normal(64, 8)
    return path


def test_a_damaged_chunk_fails_alone(array, version):
    chunk = array / "a" / ("c/1/0" if version == 3 else "1.0")
    raw = chunk.read_bytes()
    for damaged in (b"", raw[:5], raw[: len(raw) // 2], b"\xff" * len(raw)):
        chunk.write_bytes(damaged)
        measured = tj.measure(array)
        assert set(measured) == {"b"}
        assert set(measured.failed) == {"a"}
        assert "array 'a'" in measured.failed["a"]


@pytest.mark.parametrize("compress", [gzip.compress, Zstd().encode], ids=["gzip", "zstd"])
def test_a_chunk_that_becomes_more_than_a_chunk_is_refused(tmp_path, compress):
    codec = zarr.codecs.GzipCodec() if compress is gzip.compress else zarr.codecs.ZstdCodec()
    zarr.create_array(tmp_path / "w", shape=(1024,), chunks=(1024,), dtype="float32", compressors=[codec])[:] = 1
    (tmp_path / "w" / "c" / "0").write_bytes(compress(bytes(1 << 26)))  # a few KiB that become 64 MiB
    with pytest.raises(CorruptInputError, match="at uncompressed byte 4096"):  # not after
        read_all(open_source(tmp_path / "w"))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"node_type": "array", "node_type": "group"}',
        b'{"a": NaN}',
        b"\xff",
    ],
    ids=["empty", "list", "deep", "twice", "nan", "bytes"],
)
def test_metadata_that_are_no_json_are_refused(array, version, damage):
    node(array / "a", version).write_bytes(damage)
    with pytest.raises(CorruptInputError, match="metadata"):
        open_source(array)


def test_metadata_that_say_nonsense_fail_alone(array, version):
    file = node(array / "a", version)
    good = json.loads(file.read_bytes())
    for change in ({"shape": [2**63, 8]}, {"shape": [-1]}, {"shape": "x"}, {"shape": None}, {"zarr_format": 9}):
        file.write_text(json.dumps(good | change))
        measured = tj.measure(array)
        assert set(measured) == {"b"}
        assert set(measured.failed) == {"a"}
    cut = {k: v for k, v in good.items() if k in ("zarr_format", "node_type")}
    file.write_text(json.dumps(cut))
    assert set(tj.measure(array).failed) == {"a"}


def test_large_metadata_and_large_chunks_are_refused(array, version):
    file = node(array / "a", version)
    good = json.loads(file.read_bytes())
    huge = [1 << 20, 1 << 20]
    grid = (
        {"chunks": huge}
        if version == 2
        else {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": huge}}}
    )
    file.write_text(json.dumps(good | grid | {"shape": huge}))
    assert "chunks of 4398046511104 bytes" in tj.measure(array).failed["a"]
    file.write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(CorruptInputError, match="more than 16777216 bytes"):
        open_source(array)


def test_deep_groups_are_refused(tmp_path, version):
    path = tmp_path / "g"
    zarr.open_group(path, mode="w", zarr_format=version)
    file = "zarr.json" if version == 3 else ".zgroup"
    inner = path
    for _ in range(70):
        inner = inner / "g"
        inner.mkdir()
        shutil.copy(path / file, inner / file)
    with pytest.raises(CorruptInputError, match="nested more than 64 deep"):
        open_source(path)


def test_damaged_archives(tmp_path, version):
    path = tmp_path / "m.zarr.zip"
    with ZipStore(path, mode="w") as store:
        write(store, version)
    raw = path.read_bytes()
    for n in (0, 10, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:n])
        with pytest.raises(CorruptInputError, match=r"m\.zarr\.zip"):
            open_source(path)
    refused = 0
    for _ in range(60):
        damaged = bytearray(raw)
        damaged[RNG.integers(len(raw))] = RNG.integers(256)
        path.write_bytes(damaged)
        try:
            read_all(open_source(path))
        except TeleojaxError:
            refused += 1
    assert refused > 5


def test_members_that_lead_out_of_an_archive_lead_nowhere(tmp_path, version):
    path = tmp_path / "m.zip"
    with ZipStore(path, mode="w") as store:
        write(store, version)
    outside = tmp_path / "outside"
    zarr.create_array(outside, shape=(3,), dtype="float32", zarr_format=version)[:] = 1
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../outside", "/outside", "x/../../outside", ""):
            archive.writestr(f"{name}/{node(outside, version).name}", node(outside, version).read_bytes())
    names = {s.name for s in open_source(path).specs if s.skip is None}
    assert set(ARRAYS) <= names
    assert read_all(open_source(path)).keys() >= ARRAYS.keys()


def test_what_is_not_there(tmp_path, version, monkeypatch):
    zarr.open_group(tmp_path / "g", mode="w", zarr_format=version)
    assert open_source(tmp_path / "g").specs == ()
    (tmp_path / "m.zarr.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"m\.zarr\.zip"):
        open_source(tmp_path / "m.zarr.zip")
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingExtraError, match=r"teleojax\[zarr\]"):
        open_source(tmp_path / "g")


def test_the_shape_of_what_is_skipped_is_bounded_too(tmp_path):
    shape = ",".join(["9" * 4000] * 100)  # whose product would be computed for a report
    metadata = f'{{"zarr_format": 2, "dtype": "<i4", "chunks": [1], "order": "C", "shape": [{shape}]}}'
    (tmp_path / ".zarray").write_text(metadata)
    (spec,) = open_source(tmp_path).specs
    assert (spec.shape, spec.skip) == ((), "integer type int32")
