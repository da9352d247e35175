"""`.npy` and `.npz`: values as NumPy reads them, and damaged files refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teleojax._errors import CorruptInputError, InputError, TeleojaxError
from teleojax.sources._index import Source, by_storage
from teleojax.sources._numpy import NpySource, NpzSource

FLOATS = ("float16", "float32", "float64")


def read_values(source: Source, step: int = 1000) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    for storage in source.storages:
        with source.open(storage) as opened:
            for spec in by_storage(source.specs).get(storage, ()):
                value, end = b"", spec.offset + spec.nbytes
                for start in range(spec.offset, end, step):
                    stop = min(start + step, end)
                    value += opened.window(start, stop, np.empty(step, np.uint8)).tobytes()
                out[spec.name] = value
    return out


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def raw_npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def in_file_order(array: np.ndarray) -> bytes:
    return array.tobytes("A")


arrays = hnp.arrays(
    st.sampled_from([np.dtype(t) for t in FLOATS]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@given(array=arrays, fortran=st.booleans(), version=st.sampled_from([(1, 0), (2, 0), (3, 0)]), step=st.integers(1, 50))
def test_npy_bytes_read_equal_bytes_written(tmp_path_factory, array, fortran, version, step):
    array = np.asfortranarray(array) if fortran and array.ndim else array
    path = tmp_path_factory.mktemp("npy") / "w.layer.npy"
    path.write_bytes(npy_bytes(array, version))
    source = NpySource(path)
    assert isinstance(source, Source)
    (spec,) = source.specs
    assert (spec.name, spec.shape, spec.dtype) == ("w.layer", array.shape, array.dtype.name)
    if array.size:
        assert read_values(source, step) == {"w.layer": in_file_order(array)}
    else:
        assert spec.skip == "empty"


@given(
    members=st.dictionaries(st.text("abc./-", min_size=1, max_size=6), arrays, max_size=4),
    compress=st.booleans(),
    step=st.integers(1, 50),
)
def test_npz_bytes_read_equal_bytes_written(tmp_path_factory, members, compress, step):
    path = tmp_path_factory.mktemp("npz") / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            archive.writestr(f"{name}.npy", npy_bytes(array))
    source = NpzSource(path)
    assert isinstance(source, Source)
    assert {s.name: (s.shape, s.dtype) for s in source.specs} == {
        n: (a.shape, a.dtype.name) for n, a in members.items()
    }
    assert read_values(source, step) == {n: in_file_order(a) for n, a in members.items() if a.size}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_prefixed_archive_of_every_compression(tmp_path, method):
    array = np.arange(5000.0)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("w.npy", npy_bytes(array))
    (tmp_path / "w.npz").write_bytes(b"#!/bin/sh\n" + out.getvalue())  # offsets in the archive are then relative
    source = NpzSource(tmp_path / "w.npz")
    assert read_values(source) == {"w": array.tobytes()}
    with source.open(source.storages[0]) as storage:
        assert storage.mapped == (method == zipfile.ZIP_STORED)


def test_stored_members_share_one_map_and_compressed_ones_are_read_twice(tmp_path):
    a, b = np.arange(10.0), np.arange(20, dtype=np.float32)
    np.savez(tmp_path / "s.npz", a=a, b=b)
    assert NpzSource(tmp_path / "s.npz").storages == (str(tmp_path / "s.npz"),)
    np.savez_compressed(tmp_path / "c.npz", a=a, b=b)
    source = NpzSource(tmp_path / "c.npz")
    assert len(source.storages) == 2
    assert read_values(source) == read_values(source) == {"a": a.tobytes(), "b": b.tobytes()}


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.arange(3), "integer type int64"),
        (np.array([True]), "type bool is not read"),
        (np.ones(3, np.complex64), "complex type complex64: only its modulus can be measured"),
        (np.ones(3, ">f4"), "big-endian float32 is not read"),
        (np.array([{}, 1], object), "needs unpickling, which teleojax never does"),
        (np.array([(1, {})], [("a", "f4"), ("b", object)]), "needs unpickling, which teleojax never does"),
        (np.zeros(3, [("a", "f4"), ("b", "f8")]), "structured type"),
        (np.array(["abc"]), "string type"),
        (np.array([b"abc"]), "string type"),
        (np.ones(3, ml_dtypes.bfloat16), "type lost: raw 2-byte values"),
        (np.ones(3, ml_dtypes.float8_e4m3fn), "type lost: raw 1-byte values"),
        (np.ones(3, ml_dtypes.float8_e5m2), "type lost: raw 1-byte values"),
        (np.ones(3, np.longdouble), f"type {np.dtype(np.longdouble).name} is not read"),
        (np.empty((0, 3)), "empty"),
    ],
)
def test_what_is_not_read_is_listed_with_its_reason(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", a=array, good=np.ones(2))
    np.savez_compressed(tmp_path / "z.npz", a=array, good=np.ones(2))
    (spec,) = NpySource(tmp_path / "a.npy").specs
    assert spec.skip is not None
    assert spec.skip.startswith(reason)
    assert spec.shape == array.shape
    for name in ("a.npz", "z.npz"):
        source = NpzSource(tmp_path / name)
        assert [s.skip for s in source.specs] == [spec.skip, None]
        assert read_values(source) == {"good": np.ones(2).tobytes()}


def test_a_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    np.save(tmp_path / "a.npy", np.array([Bomb()], object))
    np.savez_compressed(tmp_path / "a.npz", a=np.array([Bomb()], object))
    for source in (NpySource(tmp_path / "a.npy"), NpzSource(tmp_path / "a.npz")):
        for storage in source.storages:
            with source.open(storage):
                pass
    assert not (tmp_path / "boom").exists()


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}\n"
HOSTILE = {
    "nothing": b"",
    "magic only": b"\x93NUMPY",
    "version 9": raw_npy(GOOD, b"\0" * 8, version=9),
    "length past the file": raw_npy(GOOD, b"\0" * 8)[:40],
    "length of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 100,
    "no literal": raw_npy("hello world", b"\0" * 8),
    "a call": raw_npy(GOOD.replace("False", "exit()"), b"\0" * 8),
    "deep nesting": raw_npy("(" * 9000, b"\0" * 8),
    "null byte": raw_npy(GOOD.replace("shape", "sha\0pe"), b"\0" * 8),
    "no shape": raw_npy("{'descr': '<f4', 'fortran_order': False}", b"\0" * 8),
    "negative size": raw_npy(GOOD.replace("(2,)", "(-2,)"), b"\0" * 8),
    "two negative sizes": raw_npy(GOOD.replace("(2,)", "(-2, -1)"), b"\0" * 8),
    "true size": raw_npy(GOOD.replace("(2,)", "(2, True)"), b"\0" * 8),
    "huge size": raw_npy(GOOD.replace("(2,)", f"({2**70},)"), b"\0" * 8),
    "wrapping sizes": raw_npy(GOOD.replace("(2,)", f"({2**32}, {2**32}, 2)"), b"\0" * 8),
    "bad type": raw_npy(GOOD.replace("<f4", "<q9"), b"\0" * 8),
    "bad structure": raw_npy(GOOD.replace("'<f4'", "[('a',), 3]"), b"\0" * 8),
    "an odd escape": raw_npy(GOOD.replace("'<f4'", r"'\q'"), b"\0" * 8),
    "too few bytes": raw_npy(GOOD, b"\0" * 7),
    "too many bytes": raw_npy(GOOD, b"\0" * 9),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("inside", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_hostile_headers_are_refused(tmp_path, case, inside):
    path = tmp_path / "a.npx"
    if inside is None:
        path.write_bytes(HOSTILE[case])
    else:
        with zipfile.ZipFile(path, "w", inside) as archive:
            archive.writestr("a.npy", HOSTILE[case])
    with pytest.raises(CorruptInputError) as e:
        NpySource(path) if inside is None else NpzSource(path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_hostile_length_allocates_nothing(tmp_path):
    (tmp_path / "a.npy").write_bytes(HOSTILE["length of 4 GB"])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptInputError, match="header length of 4294967295"):
            NpySource(tmp_path / "a.npy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_later_version_is_named(tmp_path):
    (tmp_path / "a.npy").write_bytes(HOSTILE["version 9"])
    with pytest.raises(CorruptInputError, match=r"version \(9, 0\)"):
        NpySource(tmp_path / "a.npy")


def test_a_header_from_python_2_is_read_without_a_warning(tmp_path):
    (tmp_path / "a.npy").write_bytes(raw_npy(GOOD.replace("(2,)", "(2L,)"), b"\0" * 8))
    assert NpySource(tmp_path / "a.npy").specs[0].shape == (2,)


def test_missing_bytes_are_counted(tmp_path):
    raw = npy_bytes(np.ones(100, np.float32))
    (tmp_path / "a.npy").write_bytes(raw[:-37])
    with pytest.raises(CorruptInputError, match="37 missing"):
        NpySource(tmp_path / "a.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_truncated_archive_is_refused(tmp_path, save):
    save(tmp_path / "a.npz", a=np.ones(20), b=np.ones(3))
    raw = (tmp_path / "a.npz").read_bytes()
    for n in range(len(raw)):
        (tmp_path / "t.npz").write_bytes(raw[:n])
        with pytest.raises(CorruptInputError):
            read_values(NpzSource(tmp_path / "t.npz"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_mutated_archive_ends_in_values_or_a_refusal(tmp_path, save):
    rng, accepted = np.random.default_rng(0), 0
    save(tmp_path / "a.npz", a=rng.standard_normal(20), b=rng.standard_normal(30).astype("f4"))
    good = (tmp_path / "a.npz").read_bytes()
    path = tmp_path / "m.npz"
    for _ in range(400):
        raw = bytearray(good)
        for i in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[i] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            read_values(NpzSource(path))
            accepted += 1
        except TeleojaxError:
            pass
    assert 0 < accepted < 400


def test_a_wrong_checksum_of_a_compressed_member_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    at = raw.index(b"PK\x01\x02") + 16  # the checksum in the central directory
    raw[at] ^= 1
    (tmp_path / "a.npz").write_bytes(raw)
    source = NpzSource(tmp_path / "a.npz")
    with pytest.raises(CorruptInputError, match="CRC"):
        read_values(source, 1 << 14)


def test_a_member_that_lies_outside_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(100))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    struct.pack_into("<H", raw, 28, 60_000)  # the length of the extra field in the local header
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(CorruptInputError, match="lies in the file"):
        NpzSource(tmp_path / "a.npz")


def test_a_stored_member_of_two_sizes_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(10_000))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    struct.pack_into("<I", raw, raw.index(b"PK\x01\x02") + 20, 50_000)  # the compressed size in the central directory
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(CorruptInputError):
        NpzSource(tmp_path / "a.npz")


def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy_bytes(np.ones(2)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", npy_bytes(np.ones(3)))
    with pytest.raises(CorruptInputError, match="second member"):
        NpzSource(tmp_path / "a.npz")


def test_a_member_without_a_name_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(100))
    raw = (tmp_path / "a.npz").read_bytes().replace(b"a.npy", b"\0.npy")  # zipfile cuts a name at its first null
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(InputError, match="zip archive"):
        NpzSource(tmp_path / "a.npz")


def test_an_encrypted_member_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(100))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(CorruptInputError, match="encrypted"):
        NpzSource(tmp_path / "a.npz")


def test_members_that_are_no_arrays_are_listed_and_folders_are_not(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.mkdir("sub")
        archive.writestr("sub/a.npy", npy_bytes(np.ones(2)))
        archive.writestr("readme.txt", "hello")
    source = NpzSource(tmp_path / "a.npz")
    assert [(s.name, s.skip) for s in source.specs] == [
        ("sub/a", None),
        ("readme.txt", "not an array: the member is no .npy file"),
    ]
    assert read_values(source) == {"sub/a": np.ones(2).tobytes()}


@pytest.mark.parametrize("member", ["archive/data.pkl", "x.json"])
def test_a_zip_that_is_no_npz_says_what_it_is(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr(member, "x")
    with pytest.raises(InputError, match=f"found a zip archive without .npy members.*{member}") as e:
        NpzSource(tmp_path / "a.pt")
    assert not isinstance(e.value, CorruptInputError)


def test_an_empty_archive_has_no_tensors(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert NpzSource(tmp_path / "a.npz").specs == ()


def test_opening_reads_no_values(tmp_path):
    n = 1 << 31  # sparse: 16 GiB of zeros that are nowhere
    header = raw_npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({n},)}}\n")
    with (tmp_path / "a.npy").open("wb") as f:
        f.write(header)
        f.truncate(len(header) + 8 * n)
    source = NpySource(tmp_path / "a.npy")
    assert source.specs[0].nbytes == 8 * n
    with source.open(source.storages[0]) as storage:
        assert not storage.window(len(header) + 8 * n - 8, len(header) + 8 * n, None).any()


@pytest.mark.parametrize("reader", [NpySource, NpzSource])
def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch, reader):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        reader(tmp_path / "a")
