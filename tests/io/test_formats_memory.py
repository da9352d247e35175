"""Files of 288 MiB, in every format that is not simply mapped, read in a budget of 64 MiB by a process of its own."""

from __future__ import annotations

import gzip
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import h5py
import numpy as np
import pytest
import zarr
import zstandard

from tests.io.test_memory import run_and_watch

MIB = 1 << 20
ROWS, COLUMNS, TIMES = 512, 4096, 36
BLOCK = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)  # 8 MiB, TIMES of it
SHAPE = (TIMES * ROWS, COLUMNS)
SCRIPT = """
import sys, teleojax as tj
measured = tj.measure(sys.argv[1], budget_bytes=64 << 20)
assert not measured.failed, measured.failed
print(sum(s.moments.n for s in measured.values()))
"""


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as f:
        d = f.create_dataset("w", SHAPE, "f4", chunks=(ROWS // 8, COLUMNS), compression="gzip", compression_opts=1)
        d[:ROWS] = BLOCK
        for i in range(8, TIMES * 8):  # compressing once is enough
            mask, raw = d.id.read_direct_chunk((i % 8 * ROWS // 8, 0))
            d.id.write_direct_chunk((i * ROWS // 8, 0), raw, mask)


def flax_chunks(path: Path) -> None:
    flax.serialization.MAX_CHUNK_SIZE, limit = 50 * MIB, flax.serialization.MAX_CHUNK_SIZE
    try:
        path.write_bytes(flax.serialization.msgpack_serialize({"w": np.tile(BLOCK, (TIMES, 1))}))
    finally:
        flax.serialization.MAX_CHUNK_SIZE = limit


def zarr_chunks(path: Path) -> None:
    array = zarr.create_array(path, shape=SHAPE, chunks=(ROWS // 2, COLUMNS // 4), dtype="float32")
    for i in range(TIMES):
        array[i * ROWS : (i + 1) * ROWS] = BLOCK


def compressed(compress: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        entry = {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, TIMES * BLOCK.nbytes]}
        header = json.dumps({"w": entry}).encode()
        block = compress(BLOCK.tobytes())
        with path.open("wb") as f:
            f.write(compress(struct.pack("<Q", len(header)) + header))
            for _ in range(TIMES):
                f.write(block)

    return write


def zeros(path: Path) -> None:
    np.savez_compressed(path, w=np.zeros((2 * TIMES * ROWS, COLUMNS), np.float32))  # 576 MiB in 0.6 MB


FORMATS: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "hdf5 in gzip chunks": ("m.h5", hdf5, BLOCK.size * TIMES),
    "flax in chunks": ("m.msgpack", flax_chunks, BLOCK.size * TIMES),
    "zarr in zstd chunks": ("m.zarr", zarr_chunks, BLOCK.size * TIMES),
    "safetensors in gzip": ("m.safetensors.gz", compressed(lambda b: gzip.compress(b, 1)), BLOCK.size * TIMES),
    "safetensors in zstd": ("m.safetensors.zst", compressed(zstandard.compress), BLOCK.size * TIMES),
    "a bomb of zeros": ("m.npz", zeros, 0),
}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="anonymous memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", FORMATS)
def test_far_less_memory_than_values(tmp_path, kind):
    name, write, n = FORMATS[kind]
    write(tmp_path / name)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    out, peak = run_and_watch([sys.executable, "-c", SCRIPT, str(tmp_path / name)])
    assert int(out) == n
    assert 40 * MIB < peak <= 300 * MIB
