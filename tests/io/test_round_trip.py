"""The same trained weights, written in every format by that format's own library, give the same results."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flax.serialization
import gguf
import h5py
import numpy as np
import onnx
import orbax.checkpoint as ocp
import pytest
import zarr
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

import teleojax as tj
from tests.conftest import ROOT
from tests.io.test_real_networks import blazepose_values

Arrays = Mapping[str, np.ndarray]
LARGEST = 12  # tensors of a network that are written: the largest, of different shapes


def write_gguf(path: Path, arrays: Arrays) -> None:
    writer = gguf.GGUFWriter(path, "none")
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(path: Path, arrays: Arrays) -> None:
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    onnx.save(helper.make_model(graph), path)


def write_hdf5(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def write_hdf5_chunked(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1, chunks=True)


def write_zarr(path: Path, arrays: Arrays) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for name, array in arrays.items():
        group.create_array(name, data=array)


def write_orbax(path: Path, arrays: Arrays) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, dict(arrays))


def write_torch(path: Path, arrays: Arrays) -> None:
    import torch

    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, path)


FORMATS: dict[str, tuple[str, Callable[[Path, Any], Any]]] = {
    "safetensors": ("m.safetensors", lambda path, arrays: save_file(dict(arrays), path)),
    "npz": ("m.npz", lambda path, arrays: np.savez(path, **arrays)),
    "npz compressed": ("m.npz", lambda path, arrays: np.savez_compressed(path, **arrays)),
    "flax": ("m.msgpack", lambda path, arrays: path.write_bytes(flax.serialization.msgpack_serialize(dict(arrays)))),
    "gguf": ("m.gguf", write_gguf),
    "onnx": ("m.onnx", write_onnx),
    "hdf5": ("m.h5", write_hdf5),
    "hdf5 gzip": ("m.h5", write_hdf5_chunked),
    "zarr": ("m.zarr", write_zarr),
    "orbax": ("orbax", write_orbax),
    "torch": ("m.pt", write_torch),
}


def efficientnet() -> dict[str, np.ndarray]:
    """The published file is PyTorch's own: read by PyTorch."""
    torch = pytest.importorskip("torch")
    script = [sys.executable, str(ROOT / "scripts" / "fetch_models.py"), "efficientnet"]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True)
    state = torch.load(ROOT / "models" / "efficientnet" / "efficientnet-lite0.pth", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.fixture(scope="module", params=["minilm", "blazepose", "efficientnet"])
def weights(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Of a trained network the largest tensors, by plain names."""
    if request.param == "efficientnet":
        arrays = efficientnet()
    else:
        path = request.getfixturevalue("networks")[request.param]
        arrays = load_file(path) if request.param == "minilm" else blazepose_values(path)
    arrays = {name: a for name, a in arrays.items() if a.dtype.kind == "f" and a.size > 1}
    largest = sorted(arrays, key=lambda name: arrays[name].size, reverse=True)
    shapes = {arrays[name].shape: name for name in reversed(largest)}
    names = sorted(shapes.values(), key=largest.index)[:LARGEST]
    return {f"layer{i}": np.ascontiguousarray(arrays[name]) for i, name in enumerate(names)}


def same(found: Any, wanted: Any) -> bool:
    """Equal, numbers up to the rounding of float32 sums over rows that begin elsewhere."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=2e-4, abs_tol=2e-5)
    return found == wanted


@pytest.mark.parametrize("form", [f for f in FORMATS if f != "torch" or find_spec("torch")])
def test_every_format_gives_the_same_results(weights: dict[str, np.ndarray], form: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    write(tmp_path / name, weights)
    expected, report = tj.fit(weights), tj.fit(tmp_path / name)
    assert set(report.results) == set(weights)
    for tensor, values in weights.items():
        one, other = expected[tensor].to_dict(), report[tensor].to_dict()
        # GGUF and ONNX name dimensions in their own ways; the values and their order are the same
        assert math.prod(other.pop("shape")) == math.prod(one.pop("shape")) == values.size
        assert report.measured[tensor].histogram == expected.measured[tensor].histogram
        for exact in ("dtype", "size", "n", "n_zero", "n_nonfinite", "n_negative", "min", "max", "best_family"):
            assert other[exact] == one[exact], exact
        for rounded in ("mu", "sigma"):  # float32 sums over rows that begin elsewhere
            assert math.isclose(other[rounded], one[rounded], rel_tol=5e-7), rounded
        assert same(other, one), (form, tensor, one, other)
