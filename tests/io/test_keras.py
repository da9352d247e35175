"""Keras 3 files, written by Keras with its JAX backend in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from teleojax._errors import CorruptInputError, InputError, TeleojaxError
from teleojax.sources import open_source
from teleojax.sources._hdf5 import Hdf5Source
from tests.io.twin import assert_measured, read_all

SCRIPT = """
import sys, numpy as np, keras
for policy in ("float32", "bfloat16"):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, name="first"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Flatten(),
        keras.layers.Lambda(lambda x: x * 2),
        keras.layers.Dense(150, name="last"),
    ])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    folder = sys.argv[1] + "/" + policy
    model.save(folder + ".keras")
    model.save_weights(folder + ".weights.h5")
    model.save(folder + ".h5")
    bits = "u2" if policy == "bfloat16" else "f4"
    values = {w.path.replace("/", "|"): np.asarray(w.value).view(bits) for w in model.weights}
    np.savez(folder + ".npz", **values)
"""
VARIABLES = {  # of the HDF5 file of weights
    "layers/conv2d/vars/0": "first|kernel",
    "layers/conv2d/vars/1": "first|bias",
    "layers/batch_normalization/vars/0": "norm|gamma",
    "layers/batch_normalization/vars/1": "norm|beta",
    "layers/batch_normalization/vars/2": "norm|moving_mean",
    "layers/batch_normalization/vars/3": "norm|moving_variance",
    "layers/dense/vars/0": "last|kernel",
    "layers/dense/vars/1": "last|bias",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def values_of(folder: Path, policy: str) -> dict[str, np.ndarray]:
    """The variables as Keras has them, by layer and name."""
    with np.load(folder / f"{policy}.npz") as archive:
        kinds = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
        return {"|".join(n.split("|")[-2:]): archive[n].view(kinds[policy]) for n in archive.files}


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_of_keras_3(saved, policy, suffix):
    values = values_of(saved, policy)
    path = saved / f"{policy}{suffix}"
    skipped = {s.name: s.skip for s in open_source(path).specs if s.name.startswith("optimizer/vars/")}
    assert set(skipped.values()) == {"optimizer state", "integer type int32"}
    assert len(skipped) == 2 + 2 * 6  # Adam's: iterations, rate, two moments of each trainable variable
    source = assert_measured(path, {name: values[key] for name, key in VARIABLES.items()}, skipped)
    assert type(source) is Hdf5Source
    assert {s.storage for s in source.specs if s.skip is None} == {str(path)}  # nothing is copied


def test_a_model_of_the_old_kind(saved):
    values = values_of(saved, "float32")
    path = saved / "float32.h5"
    arrays, skipped = {}, {}
    for s in open_source(path).specs:
        parts = s.name.split("/")
        if parts[0] == "model_weights":
            assert parts[1] == parts[-2]
            arrays[s.name] = values[f"{parts[-2]}|{parts[-1]}"]
        else:
            skipped[s.name] = "optimizer state" if s.dtype == "float32" else "integer type int32"
    assert len(arrays) == len(VARIABLES)
    assert {n.split("/")[0] for n in skipped} == {"optimizer_weights"}
    assert_measured(path, arrays, skipped)


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def members(saved: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(saved / "float32.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_an_archive_says_of_layers_is_not_looked_at(tmp_path, members):
    hostile = members | {"config.json": b"[" * 100_000, "../../evil.py": b"raise SystemExit", "/etc/x": b""}
    source = open_source(packed(tmp_path / "m.keras", hostile))
    assert read_all(source).keys() == VARIABLES.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.keras"]


@pytest.mark.parametrize("name", ["m.keras", "m.zip", "m"])
def test_compressed_weights_are_refused_with_a_remedy(tmp_path, members, name):
    with pytest.raises(InputError, match=r"compressed.*unzip PATH model\.weights\.h5"):
        open_source(packed(tmp_path / name, members, zipfile.ZIP_DEFLATED))


def test_weights_that_are_missing_or_twice(tmp_path, members):
    rest = {n: d for n, d in members.items() if n != "model.weights.h5"}
    with pytest.raises(InputError, match=r"0 members named model\.weights\.h5"):
        open_source(packed(tmp_path / "m.keras", rest))
    path = packed(tmp_path / "m.keras", members)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(InputError, match="2 members"):
        open_source(path)


def test_damaged_archives(tmp_path, saved):
    raw = (saved / "float32.keras").read_bytes()
    path = tmp_path / "m.keras"
    for n in (0, 10, 1000, len(raw) // 2, len(raw) - 30, len(raw) - 1):
        path.write_bytes(raw[:n])
        with pytest.raises(CorruptInputError, match=r"m\.keras"):
            open_source(path)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_all(open_source(path))
        except TeleojaxError:
            continue
