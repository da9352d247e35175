"""TensorFlow Lite: small models built with the schema's own functions, read back and then damaged."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import flatbuffers
import ml_dtypes
import numpy as np
import pytest
import tflite

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources._index import Source, by_storage
from teleojax.sources._tflite import TYPES, TfliteSource
from tests.reference import assert_moments

T = tflite.TensorType


@dataclass
class Tensor:
    name: str | bytes | None
    shape: tuple[int, ...]
    type: int
    buffer: int
    scales: tuple[float, ...] = ()
    sparse: bool = False


def vector(b: flatbuffers.Builder, start, offsets: list[int]) -> int:
    start(b, len(offsets))
    for o in reversed(offsets):
        b.PrependUOffsetTRelative(o)
    return b.EndVector()


def build(subgraphs: list[list[Tensor]], buffers: list[bytes | tuple[int, int]]) -> bytes:
    """A model; a buffer given as (offset, size) lies outside the flatbuffer."""
    b = flatbuffers.Builder(1024)
    made = []
    for data in buffers:
        held = b.CreateNumpyVector(np.frombuffer(data, np.uint8)) if isinstance(data, bytes) and data else None
        tflite.BufferStart(b)
        if held is not None:
            tflite.BufferAddData(b, held)
        if isinstance(data, tuple):
            tflite.BufferAddOffset(b, data[0])
            tflite.BufferAddSize(b, data[1])
        made.append(tflite.BufferEnd(b))
    buffer_vector = vector(b, tflite.ModelStartBuffersVector, made)
    graphs = []
    for tensors in subgraphs:
        made = []
        for t in tensors:
            name = None if t.name is None else b.CreateString(t.name)
            shape = b.CreateNumpyVector(np.array(t.shape, np.int32)) if t.shape else None
            quantisation = sparsity = None
            if t.scales:
                scales = b.CreateNumpyVector(np.array(t.scales, np.float32))
                tflite.QuantizationParametersStart(b)
                tflite.QuantizationParametersAddScale(b, scales)
                quantisation = tflite.QuantizationParametersEnd(b)
            if t.sparse:
                tflite.SparsityParametersStart(b)
                sparsity = tflite.SparsityParametersEnd(b)
            tflite.TensorStart(b)
            if shape is not None:
                tflite.TensorAddShape(b, shape)
            tflite.TensorAddType(b, t.type)
            tflite.TensorAddBuffer(b, t.buffer)
            if name is not None:
                tflite.TensorAddName(b, name)
            if quantisation is not None:
                tflite.TensorAddQuantization(b, quantisation)
            if sparsity is not None:
                tflite.TensorAddSparsity(b, sparsity)
            made.append(tflite.TensorEnd(b))
        tensor_vector = vector(b, tflite.SubGraphStartTensorsVector, made)
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensor_vector)
        graphs.append(tflite.SubGraphEnd(b))
    subgraph_vector = vector(b, tflite.ModelStartSubgraphsVector, graphs)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddSubgraphs(b, subgraph_vector)
    tflite.ModelAddBuffers(b, buffer_vector)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    return bytes(b.Output())


def read_values(source: Source) -> dict[str, bytes]:
    out = {}
    for storage in source.storages:
        with source.open(storage) as opened:
            for s in by_storage(source.specs).get(storage, ()):
                out[s.name] = opened.window(s.offset, s.offset + s.nbytes, None).tobytes()
    return out


def opened(tmp_path: Path, raw: bytes) -> TfliteSource:
    path = tmp_path / "m.tflite"
    path.write_bytes(raw)
    return TfliteSource(path)


W = np.arange(6, dtype=np.float32).reshape(2, 3)
H = np.linspace(-1, 1, 4).astype(np.float16)
D = np.array(2.5)
B = np.ones((2, 2), ml_dtypes.bfloat16)
Q = np.ones(4, np.int8)
MIXED = build(
    [
        [
            Tensor("input", (1, 3), T.FLOAT32, 0),
            Tensor("conv/w;conv/bn", (2, 3), T.FLOAT32, 1),
            Tensor("half", (4,), T.FLOAT16, 2),
            Tensor("paddings", (2,), T.INT32, 3),
            Tensor("quantised", (4,), T.INT8, 4, scales=(0.5,)),
            Tensor("per channel", (2, 2), T.INT8, 12, scales=(0.5, 0.25)),
            Tensor("sparse", (4,), T.FLOAT32, 5, sparse=True),
        ],
        [
            Tensor("shared", (2, 3), T.FLOAT32, 1),
            Tensor("half", (), T.FLOAT64, 6),
            Tensor("half", (2, 2), T.BFLOAT16, 7),
            Tensor("short", (9,), T.FLOAT32, 8),
            Tensor("text", (1,), T.STRING, 9),
            Tensor("future", (1,), 99, 10),
            Tensor(None, (1,), T.INT4, 11),
        ],
    ],
    [
        b"",
        W.tobytes(),
        H.tobytes(),
        b"\0" * 8,
        b"\1" * 4,
        b"\2" * 4,
        D.tobytes(),
        B.tobytes(),
        b"\3" * 8,
        b"abcd",
        b"efgh",
        b"\5",
        b"\6" * 4,
    ],
)


def test_constants_are_read_and_the_rest_is_listed(tmp_path):
    source = opened(tmp_path, MIXED)
    assert isinstance(source, Source)
    assert {s.name: s.skip for s in source.specs} == {
        "conv/w;conv/bn": None,
        "half": None,
        "paddings": "integer type int32",
        "quantised": None,
        "per channel": "quantised int8 with 2 scales (not read yet)",
        "sparse": "sparse",
        "half#1": None,
        "half#2": None,
        "short": "8 bytes of float32 do not fill the shape (9,)",
        "text": "string is not a number",
        "future": "unknown type 99",
        "subgraph1.tensor6": "integer type int4",
    }
    values = {"conv/w;conv/bn": W, "half": H, "half#1": D, "half#2": B, "quantised": Q}
    assert read_values(source) == {n: a.tobytes() for n, a in values.items()}
    assert {s.name: (s.dtype, s.shape) for s in source.specs if s.skip is None} == {
        n: (a.dtype.name, a.shape) for n, a in values.items()
    }


def test_values_after_the_flatbuffer_are_read(tmp_path):
    tensors = [[Tensor("w", (2, 3), T.FLOAT32, 1), Tensor("v", (2, 3), T.FLOAT32, 2)]]
    size = len(build(tensors, [b"", (1 << 40, 24), b"\7" * 24]))
    raw = build(tensors, [b"", (size, 24), b"\7" * 24])
    assert len(raw) == size
    assert read_values(opened(tmp_path, raw + W.tobytes())) == {"w": W.tobytes(), "v": b"\7" * 24}
    with pytest.raises(CorruptInputError, match="1 missing"):
        opened(tmp_path, raw + W.tobytes()[:-1])
    with pytest.raises(CorruptInputError, match="missing"):
        opened(tmp_path, build(tensors, [b"", (2**63, 2**63), b"\7" * 24]))
    placeholder = build(tensors, [b"", (1, 1), b"\7" * 24])
    assert [s.name for s in opened(tmp_path, placeholder).specs] == ["v"]


def test_names_that_are_not_utf_8_are_escaped(tmp_path):
    (spec,) = opened(tmp_path, build([[Tensor(b"\xffw", (1,), T.FLOAT32, 0)]], [b"\0" * 4])).specs
    assert spec.name == "\\xffw"


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_type_numbers_are_those_of_the_schema(kind):
    code = getattr(T, kind.upper())
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    assert TYPES[code] == (kind, dtype.itemsize)


def test_every_type_of_the_schema_is_known():
    named = {v: k for k, v in vars(T).items() if k.isupper()}
    assert {c: n.upper() for c, (n, _) in TYPES.items()} == named


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "identifier b''"),
        (b"\x1c\0\0\0TFL2" + b"\0" * 100, "identifier b'TFL2'"),
        (b"\xff\xff\xff\x7fTFL3" + b"\0" * 100, "leads out"),
        (b"\x1c\0\0\0TFL3", "leads out"),
        (build([[Tensor("w", (1,), T.FLOAT32, 7)]], [b"\0" * 4]), "8 buffers, where at most 1"),
        (build([[Tensor("w", (-1, -1), T.FLOAT32, 0)]], [b"\0" * 4]), r"shape \(-1, -1\)"),
        (build([[Tensor("w", (1,) * 65, T.FLOAT32, 0)]], [b"\0" * 4]), "65 dimensions"),
        (build([[Tensor(n, (2,), T.FLOAT32, i) for i, n in enumerate("ab")]], [(8, 8), (12, 8)]), "overlaps"),
    ],
)
def test_damage_is_named(tmp_path, raw, words):
    with pytest.raises(CorruptInputError, match=words) as e:
        opened(tmp_path, raw)
    assert "m.tflite" in str(e.value)
    assert "\n" not in str(e.value)


def test_subgraphs_that_share_one_long_vector_do_not_multiply(tmp_path):
    b = flatbuffers.Builder(1024)
    tflite.BufferStart(b)
    buffers = vector(b, tflite.ModelStartBuffersVector, [tflite.BufferEnd(b)])
    tflite.TensorStart(b)
    tensor = tflite.TensorEnd(b)
    tensors = vector(b, tflite.SubGraphStartTensorsVector, [tensor] * 5000)
    tflite.SubGraphStart(b)
    tflite.SubGraphAddTensors(b, tensors)
    subgraphs = vector(b, tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(b)] * 5000)  # 25 million visits
    tflite.ModelStart(b)
    tflite.ModelAddSubgraphs(b, subgraphs)
    tflite.ModelAddBuffers(b, buffers)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    with pytest.raises(CorruptInputError, match="tensors, where at most"):
        opened(tmp_path, bytes(b.Output()))


def survives(path: Path, raw: bytes) -> bool:
    """Whether the file is accepted; anything but a source with readable values or a refusal is an error."""
    path.write_bytes(raw)
    try:
        read_values(TfliteSource(path))
    except TeleojaxError:
        return False
    return True


def test_every_truncation_ends_in_a_source_or_a_refusal(tmp_path):
    accepted = [survives(tmp_path / "m.tflite", MIXED[:n]) for n in range(len(MIXED))]
    assert not any(accepted[: len(MIXED) // 2])


def test_every_mutation_ends_in_a_source_or_a_refusal(tmp_path):
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(600):
        raw = bytearray(MIXED)
        for i in rng.integers(8, len(raw), rng.integers(1, 9)):
            raw[i] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
        accepted += survives(tmp_path / "m.tflite", bytes(raw))
    assert 0 < accepted < 600


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'teleojax\[tflite\]'"):
        opened(tmp_path, MIXED)


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        TfliteSource(tmp_path / "m.tflite")


def test_int8_with_a_scale_is_measured_as_numbers(tmp_path):
    rng = np.random.default_rng(0)
    scale = np.float32(0.0123)
    steps = np.clip(np.rint(rng.normal(0, 30, 50_000)), -128, 127).astype(np.int8)
    steps[:3] = -128, 127, 0
    path = tmp_path / "m.tflite"
    path.write_bytes(build([[Tensor("w", (500, 100), T.INT8, 1, scales=(scale,))]], [b"", steps.tobytes()]))
    stats = tj.measure(path)["w"]
    values = steps.astype(np.float64) * float(scale)
    assert_moments(stats.moments, values)
    np.testing.assert_allclose(stats.histogram.values(), np.unique(np.abs(values[values != 0])), rtol=1e-12)
    lower, upper = stats.histogram.edges()
    np.testing.assert_allclose((lower + upper) / 2, stats.histogram.values(), rtol=1e-12)
    np.testing.assert_allclose(upper - lower, float(scale), rtol=1e-9)
    twice = stats.merge(stats)
    assert twice.histogram.scale == float(scale)
    assert twice.histogram.n == 2 * np.count_nonzero(values)
    fit = tj.fit(path)["w"].lognormal
    exact = np.abs(rng.normal(0, 30, 400_000))
    unrounded = tj.fit({"w": exact[(exact > 0.5) & (exact < 127.5)].astype(np.float32)})["w"].lognormal
    assert abs(fit.kl_nats - unrounded.kl_nats) < 4 * fit.kl_se + 0.003
    along = tj.fit(path, axis=0)["w"]
    np.testing.assert_allclose(along.mu[7], np.log(np.abs(values[700:800][values[700:800] != 0])).mean(), rtol=1e-5)


def test_names_that_take_more_than_they_may_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [Tensor(f"name{i}", (1,), T.FLOAT32, i + 1) for i in range(3)]
    raw = build([tensors], [b"", *(bytes(4) for _ in tensors)])
    monkeypatch.setattr("teleojax.sources._names.MOST_CHARACTERS", 15)
    assert len(opened(tmp_path, raw).specs) == 3
    monkeypatch.setattr("teleojax.sources._names.MOST_CHARACTERS", 14)
    with pytest.raises(CorruptInputError, match="names without end"):
        opened(tmp_path, raw)
