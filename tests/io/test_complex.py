"""Complex tensors, measured as |z| from every format that holds them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import teleojax as tj
from teleojax.cli import run
from teleojax.sources import open_source
from teleojax.sources._complex import PIECE_VALUES, Modulus, modulus
from teleojax.sources._index import TensorSpec
from teleojax.sources._storage import Memory, Stream
from tests.reference import assert_moments

RNG = np.random.default_rng(3)
ONLY = "complex type {}: only its modulus can be measured"


def normal(*shape: int, dtype: str = "complex64") -> np.ndarray:
    return (RNG.normal(0, 0.02, shape) + 1j * RNG.normal(0, 0.5, shape)).astype(dtype)


def oracle(z: np.ndarray) -> np.ndarray:
    """|z| in float64, or extended precision for complex128, rounded once."""
    wide = np.dtype("clongdouble") if z.dtype == np.complex128 else np.dtype(np.complex128)
    with np.errstate(all="ignore"):
        return np.abs(z.astype(wide)).astype("float32" if z.dtype == np.complex64 else "float64")


def safetensors(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    pytest.importorskip("safetensors.numpy").save_file(arrays, path / "m.safetensors")
    return path / "m.safetensors"


def npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path / "m.npz", **arrays)
    return path / "m.npz"


def compressed_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path / "m.npz", **arrays)
    return path / "m.npz"


def npy(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", np.asfortranarray(array))
    return path


def torch(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    pt = pytest.importorskip("torch")
    pt.save({n: pt.from_numpy(a) for n, a in arrays.items()}, path / "m.pt")
    return path / "m.pt"


def hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with pytest.importorskip("h5py").File(path / "m.h5", "w") as f:
        for name, array in arrays.items():
            f[name] = array
    return path / "m.h5"


def chunked_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with pytest.importorskip("h5py").File(path / "m.h5", "w") as f:
        for name, array in arrays.items():
            f.create_dataset(name, data=array, chunks=tuple(min(n, 70) for n in array.shape), compression="gzip")
    return path / "m.h5"


def zarr(path: Path, arrays: dict[str, np.ndarray], version: int) -> Path:
    group = pytest.importorskip("zarr").open_group(path / "m.zarr", mode="w", zarr_format=version)
    for name, array in arrays.items():
        group.create_array(name, shape=array.shape, chunks=tuple(min(n, 70) for n in array.shape), dtype=array.dtype)[
            ...
        ] = array
    return path / "m.zarr"


def orbax(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with pytest.importorskip("orbax.checkpoint").StandardCheckpointer() as saver:
        saver.save(path.resolve() / "m", arrays)
    return path / "m"


def flax(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    raw = pytest.importorskip("flax.serialization").msgpack_serialize(arrays)
    (path / "m.msgpack").write_bytes(raw)
    return path / "m.msgpack"


def onnx(path: Path, arrays: dict[str, np.ndarray], *, typed: bool) -> Path:
    package = pytest.importorskip("onnx")
    kinds = {"complex64": 14, "complex128": 15, "float32": 1}
    tensors = [
        package.helper.make_tensor(n, kinds[a.dtype.name], a.shape, a.reshape(-1) if typed else a.tobytes(), not typed)
        for n, a in arrays.items()
    ]
    graph = package.helper.make_graph([], "g", [], [], tensors)
    package.save(package.helper.make_model(graph), path / "m.onnx")
    return path / "m.onnx"


def of_jax(_: Path, arrays: dict[str, np.ndarray]) -> Any:
    return {n: jnp.asarray(a) for n, a in arrays.items()}


def of_torch(_: Path, arrays: dict[str, np.ndarray]) -> Any:
    pt = pytest.importorskip("torch")
    return {n: pt.from_numpy(a).conj() if a.dtype.kind == "c" else pt.from_numpy(a) for n, a in arrays.items()}


BOTH, NARROW = ("complex64", "complex128"), ("complex64",)
FORMATS: dict[str, tuple[Callable[[Path, dict[str, np.ndarray]], Any], tuple[str, ...]]] = {
    "safetensors": (safetensors, NARROW),  # the format has no wider one
    "npz": (npz, BOTH),
    "compressed npz": (compressed_npz, BOTH),
    "npy": (npy, BOTH),
    "torch": (torch, BOTH),
    "hdf5": (hdf5, BOTH),
    "chunked hdf5": (chunked_hdf5, BOTH),
    "zarr 2": (lambda p, a: zarr(p, a, 2), BOTH),
    "zarr 3": (lambda p, a: zarr(p, a, 3), BOTH),
    "orbax": (orbax, BOTH),
    "flax": (flax, BOTH),
    "onnx": (lambda p, a: onnx(p, a, typed=False), BOTH),
    "onnx, typed": (lambda p, a: onnx(p, a, typed=True), BOTH),
    "numpy in memory": (lambda _, a: a, BOTH),
    "big-endian in memory": (lambda _, a: {n: x.astype(x.dtype.newbyteorder(">")) for n, x in a.items()}, BOTH),
    "jax in memory": (of_jax, NARROW),
    "torch in memory": (of_torch, BOTH),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Orbax, about types that it restores by itself
@pytest.mark.parametrize("form", FORMATS)
def test_the_modulus_is_measured_and_the_type_is_told(tmp_path: Path, form: str) -> None:
    write, kinds = FORMATS[form]
    arrays = {k: normal(123, 45, dtype=k) for k in kinds} | {"real": RNG.normal(size=77).astype(np.float32)}
    arrays[kinds[0]].reshape(-1)[:3] = (0, np.inf + 1j, complex(1, np.nan))
    measured = tj.measure(write(tmp_path, arrays))
    assert measured.skipped == measured.failed == {}
    for kind in kinds:
        (name,) = (n for n in measured if n.rpartition("/")[2] == kind)
        spec, moduli = measured.specs[name], modulus(arrays[kind])  # which the next test compares with an oracle
        assert (spec.stored_as, spec.dtype, spec.shape) == (kind, moduli.dtype.name, (123, 45))
        assert_moments(measured[name].moments, moduli, relative=1e-9 if kind == "complex128" else 1e-6)
        order = "F" if spec.order == "F" else "C"
        assert measured[name] == tj.measure({"z": moduli.ravel(order)})["z"]  # bit for bit
    assert measured[kinds[0]].moments.n_nonfinite == 2
    assert (measured[kinds[0]].moments.n_zero, measured[kinds[0]].moments.n_negative) == (1, 0)


@pytest.mark.parametrize("kind", BOTH)
def test_moduli_are_right_to_the_last_place(kind: str) -> None:
    real = "f4" if kind == "complex64" else "f8"
    bits = RNG.integers(0, 2 ** (8 * np.dtype(real).itemsize) - 1, (2, 200_000), np.dtype(f"u{real[1]}"))
    re, im = bits.view(real)
    with np.errstate(all="ignore"):
        im[::2] = (re * RNG.normal(size=len(re)))[::2]  # and parts that are alike
        z = (re + 0j).astype(kind)
        z.real, z.imag = re, im
    got, want = modulus(z), oracle(z)
    assert got.dtype == want.dtype
    known = np.isfinite(re) & np.isfinite(im)
    assert np.array_equal(np.isfinite(got[~known]), np.zeros(np.sum(~known), bool))
    found = np.abs(got[known].view(f"i{real[1]}") - want[known].view(f"i{real[1]}"))  # in units of the last place
    assert found.max() <= (0 if kind == "complex64" else 1)
    assert np.array_equal(modulus(np.array([3e38 + 3e38j, 1e-45j, -0.0, 3 + 4j], kind)), oracle(
        np.array([3e38 + 3e38j, 1e-45j, -0.0, 3 + 4j], kind)
    ))  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", BOTH)
def test_windows_of_any_length_are_made_in_bounded_memory(kind: str, streamed: bool) -> None:
    z = normal(2 * PIECE_VALUES + 4321, dtype=kind)
    spec = TensorSpec("z", z.shape, kind, "s", 24, z.nbytes)
    raw = b"\xa5" * 24 + z.tobytes()
    inner = Stream(io.BytesIO(raw), "s", 0) if streamed else Memory(np.frombuffer(raw, np.uint8))
    opened, step = Modulus(inner, spec), oracle(z).dtype.itemsize
    out, buffer, at = b"", np.empty(8 * PIECE_VALUES + 4096, np.uint8), 0
    size = opened.size or 0
    for length in (step, 777 * step, (PIECE_VALUES - 5) * step, (PIECE_VALUES + 3) * step, size):
        end = min(size, at + length)
        out += opened.window(at, end, buffer).tobytes()
        at = end
    assert out == modulus(z).tobytes()
    again = opened.window(size - step, size, buffer[:size][-step:])  # read before: left as it was
    assert again.shape == (step,)


def test_many_windows_agree_with_one(tmp_path: Path) -> None:
    z = normal(7_000_017)
    path = safetensors(tmp_path, {"a": normal(5), "z": z})
    whole = tj.measure(path)["z"]
    assert tj.measure(path, budget_bytes=64 << 20)["z"] == whole == tj.measure({"z": oracle(z)})["z"]
    parts = tj.measure(path, groups=5)["z"]
    assert sum(g.moments.n for g in parts.groups) == len(z) == parts.moments.n


def test_tied_tensors_are_counted_once(tmp_path: Path) -> None:
    pt = pytest.importorskip("torch")
    z = pt.from_numpy(normal(40, 30))
    pt.save({"embed": z, "head": z}, tmp_path / "m.pt")
    measured = tj.measure(tmp_path / "m.pt")
    assert list(measured) == ["embed"]
    assert measured.skipped == {"head": "tied to embed"}


def test_complex_factors_have_no_product(tmp_path: Path) -> None:
    safetensors(tmp_path, {"w.lora_A.weight": normal(2, 6), "w.lora_B.weight": normal(5, 2)})
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 2}')
    assert set(tj.measure(tmp_path)) == {"w.lora_A.weight", "w.lora_B.weight"}


def test_a_report_names_the_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = safetensors(tmp_path, {"z": normal(400)})
    assert run(["fit", str(path), "--format", "jsonl"]) == 0
    out = capsys.readouterr().out
    assert '"dtype": "complex64"' in out
    assert '"n": 400' in out


def test_streams_say_why_not(tmp_path: Path) -> None:
    path = safetensors(tmp_path, {"w": np.ones(3, np.float32), "z": normal(40)})
    measured = tj.measure(io.BytesIO(path.read_bytes()))
    assert set(measured) == {"w"}
    assert "give the path of the file" in measured.skipped["z"]


def test_a_gradient_leaves_them_out_and_says_so(tmp_path: Path) -> None:
    w, z = RNG.normal(size=(50, 40)).astype(np.float32), normal(50, 40)
    path = safetensors(tmp_path, {"w": w, "z": z})
    written = tj.write_gradient(path, tmp_path / "out")
    assert written.report.measured.skipped == {"z": ONLY.format("complex64")}
    assert [s.name for s in open_source(tmp_path / "out").specs] == ["w"]
    moved = tj.utility_gradient({"w": w, "z": jnp.asarray(z)})
    assert moved["z"].dtype == jnp.complex64
    assert not np.asarray(moved["z"]).any()
    assert np.array_equal(moved["w"], tj.utility_gradient({"w": w})["w"])
    assert set(tj.gradient_summary({"w": w, "z": z}).measured.skipped) == {"z"}


def test_big_endian_files_and_other_pairs_stay_skipped(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", normal(3).astype(">c8"))
    assert tj.measure([tmp_path / "b.npy", safetensors(tmp_path, {"w": np.ones(2, np.float32)})]).skipped == {
        "b": "big-endian complex64 is not read"
    }
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w") as f:
        f["pair"] = np.zeros(2, [("r", "<f4"), ("i", "<f8")])
        f["names"] = np.zeros(2, [("a", "<f4"), ("b", "<f4")])
        f["big"] = np.zeros(2, ">c8")
        f["gaps"] = np.zeros(2, np.dtype({"names": ["r", "i"], "formats": ["<f4", "<f4"], "offsets": [0, 8]}))
    assert {s.name: s.skip for s in open_source(tmp_path / "m.h5").specs} == dict.fromkeys(
        ("pair", "names", "big", "gaps"), "structured type"
    )


def test_no_value_of_a_leaf_is_touched_before_it_is_measured() -> None:
    deleted = jnp.asarray(normal(4))
    deleted.delete()
    measured = tj.measure({"z": deleted, "w": np.ones(3, np.float32)})
    assert set(measured) == {"w"}
    assert "a deleted array" in measured.failed["z"]
    assert jax.config.jax_enable_x64 is False
