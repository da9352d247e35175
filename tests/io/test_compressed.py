"""Compressed safetensors: streams and files, whole, cut short and damaged, by real compressors and real pipes."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save

import teleojax as tj
from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources import open_source
from teleojax.sources._compressed import CompressedSource
from teleojax.sources._safetensors import SafetensorsStream
from tests.io.twin import assert_measured, read_all

RNG = np.random.default_rng(11)
ARRAYS = {
    "a": RNG.normal(size=(70, 40)).astype(np.float32),
    "b": RNG.normal(size=5000).astype(np.float16),
    "z": RNG.normal(size=(3, 3)),
}
RAW = save(ARRAYS)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def zstd_stream(data: bytes) -> bytes:
    """Without the length in the header, as `zstd` writes what it reads from a pipe."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(data) + compressor.flush()


def zstd_frames(data: bytes) -> bytes:
    """Many frames, and one to be skipped before each, as pzstd writes them."""
    pieces = [data[i : i + 7001] for i in range(0, len(data), 7001)]
    return b"".join(struct.pack("<II", 0x184D2A50, 4) + b"skip" + zstd(p) for p in pieces)


def gzip_members(data: bytes) -> bytes:
    return gzip.compress(data[:999]) + gzip.compress(data[999:], mtime=0)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "gz of several members": gzip_members,
    "zst": zstd,
    "zst of a pipe": zstd_stream,
    "zst of several frames": zstd_frames,
}


@pytest.fixture(params=COMPRESSORS)
def compressed(request: pytest.FixtureRequest) -> bytes:
    return COMPRESSORS[request.param](RAW)


@pytest.mark.parametrize("name", ["m.safetensors.zst", "m.safetensors.gz", "m"])
def test_files(tmp_path, compressed, name):
    path = tmp_path / name
    path.write_bytes(compressed)
    source = assert_measured(path, ARRAYS)
    assert (type(source), source.name, source.files) == (CompressedSource, name, (path,))
    assert read_all(source) == read_all(source) == {n: a.tobytes() for n, a in ARRAYS.items()}  # it can be read again


def test_streams(compressed):
    source = open_source(io.BytesIO(compressed))
    assert isinstance(source, SafetensorsStream)
    assert dict(tj.measure(source)) == dict(tj.measure(io.BytesIO(RAW)))


def test_a_stream_that_comes_byte_by_byte(compressed):
    class Slow(io.BytesIO):
        def read(self, n=-1, /):
            return super().read(min(n, 1) if n >= 0 else n)

        def readinto(self, buffer, /):
            return super().readinto(memoryview(buffer)[:1])

    assert read_all(open_source(Slow(compressed))) == {n: a.tobytes() for n, a in ARRAYS.items()}
    assert read_all(open_source(Slow(RAW))) == {n: a.tobytes() for n, a in ARRAYS.items()}


def test_standard_input_of_the_command_line(tmp_path, compressed):
    (tmp_path / "m").write_bytes(compressed)
    run = [sys.executable, "-m", "teleojax", "fit", "-", "--format", "jsonl"]
    with subprocess.Popen(["cat", str(tmp_path / "m")], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(run, stdin=cat.stdout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["name"]: r["n"] for r in rows[:-1]} == {n: a.size for n, a in ARRAYS.items()}


def test_a_named_pipe(tmp_path, compressed):
    os.mkfifo(fifo := tmp_path / "fifo")
    writer = threading.Thread(target=fifo.write_bytes, args=(compressed,))
    writer.start()
    try:
        assert read_all(open_source(fifo)) == {n: a.tobytes() for n, a in ARRAYS.items()}
    finally:
        writer.join()


def test_a_directory_of_compressed_files(tmp_path):
    for i, (name, array) in enumerate(ARRAYS.items()):
        (tmp_path / f"part-{i}.safetensors.zst").write_bytes(zstd(save({name: array})))
    assert_measured(tmp_path, ARRAYS)


def test_a_header_length_that_looks_like_gzip(tmp_path):
    """Its first bytes are 1f 8b 08 00: a header of 559,903 bytes."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    raw = (0x088B1F).to_bytes(8, "little") + header.ljust(0x088B1F) + np.float32(3).tobytes()
    (tmp_path / "m.safetensors").write_bytes(raw)
    for target in (tmp_path / "m.safetensors", io.BytesIO(raw)):
        assert read_all(open_source(target)) == {"a": np.float32(3).tobytes()}


# Damage


def test_truncation_anywhere(tmp_path, compressed):
    path = tmp_path / "m.safetensors.zst"
    tail = 0 if compressed.startswith(b"\x1f\x8b") else 4  # without its checksum alone, zstd data are all there
    step = len(compressed) // 40
    for n in (*range(0, len(compressed) - tail, step), len(compressed) - tail - 1):
        path.write_bytes(compressed[:n])
        for target in (path, io.BytesIO(compressed[:n])):
            with pytest.raises(InputError):
                read_all(open_source(target))


def test_what_was_whole_before_the_end_is_kept():
    cut = zstd_frames(RAW)
    cut = cut[: len(cut) * 3 // 4]
    measured = tj.measure(io.BytesIO(cut))
    assert set(measured) | set(measured.failed) == set(ARRAYS)
    assert measured
    assert measured.failed
    assert all("cut short" in reason for reason in measured.failed.values())
    whole = tj.measure(io.BytesIO(RAW))
    assert all(measured[name] == whole[name] for name in measured)


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_wrong_checksum_is_noticed_before_the_last_value_is_handed_over(compress):
    data = bytearray(compress(RAW))
    place = -8 if compress is gzip.compress else -4
    data[place] ^= 1
    for read in (tj.measure, lambda f: read_all(open_source(f))):
        with pytest.raises(CorruptInputError, match=r"(?i)crc|checksum"):
            read(io.BytesIO(bytes(data)))


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_what_follows_the_last_tensor_is_refused(compress):
    """Also where the header has lost its tensors: the checksum would never be reached."""
    for raw in (RAW + b"more", struct.pack("<Q", 2) + b"{}" + RAW):
        with pytest.raises(CorruptInputError, match="bytes after the last tensor"):
            read_all(open_source(io.BytesIO(compress(raw))))
    whole = {"i": np.arange(9), **ARRAYS}
    for target in (compress(save(whole)), compress(save({"i": np.arange(9)})), compress(save({}))):
        assert open_source(io.BytesIO(target)).specs is not None
        assert set(read_all(open_source(io.BytesIO(target)))) <= set(ARRAYS)


def test_damage_anywhere_is_an_error_of_ours_or_none(compressed):
    for _ in range(60):
        damaged = bytearray(compressed)
        damaged[RNG.integers(len(damaged))] ^= 1 << int(RNG.integers(8))
        try:
            found = read_all(open_source(io.BytesIO(bytes(damaged))))
        except TeleojaxError:
            continue
        assert found == {n: a.tobytes() for n, a in ARRAYS.items()}  # checksums: all of it, or an error


def test_a_window_larger_than_the_limit_is_refused():
    params = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=params).compressobj()
    data = compressor.compress(RAW) + compressor.flush()
    with pytest.raises(InputError, match=r"(?i)memory"):
        open_source(io.BytesIO(data))


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_zeros_without_end_allocate_nothing(compress):
    with pytest.raises(InputError, match=r"begin with b'\\x00"):
        open_source(io.BytesIO(compress(bytes(1 << 26))))
    long = (99_999_999).to_bytes(8, "little") + b"{" + b" " * (1 << 20)
    with pytest.raises(CorruptInputError, match="missing"):
        open_source(io.BytesIO(compress(long)))


def test_what_is_not_safetensors_inside(tmp_path):
    (tmp_path / "m.npy.gz").write_bytes(gzip.compress(b"\x93NUMPY\x01\x00" + b"v" * 99))
    with pytest.raises(InputError, match=r"NUMPY.*gzip -d"):
        open_source(tmp_path / "m.npy.gz")
    (tmp_path / "m.zst").write_bytes(zstd(b""))
    with pytest.raises(CorruptInputError, match="nothing"):
        open_source(tmp_path / "m.zst")


def test_without_zstandard(tmp_path, monkeypatch):
    (tmp_path / "m.safetensors.zst").write_bytes(zstd(RAW))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for target in (tmp_path / "m.safetensors.zst", io.BytesIO(zstd(RAW))):
        with pytest.raises(MissingExtraError, match=r"teleojax\[zstd\]"):
            open_source(target)
    (tmp_path / "m.safetensors.gz").write_bytes(gzip.compress(RAW))
    assert_measured(tmp_path / "m.safetensors.gz", ARRAYS)


@pytest.mark.skipif(shutil.which("gzip") is None, reason="the gzip command is not installed")
def test_what_the_gzip_command_writes(tmp_path: Path):
    (tmp_path / "m.safetensors").write_bytes(RAW)
    subprocess.run(["gzip", str(tmp_path / "m.safetensors")], check=True)
    assert_measured(tmp_path / "m.safetensors.gz", ARRAYS)
