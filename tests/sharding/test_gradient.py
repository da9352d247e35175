"""Sharded arrays: the gradient has their sharding, and not one bit depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FLAGS = "--xla_force_host_platform_device_count=8"
CHECK = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, SingleDeviceSharding
import teleojax as tj

assert len(jax.devices()) == 8
mesh = jax.make_mesh((4, 2), ("a", "b"))
w = np.random.default_rng(0).standard_normal((512, 640), np.float32)
for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn):
    flat = np.asarray(jnp.asarray(w).astype(dtype))
    wanted = tj.utility_gradient({"w": flat})["w"]
    bits = lambda x: np.asarray(x).view(f"u{flat.itemsize}")
    layouts = [NamedSharding(mesh, P(*spec)) for spec in (("a", "b"), ("b",), (None, "a"), (("a", "b"),), ())]
    for sharding in [*layouts, SingleDeviceSharding(jax.devices()[3])]:
        for wrt in ("log",) if dtype != jnp.float32 else ("log", "value"):
            x = jax.device_put(flat, sharding)
            found = tj.utility_gradient({"w": x}, wrt=wrt)["w"]
            assert found.sharding == x.sharding, (found.sharding, x.sharding)
            assert (found.dtype, found.shape, found.committed) == (x.dtype, x.shape, x.committed)
            assert {s.device for s in found.addressable_shards} == {s.device for s in x.addressable_shards}
            expected = wanted if wrt == "log" else tj.utility_gradient({"w": flat}, wrt=wrt)["w"]
            assert np.array_equal(bits(found), bits(expected))
            (given,) = tj.utility_gradient([x], wrt=wrt, donate=True)
            assert given.sharding == found.sharding and x.is_deleted()
            assert np.array_equal(bits(given), bits(expected))
            again = jax.jit(lambda g: g + 0)(given)  # and it computes like any other array
            assert np.array_equal(bits(again), bits(jnp.asarray(expected) + 0))
loose = jnp.asarray(w)
assert not tj.utility_gradient([loose])[0].committed
integers = jax.device_put(np.ones((8, 8), np.int32), layouts[0])
zeros = tj.utility_gradient([integers])[0]
assert zeros.sharding == integers.sharding and zeros.dtype == jnp.int32 and not zeros.any()
print("equal")
"""


def python(*arguments: str, flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_sharding_is_kept_and_changes_no_bit() -> None:
    done = python("-c", CHECK, flags=FLAGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


def test_files_are_equal_from_one_and_eight_devices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": rng.standard_normal(300_001).astype(np.float32), "b": rng.standard_normal(100_003)}
    save_file(tensors, tmp_path / "m.safetensors")
    for name, flags in (("one", ""), ("eight", FLAGS)):
        arguments = ("gradient", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / name))
        done = python("-m", "teleojax", *arguments, flags=flags)
        assert done.returncode == 0, done.stderr
    for file in ("model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "eight" / file).read_bytes()
