"""Safetensors: round trips, hostile headers, shards and streams, against the safetensors package as oracle."""

from __future__ import annotations

import gc
import io
import json
import math
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as package_save

from teleojax._errors import CorruptInputError, InputError, TeleojaxError
from teleojax.sources._index import Source, TensorSpec, by_storage
from teleojax.sources._safetensors import SafetensorsSource, SafetensorsStream
from teleojax.sources._storage import MappedFile

FLOATS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
OTHERS = (np.int8, np.int16, np.uint32, np.int64, np.bool, np.complex64, ml_dtypes.float8_e8m0fnu)


def file_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    kinds = {np.dtype(t): k for k, t in FLOATS.items()} | {np.dtype(np.int64): "I64"}
    header, data = {}, b""
    for name, a in tensors.items():
        header[name] = entry(kinds[a.dtype], a.shape, (len(data), len(data) + a.nbytes))
        data += a.tobytes()
    path.write_bytes(file_bytes(header, data))


def read_values(source: Source, step: int = 1000) -> dict[str, bytes]:
    """Every measurable tensor, read window by window through the storages, in the order an engine reads."""
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


class Pipe(io.RawIOBase):
    """A pipe: bytes forward, a few at a time; whoever tries to seek is told off."""

    def __init__(self, data: bytes, piece: int = 1 << 16) -> None:
        self._data, self.position, self._piece = data, 0, piece

    def readable(self) -> bool:
        return True

    def readinto(self, view) -> int:
        got = self._data[self.position : self.position + min(len(view), self._piece)]
        memoryview(view)[: len(got)] = got
        self.position += len(got)
        return len(got)

    def seekable(self) -> bool:
        raise AssertionError("a pipe was asked whether it can seek")

    def seek(self, *_) -> int:
        raise AssertionError("a pipe was sought")

    def tell(self) -> int:
        raise AssertionError("a pipe was asked for its position")

    def fileno(self) -> int:
        raise AssertionError("a pipe was asked for its descriptor")


@st.composite
def checkpoints(draw) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6, unique=True))
    out = {}
    for name in set(names) - {"__metadata__"}:
        dtype = draw(st.sampled_from([np.dtype(t) for t in (*FLOATS.values(), *OTHERS)]))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        nbytes = math.prod(shape) * dtype.itemsize
        out[name] = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), dtype).reshape(shape)
    return out


@given(tensors=checkpoints(), step=st.integers(1, 50), piece=st.integers(1, 40))
def test_bytes_read_equal_bytes_written(tmp_path_factory, tensors, step, piece):
    raw = package_save(tensors, {"format": "np"})
    path = tmp_path_factory.mktemp("round") / "m.safetensors"
    path.write_bytes(raw)
    for source in (SafetensorsSource([path]), SafetensorsStream(Pipe(raw, piece))):
        assert isinstance(source, Source)
        assert {s.name: (s.dtype, s.shape, s.nbytes) for s in source.specs} == {
            n: (a.dtype.name, a.shape, a.nbytes) for n, a in tensors.items()
        }
        read = {n: a for n, a in tensors.items() if a.dtype in FLOATS.values() and a.size}
        assert {s.name for s in source.specs if s.skip is None} == set(read)
        assert read_values(source, step) == {n: a.tobytes() for n, a in read.items()}


@pytest.mark.parametrize("kind", FLOATS)
def test_values_agree_with_numpy(tmp_path, kind):
    want = np.linspace(-3, 3, 33).astype(FLOATS[kind]).reshape(3, 11)
    save(tmp_path / "m.safetensors", {"w": want})
    source = SafetensorsSource([tmp_path / "m.safetensors"])
    (spec,) = source.specs
    got = np.frombuffer(read_values(source)["w"], np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype)))
    np.testing.assert_array_equal(got.reshape(spec.shape).astype(np.float64), want.astype(np.float64))


F32 = b"\0" * 8
DEEP = b'{"a":' + b"[" * 100_000
TABLE = {  # name: (bytes of the file, we accept, the package accepts)
    "good": (file_bytes({"a": entry()}, F32), True, True),
    "empty table": (file_bytes({}), True, True),
    "metadata only": (file_bytes({"__metadata__": {"a": "b"}}), True, True),
    "space around the header": (file_bytes(b" " + json.dumps({"a": entry()}).encode() + b"  \n", F32), True, True),
    "extra field": (file_bytes({"a": entry() | {"x": 1}}, F32), True, True),
    "no values at the end": (file_bytes({"a": entry(), "b": entry(shape=[0], offsets=(8, 8))}, F32), True, True),
    "out of order": (file_bytes({"b": entry(offsets=(8, 16)), "a": entry()}, F32 * 2), True, True),
    "scalar": (file_bytes({"a": entry(shape=[], offsets=(0, 4))}, F32[:4]), True, True),
    "half-byte type": (file_bytes({"a": entry("F4", [4], (0, 2))}, F32[:2]), True, True),
    "six-bit type": (file_bytes({"a": entry("F6_E2M3", [4], (0, 3))}, F32[:3]), True, True),
    "unaligned": (file_bytes({"a": entry("U8", [1], (0, 1)), "b": entry(offsets=(1, 9))}, F32 + b"\0"), True, True),
    # the package refuses, and the rest of the file is worth reading
    "unknown type": (file_bytes({"a": entry("F4X")}, F32), True, False),
    "odd metadata": (file_bytes({"__metadata__": {"a": 1}, "a": entry()}, F32), True, False),
    # the package takes the last of two equal keys
    "duplicate tensor": (
        file_bytes(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), F32),
        False,
        True,
    ),
    "entry as a list": (file_bytes({"a": ["F32", [2], [0, 8]]}, F32), False, True),
    # both refuse
    "nothing": (b"", False, False),
    "seven bytes": (b"\0" * 7, False, False),
    "length only": (file_bytes(b""), False, False),
    "length past the file": (file_bytes({"a": entry()}, F32, length=10_000), False, False),
    "length 2**63": (file_bytes({"a": entry()}, F32, length=2**63), False, False),
    "length 2**64 - 1": (file_bytes({"a": entry()}, F32, length=2**64 - 1), False, False),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), False, False),
    "not JSON": (file_bytes(b"{a: 1}"), False, False),
    "NaN": (file_bytes(b'{"a": NaN}'), False, False),
    "NaN in the metadata": (file_bytes(b'{"__metadata__": NaN}'), False, False),
    "deep nesting": (file_bytes(DEEP), False, False),
    "garbage after the table": (file_bytes(b'{} "x"'), False, False),
    "a list": (file_bytes([1]), False, False),
    "a string": (file_bytes("x"), False, False),
    "null": (file_bytes(b"null"), False, False),
    "lone surrogate": (file_bytes(rb'{"\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', F32), False, False),
    "entry is a number": (file_bytes({"a": 1}), False, False),
    "no dtype": (file_bytes({"a": {"shape": [2], "data_offsets": [0, 8]}}, F32), False, False),
    "no shape": (file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, F32), False, False),
    "no offsets": (file_bytes({"a": {"dtype": "F32", "shape": [2]}}, F32), False, False),
    "duplicate field": (
        file_bytes(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', F32),
        False,
        False,
    ),
    "shape is a number": (file_bytes({"a": entry(shape=2)}, F32), False, False),
    "shape is text": (file_bytes({"a": entry(shape="2")}, F32), False, False),
    "negative size": (file_bytes({"a": entry(shape=[-2])}, F32), False, False),
    "two negative sizes": (file_bytes({"a": entry(shape=[-2, -1])}, F32), False, False),
    "float size": (file_bytes({"a": entry(shape=[2.0])}, F32), False, False),
    "true size": (file_bytes({"a": entry(shape=[2, True])}, F32), False, False),
    "huge size": (file_bytes({"a": entry(shape=[10**30])}, F32), False, False),
    "number of 5000 digits": (file_bytes(b'{"a":{"dtype":"F32","shape":[%b]}}' % (b"9" * 5000)), False, False),
    "sizes that wrap to the bytes": (file_bytes({"a": entry(shape=[2**32, 2**32, 2])}, F32), False, False),
    "sizes that wrap to zero": (file_bytes({"a": entry(shape=[2**32, 2**32], offsets=(0, 0))}), False, False),
    "one offset": (file_bytes({"a": entry(offsets=[8])}, F32), False, False),
    "three offsets": (file_bytes({"a": entry(offsets=[0, 8, 8])}, F32), False, False),
    "negative offset": (file_bytes({"a": entry(offsets=[-8, 0])}, F32), False, False),
    "false offset": (file_bytes({"a": entry(offsets=[False, 8])}, F32), False, False),
    "float offset": (file_bytes({"a": entry(offsets=[0.0, 8])}, F32), False, False),
    "begin after end, unknown type": (file_bytes({"a": entry("F4X", [], (8, 0)), "b": entry()}, F32), False, False),
    "begin after end": (file_bytes({"a": entry(offsets=[8, 0])}, F32), False, False),
    "outside the file": (file_bytes({"a": entry(offsets=[800, 808])}, F32), False, False),
    "too few bytes for the shape": (file_bytes({"a": entry(shape=[3])}, F32), False, False),
    "too many bytes for the shape": (file_bytes({"a": entry(shape=[1])}, F32), False, False),
    "odd half-bytes": (file_bytes({"a": entry("F4", [3], (0, 2))}, F32[:2]), False, False),
    "overlap": (file_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, F32 + F32[:4]), False, False),
    "the same bytes twice": (file_bytes({"a": entry(), "b": entry()}, F32), False, False),
    "no values in the middle": (file_bytes({"a": entry(shape=[0], offsets=(4, 4)), "b": entry()}, F32), False, False),
    "hole": (file_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, F32 * 3), False, False),
    "hole at the start": (file_bytes({"a": entry(offsets=(4, 12))}, F32 * 2), False, False),
    "trailing bytes": (file_bytes({"a": entry()}, F32 + b"\0"), False, False),
    "truncated": (file_bytes({"a": entry()}, F32[:5]), False, False),
}


@pytest.mark.parametrize("case", TABLE)
def test_hostile_headers_agree_with_the_package(tmp_path, case):
    raw, ours, theirs = TABLE[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    try:
        with safe_open(path, "np") as f:
            names = set(f.keys())
        package = True
    except SafetensorError:
        names, package = set(), False
    assert package == theirs
    if ours:
        source = SafetensorsSource([path])
        assert not theirs or {s.name for s in source.specs} == names
    else:
        with pytest.raises(CorruptInputError) as e:
            SafetensorsSource([path])
        assert str(path) in str(e.value)
        assert "\n" not in str(e.value)
        assert len(str(e.value)) < 1000


@pytest.mark.parametrize("case", [c for c, (_, ours, _) in TABLE.items() if not ours and "trailing" not in c])
def test_hostile_streams_are_refused(case):
    with pytest.raises(CorruptInputError, match=r"^stdin"):
        read_values(SafetensorsStream(Pipe(TABLE[case][0])))


def test_unknown_and_packed_types_are_listed_with_their_reason(tmp_path):
    header = {
        "x": entry("F4X", [7], (0, 3)),
        "s": entry("F8_E8M0", [5], (3, 8)),
        "h": entry("F4", [4], (8, 10)),
        "i": entry("I16", [1], (10, 12)),
        "e": entry("F32", [0], (12, 12)),
        "w": entry("F32", [2], (12, 20)),
    }
    (tmp_path / "m.safetensors").write_bytes(file_bytes(header, bytes(range(20))))
    source = SafetensorsSource([tmp_path / "m.safetensors"])
    assert {s.name: s.skip for s in source.specs} == {
        "x": "unknown type 'F4X'",
        "s": "type float8_e8m0fnu is not read yet",
        "h": "type float4_e2m1fn is not read yet",
        "i": "integer type int16",
        "e": "empty",
        "w": None,
    }
    assert read_values(source) == {"w": bytes(range(12, 20))}


def test_missing_bytes_are_counted(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"a": entry(shape=[100], offsets=(0, 400))}, b"\0" * 137))
    with pytest.raises(CorruptInputError, match=r"263 missing"):
        SafetensorsSource([path])


def test_a_header_longer_than_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as f:
        f.write(file_bytes({}, length=100_000_001))
        f.truncate(200_000_000)
    with pytest.raises(CorruptInputError, match="header length of 100000001 bytes; needed at most 100000000"):
        SafetensorsSource([path])
    with pytest.raises(CorruptInputError, match="header length of 100000001 bytes; needed at most 100000000"):
        SafetensorsStream(Pipe(file_bytes({}, length=100_000_001)))
    path.write_bytes(file_bytes({}, length=77))
    with pytest.raises(CorruptInputError, match="header length of 77 bytes; needed at most 2"):
        SafetensorsSource([path])


def test_every_truncation_is_refused(tmp_path):
    raw = file_bytes({"a": entry(), "b": entry(offsets=(8, 16))}, F32 * 2)
    path = tmp_path / "m.safetensors"
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(CorruptInputError):
            SafetensorsSource([path])
        with pytest.raises(CorruptInputError):
            read_values(SafetensorsStream(Pipe(raw[:n])))


def test_every_mutation_ends_in_a_source_or_a_refusal(tmp_path):
    good = file_bytes({"a": entry(), "b.c": entry("BF16", [2, 2], (8, 16)), "__metadata__": {"k": "v"}}, F32 * 2)
    rng = np.random.default_rng(0)
    path, accepted = tmp_path / "m.safetensors", 0
    for _ in range(400):
        raw = bytearray(good)
        for i in rng.integers(0, len(raw) - 16, rng.integers(1, 4)):
            raw[i] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            read_values(SafetensorsSource([path]))
            accepted += 1
        except TeleojaxError:
            pass
    assert 0 < accepted < 400


def test_a_hostile_length_allocates_nothing(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({}, length=99_999_999))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptInputError):
            SafetensorsSource([path])
        with pytest.raises(CorruptInputError):
            SafetensorsStream(Pipe(path.read_bytes()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_shape_of_many_large_sizes_is_refused_at_once(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"a": entry(shape=[2**63] * 200_000 + [0], offsets=(0, 0))}))
    with pytest.raises(CorruptInputError, match="2\\*\\*64"):
        SafetensorsSource([path])


def test_opening_reads_no_values(tmp_path):
    path, n = tmp_path / "big.safetensors", 1 << 34  # sparse: 16 GiB of zeros that are nowhere
    header = file_bytes({"a": entry("F32", [n // 4], (0, n))})
    with path.open("wb") as f:
        f.write(header)
        f.truncate(len(header) + n)
    source = SafetensorsSource([path])
    (spec,) = source.specs
    assert (spec.offset, spec.nbytes) == (len(header), n)
    with source.open(spec.storage) as storage:
        assert storage.mapped
        end = spec.offset + n
        assert not storage.window(end - 4096, end, None).any()
        with pytest.raises(CorruptInputError):
            storage.window(end - 1, end + 1, None)


def test_windows_of_a_file_are_views(tmp_path):
    save(tmp_path / "m.safetensors", {"w": np.arange(1000, dtype=np.float32)})
    source = SafetensorsSource([tmp_path / "m.safetensors"])
    with MappedFile(tmp_path / "m.safetensors") as storage:
        whole = storage.window(0, storage.size, None)
        part = storage.window(source.specs[0].offset, source.specs[0].offset + 8, None)
        assert np.shares_memory(whole, part)


# Streams


def test_a_stream_is_never_sought_and_read_to_the_end_of_its_tensors():
    raw = file_bytes({"w": entry(), "tail": entry("I8", [3_000_000], (8, 3_000_008))}, F32 + b"\1" * 3_000_000)
    pipe = Pipe(raw + b"more", piece=1 << 20)
    source = SafetensorsStream(pipe)
    assert pipe.position == len(raw) - 3_000_008  # the header, and not one byte more
    assert read_values(source) == {"w": F32}
    assert pipe.position == len(raw)


def test_a_stream_cut_in_a_skipped_tail_is_refused():
    raw = file_bytes({"w": entry(), "tail": entry("I8", [100], (8, 108))}, F32 + b"\1" * 99)
    with pytest.raises(CorruptInputError, match="cut short"):
        read_values(SafetensorsStream(Pipe(raw)))


def test_an_error_inside_a_pass_is_not_replaced_by_one_about_the_stream():
    source = SafetensorsStream(Pipe(file_bytes({"w": entry()}, b"")))
    with pytest.raises(ZeroDivisionError), source.open("stdin"):
        raise ZeroDivisionError


def test_a_stream_passes_once():
    source = SafetensorsStream(Pipe(file_bytes({"w": entry()}, F32)))
    read_values(source)
    with pytest.raises(InputError, match="read already"):
        source.open("stdin")


def test_a_stream_that_fails_says_so():
    class Broken(Pipe):
        def readinto(self, view) -> int:
            if self.position >= 8:
                raise OSError("connection reset")
            return super().readinto(memoryview(view)[:8])

    with pytest.raises(InputError, match="connection reset"):
        SafetensorsStream(Broken(file_bytes({"w": entry()}, F32)))

    class Short(Pipe):
        def readinto(self, view) -> int:
            if len(view) == 8 and self.position > 8:
                raise EOFError
            return super().readinto(view)

    with pytest.raises(CorruptInputError, match="EOFError"):
        read_values(SafetensorsStream(Short(file_bytes({"w": entry()}, F32))))


def test_a_file_handed_over_is_closed(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"w": entry()}, F32))
    for use in (True, False):
        file = path.open("rb")
        source = SafetensorsStream(file, close=True)
        if use:
            read_values(source)
        del source
        gc.collect()
        assert file.closed


# Shards


def write_shards(root: Path, shards: dict[str, dict[str, np.ndarray]], weight_map: dict[str, object] | None = None):
    for file, tensors in shards.items():
        (root / file).parent.mkdir(exist_ok=True)
        save(root / file, tensors)
    if weight_map is None:
        weight_map = {t: f for f, tensors in shards.items() for t in tensors}
    index = root / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def array(seed: int, n: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def test_shards_are_read_once_each_in_natural_order(tmp_path):
    shards = {f"model-{i}-of-11.safetensors": {f"l.{i}.a": array(i), f"l.{i}.b": array(-i % 99)} for i in (10, 2, 1)}
    source = SafetensorsSource.from_index(write_shards(tmp_path, shards))
    assert [Path(s).name for s in source.storages] == [f"model-{i}-of-11.safetensors" for i in (1, 2, 10)]
    assert [s.name for s in source.specs] == ["l.1.a", "l.1.b", "l.2.a", "l.2.b", "l.10.a", "l.10.b"]
    assert read_values(source) == {t: a.tobytes() for m in shards.values() for t, a in m.items()}
    assert source.name == tmp_path.name


def test_tensors_the_index_does_not_name_are_read_and_other_files_are_not(tmp_path):
    shards = {"a.safetensors": {"x": array(1), "unnamed": array(2)}, "consolidated.safetensors": {"x": array(3)}}
    index = write_shards(tmp_path, shards, {"x": "a.safetensors"})
    values = read_values(SafetensorsSource.from_index(index))
    assert values == {"x": array(1).tobytes(), "unnamed": array(2).tobytes()}


def test_the_index_decides_between_two_shards(tmp_path):
    shards = {"a.safetensors": {"x": array(1), "y": array(2)}, "b.safetensors": {"x": array(3), "z": array(4)}}
    index = write_shards(tmp_path, shards, {"x": "b.safetensors", "y": "a.safetensors"})
    assert read_values(SafetensorsSource.from_index(index))["x"] == array(3).tobytes()
    index = write_shards(tmp_path, shards, {"y": "a.safetensors", "z": "./b.safetensors"})
    with pytest.raises(InputError, match=r"tensor 'x', which a\.safetensors holds too"):
        SafetensorsSource.from_index(index)


def test_two_files_with_one_name_are_refused_without_an_index(tmp_path):
    save(tmp_path / "a.safetensors", {"x": array(1)})
    save(tmp_path / "b.safetensors", {"x": array(2)})
    with pytest.raises(InputError, match=r"tensor 'x', which a\.safetensors holds too"):
        SafetensorsSource([tmp_path / "b.safetensors", tmp_path / "a.safetensors"])


def test_a_missing_shard_is_named_with_its_tensors(tmp_path):
    shards = {"a.safetensors": {"x": array(1)}, "b.safetensors": {"y": array(2), "z": array(3)}}
    index = write_shards(tmp_path, shards)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"'b.safetensors', which holds 2 of the 3 tensors"):
        SafetensorsSource.from_index(index)


def test_a_promise_that_a_shard_does_not_keep_is_refused(tmp_path):
    index = write_shards(tmp_path, {"a.safetensors": {"x": array(1)}}, dict.fromkeys("xpq", "a.safetensors"))
    with pytest.raises(CorruptInputError, match="no tensor 'p' nor 1 more"):
        SafetensorsSource.from_index(index)


def test_a_truncated_shard_is_refused(tmp_path):
    index = write_shards(tmp_path, {"a.safetensors": {"x": array(1)}, "b.safetensors": {"y": array(2)}})
    shard = tmp_path / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(CorruptInputError, match=r"b\.safetensors.*3 missing"):
        SafetensorsSource.from_index(index)


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "../secret.safetensors",
        "sub/../../secret.safetensors",
        "..",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "C:secret.safetensors",
        "\\\\host\\share\\x",
        "",
        ".",
        "a\0b",
        "9" * 5000,
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_an_index_that_points_outside_is_refused(tmp_path, file):
    (tmp_path / "m").mkdir()
    save(tmp_path / "secret.safetensors", {"x": array(1)})
    index = write_shards(tmp_path / "m", {"sub/a.safetensors": {"x": array(1)}}, {"x": file})
    with pytest.raises(CorruptInputError, match="tensor 'x'"):
        SafetensorsSource.from_index(index)


def test_shards_below_the_index_and_links_to_a_cache_are_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    index = write_shards(
        snapshot, {"sub/b.safetensors": {"y": array(2)}}, {"x": "a.safetensors", "y": "sub/b.safetensors"}
    )
    save(blobs / "0123", {"x": array(1)})
    (snapshot / "a.safetensors").symlink_to(Path("../../blobs/0123"))
    assert read_values(SafetensorsSource.from_index(index)) == {"x": array(1).tobytes(), "y": array(2).tobytes()}
    (blobs / "0123").unlink()
    with pytest.raises(InputError, match=r"no shard 'a.safetensors'"):
        SafetensorsSource.from_index(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {',
        "\x00",
        '{"a": NaN}',
    ],
)
def test_a_malformed_index_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CorruptInputError, match=r"index\.json"):
        SafetensorsSource.from_index(index)


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(path, {"x": array(1)})

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied") as e:
        SafetensorsSource([path])
    assert not isinstance(e.value, CorruptInputError)


def test_a_spec_counts_scalars():
    assert TensorSpec("a", (), "float32", "s", 0, 4).size == 1


@pytest.mark.parametrize("header", [{"w": entry("\ud800")}, {"__metadata__": {"a": "\udfff"}, "w": entry()}], ids=str)
def test_text_that_is_half_a_character_is_refused(tmp_path: Path, header: dict) -> None:
    (tmp_path / "m.safetensors").write_bytes(file_bytes(header, bytes(8)))
    with pytest.raises(CorruptInputError, match="not JSON in UTF-8"):
        SafetensorsSource([tmp_path / "m.safetensors"])
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "m.safetensors", "numpy")
    (tmp_path / "m.safetensors").write_bytes(file_bytes({"\U0001f600": entry()}, bytes(8)))
    assert SafetensorsSource([tmp_path / "m.safetensors"]).specs[0].name == "\U0001f600"
