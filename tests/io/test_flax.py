"""Flax's msgpack: written by flax.serialization, then damaged and forged with msgpack itself."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import PytreeSource, open_source
from teleojax.sources import _flax as reader
from teleojax.sources._flax import FlaxSource
from tests.io.twin import assert_measured, read_all

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def write(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(tree if isinstance(tree, bytes) else flax.serialization.msgpack_serialize(tree))
    return path


def packed(value: Any) -> bytes:
    return msgpack.packb(value)


def array(*fields: Any) -> msgpack.ExtType:
    return msgpack.ExtType(1, packed(fields))


def test_a_train_state(tmp_path):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(nn.relu(nn.Dense(70)(x)))

    net = Net()
    params = net.init(jax.random.key(0), np.ones((1, 8)))["params"]
    state = TrainState.create(apply_fn=net.apply, params=params, tx=optax.adam(1e-3))
    arrays = {
        f"params.{layer}.{kind}": np.asarray(params[layer][kind])
        for layer in ("Dense_0", "Dense_1")
        for kind in ("kernel", "bias")
    }
    path = write(tmp_path, flax.serialization.to_bytes(state))
    skipped = {s.name: s.skip for s in open_source(path).specs if s.skip}
    assert skipped.pop("step") == "not an array: int"
    assert {n.split(".")[2] for n in skipped} == {"count", "mu", "nu"}
    assert set(skipped.values()) == {"optimizer state"}
    skipped |= {"step": "not an array: int"}
    assert type(assert_measured(path, arrays, skipped)) is FlaxSource


def test_every_kind_of_leaf_has_the_name_it_has_in_memory(tmp_path):
    tree = {
        "params": {
            "f4": normal(40, 30),
            "f8": normal(5).astype(np.float64),
            "f2": normal(5, 2).astype(np.float16),
            "bf16": normal(5, 2).astype(ml_dtypes.bfloat16),
            "fp8": normal(9).astype(ml_dtypes.float8_e4m3fn),
            "list": [np.float32(2.5), {"x\ny": normal(3)}],
            "fortran": np.asfortranarray(normal(6, 7)),
            "é" * 40: normal(1),
        }
    }
    other = {
        "i": np.arange(3),
        "u": np.uint8(3),
        "b": np.array([True]),
        "c": np.ones(2, np.complex64),
        "e": np.zeros((0, 2), np.float32),
        "n": None,
        "s": "text" * 40,
        "y": b"bytes",
        "z": 1j,
        "k": -3,
        "g": 2.0**70,
        "t": True,
    }
    arrays = {s.name: s.storage for s in PytreeSource(tree).specs}
    leaves = dict(zip(arrays, jax.tree.leaves(tree), strict=True))
    skipped = {
        "i": "integer type int64",
        "u": "integer type uint8",
        "b": "type bool is not read",
        "c": "complex type complex64: only its modulus can be measured",
        "e": "empty",
        "n": "not an array: NoneType",
        "s": "not an array: str",
        "y": "not an array: bytes",
        "z": "not an array: complex",
        "k": "not an array: int",
        "g": "not an array: float",
        "t": "not an array: bool",
    }
    source = assert_measured(write(tmp_path, tree | other), leaves, skipped)
    assert {s.storage for s in source.specs} == {str(tmp_path / "flax_model.msgpack")}  # all in place


def test_a_bare_array(tmp_path):
    assert_measured(write(tmp_path, values := normal(7, 3)), {"array": values})


def test_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    tree = {
        "a": {"w": normal(77, 31), "h": normal(999).astype(np.float16), "small": normal(9)},
        "opt_state": normal(500),
    }
    path = write(tmp_path, tree)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    arrays = {"a.w": tree["a"]["w"], "a.h": tree["a"]["h"], "a.small": tree["a"]["small"]}
    source = assert_measured(path, arrays, {"opt_state": "optimizer state"})
    assert source.files == (path,)
    raw, buffer = tree["a"]["w"].tobytes(), np.empty(77 * 31 * 4, np.uint8)
    with source.open(next(s.storage for s in source.specs if s.name == "a.w")) as opened:
        for start, stop in np.sort(RNG.integers(0, len(raw) + 1, (60, 2))).tolist():
            assert opened.window(start, stop, buffer).tobytes() == raw[start:stop]
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    assert_measured(write(tmp_path, values := normal(60, 2)), {"array": values})


# Damage


def test_truncation_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 400)
    raw = flax.serialization.msgpack_serialize({"a": normal(5), "b": {"c": normal(150), "d": 3}, "e": "text" * 20})
    for n in range(len(raw)):
        path = write(tmp_path, raw[:n])
        with pytest.raises(CorruptInputError, match=r"flax_model\.msgpack"):
            FlaxSource(path)
    with pytest.raises(CorruptInputError, match="1 bytes after the tree"):
        FlaxSource(write(tmp_path, raw + b"\0"))


def test_damage_anywhere_is_an_error_of_ours_or_none(tmp_path):
    raw = flax.serialization.msgpack_serialize({"a": normal(5), "b": {"c": normal(3), "d": 3}, "e": "text" * 20})
    refused = 0
    for _ in range(400):
        damaged = bytearray(raw)
        damaged[RNG.integers(len(raw))] = RNG.integers(256)
        try:
            read_all(open_source(write(tmp_path, bytes(damaged))))
        except TeleojaxError:
            refused += 1
    assert refused > 40


DATA = normal(4).tobytes()
FORGED = {
    "twice": (b"\x82" + (packed("a") + packed(1)) * 2, "the key 'a' twice"),
    "key of bytes": (b"\x81" + packed(b"a") + packed(1), "a key at byte 1 that is no text"),
    "key of maps": (b"\x81\x80\x01", "a key at byte 1 that is no text"),
    "long name": (packed({"a" * 2_000_000: 1}), "near byte 1"),
    "deep": (b"\x81\xa1a" * 100_000 + b"\x01", "maps nested more than 100 deep"),
    "deep lists": (b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01", "maps nested more than 100 deep"),
    "deep shape": (
        packed({"a": msgpack.ExtType(1, b"\x93" + b"\x91" * 3000 + b"\x01" + packed("float32") + packed(DATA))}),
        "near byte",
    ),
    "many leaves": (b"\x81\xa1a\xdd" + struct.pack(">I", 2**31) + b"\x01" * 20_000, "more than 10000 leaves"),
    "length of 2^32": (b"\x81\xa1a\xc9" + b"\xff" * 4 + b"\x01" + DATA, "bytes missing of 4294967295"),
    "text of 2^32": (b"\x81\xa1a\xdb" + b"\xff" * 4 + DATA, "bytes missing of 4294967295"),
    "map of 2^32": (b"\x81\xa1a\xdf" + b"\xff" * 4 + b"\xa1b\x01", "near byte"),
    "shape of 2^63": (packed({"a": array([2**63, 2], "float32", DATA)}), "16 bytes for float32 of shape"),
    "negative shape": (packed({"a": array([-4, -1], "float32", DATA)}), "the shape"),
    "shape of floats": (packed({"a": array([4.0], "float32", DATA)}), "the shape"),
    "shape of no list": (packed({"a": array(4, "float32", DATA)}), "the shape"),
    "high rank": (packed({"a": array([1] * 65, "float32", DATA)}), "the shape"),
    "short": (packed({"a": array([5], "float32", DATA)}), "16 bytes for float32 of shape"),
    "no type": (packed({"a": array([4], 3, DATA)}), "other than shape, type and bytes"),
    "text for bytes": (packed({"a": array([4], "float32", "x" * 16)}), "other than shape, type and bytes"),
    "two fields": (packed({"a": array([4], DATA)}), "other than shape, type and bytes"),
    "more": (packed({"a": msgpack.ExtType(1, packed([[4], "float32", DATA]) + b"\0")}), "1 bytes after its values"),
    "reserved": (b"\x81\xa1a\xc1", "near byte"),
}
CHUNKS = {
    "no shape": {"chunks": {}},
    "shape of maps": {"shape": {"0": {}}, "chunks": {}},
    "shape out of order": {"shape": {"1": 4}, "chunks": {"0": array([4], "float32", DATA)}},
    "no chunks": {"shape": {"0": 4}, "chunks": {}},
    "a list": {"shape": {"0": 4}, "chunks": [array([4], "float32", DATA)]},
    "numbers": {"shape": {"0": 4}, "chunks": {"0": 4}},
    "out of order": {"shape": {"0": 4}, "chunks": {"1": array([4], "float32", DATA)}},
    "too few": {"shape": {"0": 5}, "chunks": {"0": array([4], "float32", DATA)}},
    "two types": {
        "shape": {"0": 6},
        "chunks": {"0": array([4], "float32", DATA), "1": array([2], "float64", DATA)},
    },
    "scalars": {"shape": {"0": 4}, "chunks": {"0": msgpack.ExtType(3, packed([[4], "float32", DATA]))}},
}
FORGED |= {
    f"chunks: {n}": (packed({"a": {"__msgpack_chunked_array__": True, **m}}), "array 'a'") for n, m in CHUNKS.items()
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_files_are_refused(tmp_path, monkeypatch, case):
    monkeypatch.setattr(reader, "MAX_LEAVES", 10_000)
    raw, words = FORGED[case]
    with pytest.raises(CorruptInputError, match=words):
        FlaxSource(write(tmp_path, raw))


def test_types_that_only_a_name_says_are_listed(tmp_path):
    tree = {"a": array([4], "float128", DATA), "b": array([2], "O", DATA), "c": msgpack.ExtType(77, DATA)}
    tree |= {"d": array([4], "float32", DATA), 7: array([4], "float32", DATA)}
    source = open_source(write(tmp_path, packed(tree)))
    assert {s.name: s.skip for s in source.specs} == {
        "a": "type float128 is not read",
        "b": "type O is not read",
        "c": "not an array: extension 77",
        "d": None,
        "7": None,
    }
    assert read_all(source) == {"d": DATA, "7": DATA}


def test_names_that_join_to_the_same_are_told_apart(tmp_path):
    tree = {"a": {"b": normal(3)}, "a.b": normal(2)}
    assert_measured(write(tmp_path, tree), {"a.b": tree["a"]["b"], "a.b#1": tree["a.b"]})


def test_other_files_that_begin_like_a_map(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"\x81\x00\x00\x00 not a tree")
    with pytest.raises(InputError, match="content that begins with"):
        open_source(tmp_path / "m.bin")
    (tmp_path / "m.msgpack").write_bytes(b"")
    with pytest.raises(CorruptInputError, match=r"m\.msgpack"):
        open_source(tmp_path / "m.msgpack")


def test_only_what_stands_between_the_arrays_is_read(tmp_path, monkeypatch):
    read = []
    take = reader._Cursor.read
    monkeypatch.setattr(reader._Cursor, "read", lambda self, n: read.append(n) or take(self, n))
    path = write(tmp_path, {f"w{i}": normal(1 << 16) for i in range(20)})
    assert len(open_source(path).specs) == 20
    assert sum(read) < path.stat().st_size / 10


def test_without_msgpack(tmp_path, monkeypatch):
    path = write(tmp_path, {"a": normal(3)})
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(MissingExtraError, match=r"teleojax\[flax\]"):
        tj.measure(path)


def test_a_long_key_over_many_leaves_is_refused(tmp_path):
    path = write(tmp_path, packed({"x" * 1_000_000: [0] * 100}))
    with pytest.raises(CorruptInputError, match="names without end"):
        open_source(path)
