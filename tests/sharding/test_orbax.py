"""Checkpoints saved in shards, by one process or four, read by one: the numbers of the arrays in memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import teleojax as tj
from tests.sharding.processes import FIT, LAUNCH, finish, lines

SHAPES = {"wide": (64, 20_480), "tall": (4000, 520), "odd": (2, 4, 33_333)}

SAVE = """
import sys
import jax, jax.numpy as jnp, numpy as np
import orbax.checkpoint as ocp
path, coordinator, n_processes, process = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if n_processes > 1:
    jax.distributed.initialize(coordinator, num_processes=n_processes, process_id=process)
assert jax.device_count() == 8 and jax.process_count() == n_processes
from tests.sharding.test_orbax import arrays
sharding = jax.NamedSharding(jax.make_mesh((2, 4), ("x", "y")), jax.P("x", "y"))
tree = {name: jax.make_array_from_callback(a.shape, sharding, lambda i, a=a: a[i]) for name, a in arrays().items()}
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)
"""


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    plain = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {**plain, **{f"{name}_bf16": a.astype(jnp.bfloat16) for name, a in plain.items()}}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("n_processes", [1, 4])
def test_sharded_checkpoints_measure_as_the_arrays_do(tmp_path: Path, n_processes: int) -> None:
    path, coordinator = tmp_path / "checkpoint", f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // n_processes}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    saving = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(path), coordinator, str(n_processes), str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(n_processes)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in saving]
    finally:
        for process in saving:
            process.kill()
    assert [process.returncode for process in saving] == [0] * n_processes, outputs
    assert len(list(path.glob("ocdbt.process_*"))) == n_processes
    written = json.loads((path / "array_metadatas" / "process_0").read_text())["array_metadatas"]
    chunks = {a["array_metadata"]["param_name"]: a["array_metadata"]["chunk_shape"] for a in written}
    assert (chunks["wide"], chunks["tall_bf16"], chunks["odd"]) == ([32, 5120], [2000, 130], [1, 1, 33_333])
    found, memory = tj.measure(path), tj.measure(arrays())
    assert set(found) == set(arrays())
    assert dict(found) == dict(memory)
    assert {s.name: s.shape for s in found.specs.values()} == {name: a.shape for name, a in arrays().items()}
    # shared by two processes, each of which reads half of the bytes
    fit = [*FIT, str(path), "--format", "jsonl", "-o"]
    finish([*fit, str(tmp_path / "1.jsonl")])
    finish([*LAUNCH, "-n", "2", "--", *fit, str(tmp_path / "2.jsonl"), "--multiprocess"])
    assert lines(tmp_path / "1.jsonl") == lines(tmp_path / "2.jsonl")
    assert len(lines(tmp_path / "1.jsonl")) == len(arrays())
