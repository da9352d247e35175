"""Small valid inputs of every format, written by the format's own library, for the fuzzer to start from.

    python -m tests.fuzz.corpus FOLDER [TARGET...]

leaves FOLDER/<target>/seeds/* and, where an input is one file of a directory, the directory in FOLDER/<target>/whole.
Of such a target the first byte of an input says which file of the directory (in sorted order) the others stand for.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

W = np.random.default_rng(0).normal(0, 0.02, (6, 8)).astype(np.float32)
SIDECAR = W.tobytes()  # beside the ONNX model, for tensors with external data
KERAS = """
import sys, keras
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="one"), keras.layers.Dense(2, name="two")])
model.save(sys.argv[1])
"""
TOKENS = {  # words of the formats that mutations may insert
    "safetensors": ['"dtype":"F32"', '"BF16"', '"F8_E4M3"', '"F4"', '"shape":[', '"data_offsets":[0,', "__metadata__"],
    "safetensors_index": ["weight_map", "metadata", "../", "model-00001-of-00002.safetensors", "\\u0000", "\\ud800"],
    "npy": ["'descr': ", "'fortran_order': True", "'shape': (", "<f2", "|O", ">f8", "|V2", "('a','<f4')", "\x93NUMPY"],
    "npz": ["w.npy", "PK\x01\x02", "PK\x03\x04", "PK\x05\x06", "PK\x06\x06", "PK\x06\x07"],
    "tflite": ["TFL3"],
    "torch": ["data.pkl", "byteorder", "little", "big", "ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nHalfStorage\n"],
    "gguf": ["GGUF", "general.alignment", "general.architecture", "blk.0.attn_q.weight"],
    "onnx": ["DequantizeLinear", "Constant", "location", "offset", "length", "m.bin"],
    "hdf5": ["\x89HDF\r\n\x1a\n", "OHDR", "OCHK", "TREE", "SNOD", "HEAP", "FRHP", "BTHD", "FADB", "EAHD"],
    "keras": ["model.weights.h5", "metadata.json", "config.json", "layers/dense/vars"],
    "flax": ["__msgpack_chunked_array__", "shape", "chunks", "float32", "bfloat16", "opt_state"],
    "zarr2": ['"dtype"', '"<f4"', '"compressor"', '"filters"', '"order":"F"', '"fill_value"', '"dimension_separator"'],
    "zarr3": ['"data_type"', '"node_type":"array"', '"chunk_shape"', '"codecs"', "bytes", "sharding_indexed", "gzip"],
    "zarr_zip": ["zarr.json", ".zarray", ".zgroup", "PK\x01\x02", "PK\x03\x04", "PK\x05\x06"],
    "orbax": ["tree_metadata", "key_metadata", "value_metadata", "skip_deserialize", "use_ocdbt", "item_handlers"],
    "orbax_zarr3": ["tree_metadata", "use_zarr3", "node_type", "data_type", "chunk_shape", "codecs"],
    "compressed": ["\x1f\x8b\x08", "(\xb5/\xfd", "P*M\x18"],
    "statistics": ["teleojax statistics 1\n", '"kind"', '"spec"', '"moments"', '"histogram"', '"cells"', '"groups"'],
    "journal": ["teleojax journal 1\n", '"checkpoint"', '"options"', '"files"', '"name"'],
}


def _arrays() -> dict[str, np.ndarray]:
    return {"h.0.w": W, "h.1.b": W[0].astype(np.float16), "step": np.arange(3), "none": np.empty((0, 2), np.float32)}


def safetensors(_: Path) -> Iterator[bytes]:
    """A plain file, one with metadata, one without tensors."""
    from safetensors.numpy import save

    yield save(_arrays())
    yield save({"w": W.astype(np.float64)}, metadata={"format": "pt"})
    yield save({})


def safetensors_index(folder: Path) -> Iterator[bytes]:
    """Two shards and their index."""
    from safetensors.numpy import save_file

    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, key in zip(names, "ab", strict=True):
        save_file({key: W[:2], f"{key}2": W[2:4]}, folder / name)
    index = {"metadata": {}, "weight_map": {k: names[k[0] == "b"] for k in ("a", "a2", "b", "b2")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    yield from ()


def npy(_: Path) -> Iterator[bytes]:
    """Both orders, a big-endian and a structured type, text, the three versions of the header."""
    structured = np.zeros(2, [("ä", "<f4"), ("b", "<i2")])
    for array in (W, np.asfortranarray(W), W.astype(">f8"), np.float16(2), np.array(["a"]), structured):
        yield saved_array(np.asarray(array))
    with io.BytesIO() as file:
        np.lib.format.write_array(file, W, version=(2, 0))
        yield file.getvalue()


def saved_array(array: np.ndarray) -> bytes:
    """The bytes that `numpy.save` writes."""
    with io.BytesIO() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of version 3 of the format
        np.save(file, array)
        return file.getvalue()


def npz(_: Path) -> Iterator[bytes]:
    """Stored, compressed, and with a member that is no array."""
    for write in (np.savez, np.savez_compressed):
        with io.BytesIO() as file:
            write(file, **_arrays())
            yield file.getvalue()
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("w.npy", saved_array(W))
            archive.writestr("notes.txt", b"text")
        yield file.getvalue()


def tflite(_: Path) -> Iterator[bytes]:
    """Floats, scaled integers, a sparse tensor, two subgraphs, values after the flatbuffer."""
    from tests.io.test_tflite import T, Tensor, build

    floats = [Tensor("w", (6, 8), T.FLOAT32, 1), Tensor("h", (4,), T.FLOAT16, 2), Tensor("out", (1,), T.FLOAT32, 0)]
    ints = [
        Tensor("q", (8,), T.INT8, 3, (0.5,)),
        Tensor(None, (2,), T.INT8, 4, (0.5, 1.0)),
        Tensor("s", (8,), 0, 3, (), True),
    ]
    data: list[Any] = [b"", W.tobytes(), b"\1\2" * 4, bytes(range(8)), b"\3\4"]
    yield build([floats], data[:3])
    yield build([floats, ints], data)
    yield build([[Tensor("w", (2,), T.FLOAT32, 1)]], [b"", (16, 8)])


def torch(_: Path) -> Iterator[bytes]:
    """An archive of many kinds of tensors, a bare tensor, an optimizer's state, the format before archives."""
    import torch as pt

    w = pt.from_numpy(W)
    tree = {
        "w": w,
        "tied": w,
        "t": w.t(),
        "rows": w[1:3, 2:4],
        "b": w.bfloat16(),
        "s": w.to_sparse(),
        "i": pt.arange(3),
    }
    for saved, options in ((tree, {}), (w.clone(), {}), ([w + 1, (w + 2,)], {"_use_new_zipfile_serialization": False})):
        with io.BytesIO() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pt.save(saved, file, **options)
            yield file.getvalue()
    state = {"state_dict": {"w": w[:2].clone()}, "optimizer": {"state": {0: {"m": w[0].clone()}}}, "epoch": 3}
    with io.BytesIO() as file:
        pt.save(state, file)
        yield file.getvalue()


def gguf(folder: Path) -> Iterator[bytes]:
    """Plain and quantised tensors behind fields of several kinds."""
    from gguf import GGMLQuantizationType as T
    from gguf import GGUFWriter, quants

    path = folder / "seed.gguf"
    values = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    for kinds in ((), (T.Q8_0, T.Q4_0, T.Q5_1, T.MXFP4)):
        writer = GGUFWriter(path, "llama")
        writer.add_token_list(["a", "bc"])
        writer.add_array("scores", [0.5, 1.5])
        writer.add_bool("flag", True)
        writer.add_tensor("token_embd.weight", values)
        writer.add_tensor("blk.0.attn_q.weight", values.astype(np.float16))
        for kind in kinds:
            writer.add_tensor(f"blk.0.{kind.name}.weight", quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield path.read_bytes()
    yield b"GGUF" + (2).to_bytes(4, "little") + bytes(16)
    path.unlink()


def onnx(_: Path) -> Iterator[bytes]:
    """Values as bytes, as numbers and outside; a constant, a scale, a graph in a node, a sparse tensor."""
    from onnx import TensorProto, helper, numpy_helper

    def named(name: str, array: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(array, name)

    def model(tensors: list[Any], nodes: list[Any], **options: Any) -> bytes:
        return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors, **options)).SerializeToString()

    q, scale = named("q", np.arange(8, dtype=np.int8)), named("scale", np.float32(0.1))
    typed = helper.make_tensor("typed", TensorProto.FLOAT16, (2,), [1.0, 2.0])
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=W.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "m.bin"), ("offset", "0"), ("length", str(W.nbytes))):
        outside.external_data.add(key=key, value=value)
    inner = helper.make_graph([], "then", [], [], [named("w", W[:1])])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=named("", W[:2])),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
        helper.make_node("If", ["x"], ["z"], then_branch=inner),
    ]
    sparse = helper.make_sparse_tensor(named("values", W[0]), named("at", np.arange(8)), [48])
    yield model([named("w", W), named("i", np.arange(2))], [])
    yield model([named("w", W[:2]), q, scale, typed, outside], nodes, sparse_initializer=[sparse])


def hdf5(folder: Path) -> Iterator[bytes]:
    """Contiguous, chunked, compressed, compact and foreign values, in the oldest and the newest form of the file."""
    import h5py

    path = folder / "seed.h5"
    for versions in ("earliest", "latest"):
        with h5py.File(path, "w", libver=versions) as file:
            file["layers/dense/vars/0"] = W
            file["big"] = W[0].astype(">f4")
            file["int"], file["text"] = np.arange(3), "text"
            file["soft"], file["out"] = h5py.SoftLink("/big"), h5py.ExternalLink("x.h5", "/y")
            file.create_dataset("chunked", data=W, chunks=(4, 4), compression="gzip", shuffle=True, fletcher32=True)
        yield path.read_bytes()
        with h5py.File(path, "w", libver=versions) as file:
            file["w"] = W[:2]
            file.create_dataset("c", data=W[:2], chunks=(1, 4))
        yield path.read_bytes()
    path.unlink()


def keras(folder: Path) -> Iterator[bytes]:
    """A model of two layers."""
    import subprocess

    path = folder / "m.keras"
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", KERAS, str(path)], env=env, check=True)
    yield path.read_bytes()
    path.unlink()


def flax(_: Path) -> Iterator[bytes]:
    """A tree of arrays and other leaves, a bare array, and an array in chunks as Flax cuts large ones."""
    import ml_dtypes
    from flax import serialization

    tree = {"params": {"Dense_0": {"kernel": W, "bias": W[0].astype(ml_dtypes.bfloat16)}}, "step": 3, "note": "text"}
    state = {"opt_state": {"0": {"mu": W[:1]}}, "z": 1 + 2j, "f": np.float32(2), "raw": b"bytes", "none": None}
    yield serialization.msgpack_serialize(tree | state)
    yield serialization.msgpack_serialize(W[:2])
    whole, serialization.MAX_CHUNK_SIZE = serialization.MAX_CHUNK_SIZE, 64
    yield serialization.msgpack_serialize({"params": {"w": W[:2]}})
    serialization.MAX_CHUNK_SIZE = whole


def _zarr(store: Any, version: int) -> None:
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the zarr package, about version 2
        group = zarr.open_group(store, mode="w", zarr_format=version)
        for name, values in (("encoder/w", W), ("b", W[0].astype("f2")), ("step", np.arange(2))):
            made = group.create_array(
                name, shape=values.shape, chunks=tuple(max(1, n // 2) for n in values.shape), dtype=values.dtype
            )
            made[...] = values


def zarr2(folder: Path) -> Iterator[bytes]:
    """A group of version 2 in a directory."""
    _zarr(str(folder), 2)
    yield from ()


def zarr3(folder: Path) -> Iterator[bytes]:
    """A group of version 3 in a directory."""
    _zarr(str(folder), 3)
    yield from ()


def zarr_zip(folder: Path) -> Iterator[bytes]:
    """Groups of both versions in archives."""
    from zarr.storage import ZipStore

    for version in (2, 3):
        path = folder / "m.zarr.zip"
        with ZipStore(path, mode="w") as store:
            _zarr(store, version)
        yield path.read_bytes()
        path.unlink()


def _orbax(folder: Path, **options: Any) -> None:
    import orbax.checkpoint as ocp

    tree = {
        "params": {"h": [{"w": W}, {"w": W[0]}], "i": np.arange(2)},
        "opt_state": {"mu": W[0]},
        "py": 3,
        "word": "text",
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save((folder / "10").resolve(), tree)


def orbax(folder: Path) -> Iterator[bytes]:
    """A step of zarr arrays in OCDBT."""
    _orbax(folder)
    yield from ()


def orbax_zarr3(folder: Path) -> Iterator[bytes]:
    """A step of zarr 3 arrays in directories of their own."""
    _orbax(folder, use_ocdbt=False, use_zarr3=True)
    yield from ()


def compressed(folder: Path) -> Iterator[bytes]:
    """One file by gzip and by zstd, with and without checksum, in one frame and several."""
    import zstandard

    for raw in safetensors(folder):
        yield gzip.compress(raw, mtime=0)
        yield zstandard.ZstdCompressor(write_checksum=True).compress(raw)
    half = zstandard.ZstdCompressor().compress
    yield half(raw[:5]) + half(raw[5:])


def unnamed(folder: Path) -> Iterator[bytes]:
    """One file of every format that is recognised by what it holds."""
    for made in (safetensors, npy, npz, tflite, gguf, onnx, hdf5, flax, compressed, zarr_zip):
        yield next(made(folder))


def statistics(_: Path) -> Iterator[bytes]:
    """Statistics with and without groups, histogram and rounding cells."""
    import teleojax as tj
    from teleojax.engine import Measured, dump_statistics
    from teleojax.stats import TensorStats

    arrays = {**_arrays(), "wide": W.astype(np.float64) * 1e-300}
    for options in ({}, {"groups": 2}, {"histogram": False}):
        yield dump_statistics(tj.measure(arrays, **options))
    found = tj.measure({"w": W})
    codes = {"w": TensorStats.from_codes(np.arange(-7, 8), 0.1)}
    yield dump_statistics(Measured("codes", found.specs, codes, {}, {}, seconds=0.0))


def journal(folder: Path) -> Iterator[bytes]:
    """The journal of a run over the file that the target opens, and one torn in its last record."""
    import teleojax as tj
    from teleojax.engine._journal import Journal
    from teleojax.sources import open_source

    checkpoint = measured_file(folder)
    path = folder / "journal"
    with Journal(path, open_source(checkpoint), {}) as made:
        for name, stats in tj.measure(checkpoint).items():
            made.add(name, stats)
    raw = path.read_bytes()
    yield raw
    yield raw[:-5]
    path.unlink()
    checkpoint.unlink()


def measured_file(folder: Path) -> Path:
    """A checkpoint of fixed name, content and time: what a journal is compared with."""
    from safetensors.numpy import save_file

    path = folder / "m.safetensors"
    save_file({"h.0.w": W, "h.1.b": W[0]}, path)
    os.utime(path, (1, 1))
    return path


CORPUS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "safetensors": safetensors, "stream": safetensors, "safetensors_index": safetensors_index, "npy": npy, "npz": npz,
    "tflite": tflite, "torch": torch, "gguf": gguf, "onnx": onnx, "hdf5": hdf5, "keras": keras, "flax": flax,
    "zarr2": zarr2, "zarr3": zarr3, "zarr_zip": zarr_zip, "orbax": orbax, "orbax_zarr3": orbax_zarr3,
    "compressed": compressed, "unnamed": unnamed, "statistics": statistics, "journal": journal,
}  # fmt: skip


def write(folder: Path, target: str) -> None:
    """The seeds of one target, and the directory that they are files of, if any."""
    whole, seeds = folder / target / "whole", folder / target / "seeds"
    for made in (whole, seeds):
        made.mkdir(parents=True, exist_ok=True)
    found = list(CORPUS[target](whole)) or [bytes([i]) + p.read_bytes() for i, p in enumerate(files_of(whole))]
    if not any(whole.iterdir()):
        whole.rmdir()
    for i, raw in enumerate(found):
        (seeds / f"{i:03d}").write_bytes(raw)


def files_of(folder: Path) -> list[Path]:
    """The files below a directory, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    for name in sys.argv[2:] or CORPUS:
        write(Path(sys.argv[1]), name)
