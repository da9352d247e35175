"""ONNX: models made by the `onnx` package, read back, with values inside and beside them, and damaged."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import Source, open_source
from teleojax.sources import _onnx as reader
from teleojax.sources._onnx import OnnxSource
from tests.io.twin import read_all
from tests.reference import assert_moments

W = np.random.default_rng(0).normal(0, 0.02, (40, 30)).astype(np.float32)
Q = np.random.default_rng(1).integers(-127, 128, (40, 30)).astype(np.int8)
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")


def as_type(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def named(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def model(initializers: list[TensorProto], nodes: list[Any] | None = None, sparse: list[Any] | None = None) -> Any:
    graph = helper.make_graph(nodes or [], "g", [], [], initializers, sparse_initializer=sparse or [])
    return helper.make_model(graph)


def write(path: Path, initializers: list[TensorProto], nodes: list[Any] | None = None, **options: Any) -> Path:
    path.write_bytes(model(initializers, nodes, **options).SerializeToString())
    return path


def test_values_of_every_type_are_read_where_they_lie(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [named(dtype, as_type(W, dtype)) for dtype in FLOATS])
    source = open_source(path)
    assert isinstance(source, Source)
    assert source.storages == (str(path),)
    assert {s.name: (s.dtype, s.shape, s.skip) for s in source.specs} == {d: (d, (40, 30), None) for d in FLOATS}
    assert read_all(source) == {dtype: as_type(W, dtype).tobytes() for dtype in FLOATS}
    stats = tj.measure(path)
    assert stats["float32"].histogram == tj.measure({"w": W})["w"].histogram
    for dtype in FLOATS:
        assert_moments(stats[dtype].moments, as_type(W, dtype).astype(np.float64))


def test_values_written_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "half": TensorProto.FLOAT16}
    kinds |= {"brain": TensorProto.BFLOAT16, "eight": TensorProto.FLOAT8E4M3FN}
    path = write(tmp_path / "m.onnx", [helper.make_tensor(n, k, W.shape, W.reshape(-1)) for n, k in kinds.items()])
    source = open_source(path)
    values = read_all(source)
    dtypes = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn")
    assert values == {name: as_type(W, dtype).tobytes() for name, dtype in zip(kinds, dtypes, strict=True)}
    assert {s.name for s in source.specs if s.storage == str(path)} == {"float", "double"}  # those lie as they are
    monkeypatch.setattr(reader, "TYPED_BYTES", 1000)
    assert "of which at most 1000 are parsed" in str({s.name: s.skip for s in open_source(path).specs}["half"])


def test_what_is_skipped_says_why(tmp_path: Path) -> None:
    others = [named("i64", np.arange(4)), named("i4", W[0].astype(ml_dtypes.int4)), named("empty", W[:0])]
    others += [helper.make_tensor("text", TensorProto.STRING, (1,), [b"a"]), named("flag", np.ones(2, bool))]
    values, index = named("sparse", W[0, :3]), named("", np.arange(3))
    path = write(tmp_path / "m.onnx", others, sparse=[helper.make_sparse_tensor(values, index, [30])])
    assert {s.name: s.skip for s in open_source(path).specs} == {
        "i64": "integer type int64",
        "i4": "integer type int4",
        "empty": "empty",
        "text": "a string",
        "flag": "type bool is not read",
        "sparse": "sparse",
    }


def test_tensors_of_inner_graphs_and_constants(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=named("not its name", W * 2))
    branches = [helper.make_graph([constant], f"b{i}", [], [], [named("w", W * (3 + i))]) for i in range(2)]
    nodes = [helper.make_node("If", ["x"], ["y"], else_branch=branches[0], then_branch=branches[1])]
    shape = helper.make_node("ConstantOfShape", ["n"], ["z"], value=named("fill", W[0, :1]))
    source = open_source(write(tmp_path / "m.onnx", [named("w", W)], [shape, *nodes]))
    expected = {"w": W, "c": W * 2, "w#1": W * 3, "c#1": W * 2, "w#2": W * 4}
    assert read_all(source) == {name: array.astype(np.float32).tobytes() for name, array in expected.items()}


# Quantised


def dequantised(scale: np.ndarray, zero: np.ndarray | None, dtype: Any = np.int8) -> tuple[list[Any], list[Any]]:
    inputs = ["q", "s", *(["z"] if zero is not None else [])]
    nodes = [helper.make_node("DequantizeLinear", inputs, ["w"])]
    extra = [named("s", scale), *([named("z", zero)] if zero is not None else [])]
    return [named("q", Q.astype(dtype)), *extra], nodes


@pytest.mark.parametrize("zero", [None, np.int8(0)])
def test_int8_with_one_scale_is_read_as_numbers(tmp_path: Path, zero: Any) -> None:
    path = write(tmp_path / "m.onnx", *dequantised(np.float32(0.01), None if zero is None else np.asarray(zero)))
    (spec,) = (s for s in open_source(path).specs if s.name == "q")
    assert (spec.dtype, spec.scale, spec.skip) == ("int8", float(np.float32(0.01)), None)
    assert_moments(tj.measure(path)["q"].moments, Q.astype(np.float64) * float(np.float32(0.01)))


@pytest.mark.parametrize(
    ("scale", "zero", "words"),
    [
        (np.ones(40, np.float32), None, "40 scales"),
        (np.float32(0.5), np.int8(3), "zero point that is not 0"),
        (np.float32(0), None, "the scale 0.0"),
        (np.float32(np.inf), None, "the scale inf"),
    ],
)
def test_other_quantisation_is_skipped(tmp_path: Path, scale: Any, zero: Any, words: str) -> None:
    zero = None if zero is None else np.asarray(zero)
    path = write(tmp_path / "m.onnx", *dequantised(np.asarray(scale), zero))
    assert words in str({s.name: s.skip for s in open_source(path).specs}["q"])


def test_scales_that_are_computed_or_differ(tmp_path: Path) -> None:
    tensors, nodes = dequantised(np.float32(0.5), None)
    twice = [*nodes, helper.make_node("DequantizeLinear", ["q", "s2"], ["v"])]
    for initializers in (tensors, [*tensors, named("s2", np.asarray(np.float32(0.25)))]):
        path = write(tmp_path / "m.onnx", initializers, twice)
        assert "computed or not the same" in str({s.name: s.skip for s in open_source(path).specs}["q"])
    same = [*tensors, named("s2", np.asarray(np.float32(0.5)))]
    assert {s.name: s.skip for s in open_source(write(tmp_path / "m.onnx", same, twice)).specs}["q"] is None


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["CCCC"], value=named("", W))
    path = write(tmp_path / "m.onnx", [named("NNNN", W)], [constant])
    path.write_bytes(path.read_bytes().replace(b"NNNN", b"N\xccNN").replace(b"CCCC", b"\xffCCC"))
    assert read_all(open_source(path)) == {r"N\xccNN": W.tobytes(), r"\xffCCC": W.tobytes()}


# External data


def external(folder: Path, **entries: str) -> Path:
    """A model whose one tensor has its values elsewhere, as the entries say."""
    tensor = named("w", W)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(parents=True, exist_ok=True)
    return write(folder / "m.onnx", [tensor])


def test_external_data_as_the_package_writes_it(tmp_path: Path) -> None:
    arrays = {dtype: as_type(W, dtype) for dtype in FLOATS}
    for folder, together in (("one", True), ("many", False)):
        (tmp_path / folder).mkdir()
        made = model([named(n, a) for n, a in arrays.items()])
        onnx.save(made, tmp_path / folder / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=together,
                  location="m.onnx.data" if together else None, size_threshold=0)  # fmt: skip
        source = open_source(tmp_path / folder / "m.onnx")
        assert len(source.storages) == (1 if together else len(FLOATS))
        assert read_all(source) == {n: a.tobytes() for n, a in arrays.items()}
        assert read_all(open_source(tmp_path / folder)) == {n: a.tobytes() for n, a in arrays.items()}


def test_external_data_without_offset_and_length(tmp_path: Path) -> None:
    path = external(tmp_path, location="sub/w.bin")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(W.tobytes())
    assert read_all(open_source(path)) == {"w": W.tobytes()}


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "C:\\w.bin", "..\\w.bin", "", "\0"])
def test_external_data_outside_the_directory_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(CorruptInputError, match="external data in"):
        open_source(external(tmp_path / "model", location=location))


def test_links_are_followed_inside_alone(tmp_path: Path) -> None:
    path = external(tmp_path / "model", location="w.bin")
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(CorruptInputError, match="a link out of the directory"):
        open_source(path)
    (tmp_path / "blob").write_bytes(path.read_bytes())  # as in the Hugging Face cache: both are links to one place
    path.unlink()
    path.symlink_to(tmp_path / "blob")
    assert read_all(open_source(path)) == {"w": W.tobytes()}
    (tmp_path / "model" / "w.bin").unlink()
    (tmp_path / "model" / "w.bin").symlink_to("w.bin")
    with pytest.raises(TeleojaxError, match=r"w\.bin"):
        open_source(path)


def test_a_location_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, location="w.bin")
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"\xff.bin"[:5]))
    with pytest.raises(CorruptInputError, match="external data in"):
        open_source(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "1"}, "bytes 1 to 4801.*which has 4800"),
        ({"offset": str(2**63)}, "which has 4800"),
        ({"offset": "-4"}, "the offset '-4'"),
        ({"offset": "x"}, "the offset 'x'"),
        ({"offset": "9" * 30}, "the offset '999"),
        ({"length": "4799"}, "4799 bytes of external data; needed 4800"),
        ({"length": str(2**63)}, "9223372036854775808 bytes"),
    ],
)
def test_external_extents_are_checked(tmp_path: Path, entries: dict[str, str], words: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(CorruptInputError, match=words):
        open_source(external(tmp_path, location="w.bin", **entries))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensor 'w'.*'w\.bin'.*Put it beside m\.onnx") as e:
        open_source(external(tmp_path, location="w.bin"))
    assert not isinstance(e.value, CorruptInputError)
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "m.onnx")


# Damage


def damaged_tensor(**fields: Any) -> TensorProto:
    tensor = named("w", W)
    for key, value in fields.items():
        if isinstance(value, list):
            tensor.ClearField(key)
            getattr(tensor, key).extend(value)
        else:
            setattr(tensor, key, value)
    return tensor


def field(number: int, content: bytes) -> bytes:
    """A field of a message by hand, since the package refuses to nest so deep."""
    length, out = len(content), b""
    while length > 127:
        length, out = length >> 7, out + bytes([length & 127 | 128])
    return bytes([number << 3 | 2]) + out + bytes([length]) + content


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph ..., `depth` times."""
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x07" + field(7, graph)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "without a graph"),
        (b"\x08\x07", "without a graph"),
        (b"\x08\x07\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes at byte"),
        (b"\x08" + b"\xff" * 20, "a number without an end"),
        (b"\x08\x07\x3b\x00", "wire type 3"),
        (b"\x08\x07\x3a\x02\x2a\x05", "field 5 of 5 bytes"),
        (model([named("w", W), named("w", W)]).SerializeToString(), "2 tensors of that name"),
        (model([damaged_tensor(dims=[-1, 4])]).SerializeToString(), r"the shape \(-1, 4\)"),
        (model([damaged_tensor(dims=[1] * 65)]).SerializeToString(), "the shape"),
        (model([damaged_tensor(dims=[2**62, 2**62])]).SerializeToString(), "4800 bytes of values"),
        (model([damaged_tensor(raw_data=W.tobytes()[:-1])]).SerializeToString(), "4799 bytes of values"),
        (model([damaged_tensor(raw_data=b"")]).SerializeToString(), "0 bytes of values"),
        (nested(5000), "nested more than 32 deep"),
    ],
)
def test_damage_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "m.onnx").write_bytes(raw)
    with pytest.raises(CorruptInputError, match=words) as e:
        OnnxSource(tmp_path / "m.onnx")
    assert "m.onnx" in str(e.value)
    assert "\n" not in str(e.value)


def test_numbers_that_do_not_fit_the_shape(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT16, (4, 4), np.ones(16))
    tensor.dims[0] = 5
    with pytest.raises(CorruptInputError):
        read_all(open_source(write(tmp_path / "m.onnx", [tensor])))
    tensor.dims[0] = 2**60
    with pytest.raises(CorruptInputError, match="values"):
        open_source(write(tmp_path / "m.onnx", [tensor]))


def survives(path: Path, raw: bytes) -> bool:
    """Whether the file is accepted; anything but a source with readable values or a refusal is an error."""
    path.write_bytes(raw)
    try:
        read_all(OnnxSource(path))
    except TeleojaxError:
        return False
    return True


def test_every_truncation_and_mutation_ends_in_a_source_or_a_refusal(tmp_path: Path) -> None:
    tensors, nodes = dequantised(np.float32(0.5), None)
    tensors += [named("w", W[:3]), helper.make_tensor("h", TensorProto.FLOAT16, (30,), W[0])]
    inner = helper.make_graph([], "b", [], [], [named("v", W[:1])])
    nodes.append(helper.make_node("Loop", ["x"], ["y"], body=inner))
    raw = model(tensors, nodes).SerializeToString()
    assert not any(survives(tmp_path / "m.onnx", raw[:n]) for n in range(0, len(raw) - 40, 7))
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(600):
        changed = bytearray(raw)
        for i in rng.integers(0, len(raw), rng.integers(1, 9)):
            changed[i] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
        accepted += survives(tmp_path / "m.onnx", bytes(changed))
    assert 0 < accepted < 600


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", [named("w", W)])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'teleojax\[onnx\]'"):
        open_source(path)
