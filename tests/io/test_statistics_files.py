"""Statistics files: what is read is what was measured, shards merge to the whole, and damage is said, not read."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

import teleojax as tj
from teleojax.cli import run
from teleojax.engine import dump_statistics
from teleojax.stats import TensorStats
from teleojax.stats._codec import pack, record, unpack

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal(40_000).astype(np.float32),
    "b.weight": RNG.standard_normal(3000).astype(np.float32),
    "half": RNG.standard_normal(9000).astype(np.float16),
    "brain": RNG.standard_normal((30, 500)).astype(ml_dtypes.bfloat16),
    "wide": np.asarray([1e-300, 1.0, np.inf, np.nan, 0.0, -2.5]),
    "zeros": np.zeros(7, np.float32),
    "ids": np.arange(5),
    "name \x1b[31m\n ü": RNG.standard_normal(50).astype(np.float32),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.stats"
    tj.save_statistics(tj.measure(TENSORS), path)
    return path


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"histogram": False}], ids=str)
def test_what_is_read_is_what_was_measured(tmp_path: Path, options: dict) -> None:
    measured = tj.measure(TENSORS, **options)
    tj.save_statistics(measured, tmp_path / "m.stats")
    found = tj.load_statistics(tmp_path / "m.stats")
    assert found.specs == measured.specs
    assert found.stats == measured.stats
    assert (found.source, found.skipped, found.failed) == (measured.source, measured.skipped, measured.failed)
    assert dump_statistics(found) == (tmp_path / "m.stats").read_bytes()


def test_rounding_cells_are_kept() -> None:
    stats = TensorStats.from_codes(np.arange(-7, 8), 0.1)
    _, found = unpack(pack({}, stats), "here")
    assert found is not None
    assert found.cells is not None
    assert stats.cells is not None
    for name in ("lower", "upper", "counts"):
        np.testing.assert_array_equal(getattr(found.cells, name), getattr(stats.cells, name))


def test_a_file_is_fitted_like_the_weights(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    want, got = tj.fit(TENSORS), tj.fit(file)
    assert [r.to_dict() for r in got.values()] == [r.to_dict() for r in want.values()]
    assert run(["fit", str(file), "--format", "jsonl", "--include", "weight"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    assert {r["name"] for r in rows if r["status"] == "ok"} == {"a.weight", "b.weight"}


def test_shards_merge_to_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = TENSORS["a.weight"]
    save_file({"w": whole[:10_000], "x": whole[:500]}, tmp_path / "1.safetensors")
    save_file({"w": whole[10_000:], "y": whole[:600]}, tmp_path / "2.safetensors")
    for i in "12":
        assert run(["measure", str(tmp_path / f"{i}.safetensors"), "-o", str(tmp_path / f"{i}.stats")]) == 0
    parts = [str(tmp_path / f"{i}.stats") for i in "12"]
    assert run(["merge", *parts, "-o", str(tmp_path / "all.stats")]) == 0
    merged, want = tj.load_statistics(tmp_path / "all.stats"), tj.measure({"w": whole})["w"]
    assert list(merged) == ["w", "x", "y"]
    assert merged["w"].histogram == want.histogram
    assert merged["w"].moments.mean == pytest.approx(want.moments.mean, abs=1e-6)
    assert merged["w"].moments.n == want.moments.n
    assert merged.specs["w"].size == whole.size
    assert capsys.readouterr() == ("", "")


def test_a_tensor_that_failed_in_a_part_is_not_merged() -> None:
    good = tj.measure({"w": TENSORS["a.weight"]})
    bad = tj.Measured("bad", good.specs, {}, {}, {"w": "cut short"})
    merged = tj.merge_measured(good, bad)
    assert dict(merged) == {}
    assert merged.failed == {"w": "cut short"}


def test_measure_reads_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "teleojax", "measure", "-", "-o", str(tmp_path / "p.stats")]
    plain = {name: value for name, value in TENSORS.items() if value.dtype != ml_dtypes.bfloat16}
    (tmp_path / "m.safetensors").write_bytes(save(plain))
    with (tmp_path / "m.safetensors").open("rb") as pipe:
        done = subprocess.run(command, stdin=pipe, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tj.load_statistics(tmp_path / "p.stats").stats == tj.measure(tmp_path / "m.safetensors").stats


def test_every_cut_is_said(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    short = tmp_path / "short.stats"
    for length in [*range(60), *range(60, len(raw), 997), len(raw) - 1]:
        short.write_bytes(raw[:length])
        with pytest.raises(tj.CorruptInputError):
            tj.load_statistics(short)


def test_flipped_bits_are_said(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    damaged = tmp_path / "damaged.stats"
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(raw), 300):
        changed = bytearray(raw)
        changed[at] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(bytes(changed))
        with pytest.raises(tj.CorruptInputError):
            tj.load_statistics(damaged)


SPEC = {"name": "w", "shape": [8], "dtype": "float32", "storage": "f", "offset": 0, "nbytes": 32}
DEEP = "nested past the recursion limit"


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "tensor"},
        {"kind": "tensor", "spec": {"name": "w"}},
        {"kind": "tensor", "spec": {"shape": [-1], "unknown": 1}},
        {"kind": "tensor", "spec": None},
        {"kind": "tensor", "spec": SPEC | {"name": 3}},
        {"kind": "tensor", "spec": SPEC | {"name": "\ud800"}},
        {"kind": "tensor", "spec": SPEC | {"shape": ["8"]}},
        {"kind": "tensor", "spec": SPEC | {"nbytes": 1.5}},
        {"kind": "tensor", "spec": SPEC | {"shape": [1] * 65}},
        {"kind": "tensor", "spec": SPEC | {"shape": [2**64]}},
        {"kind": "tensor", "spec": SPEC | {"shape": [math.inf]}},
        {"kind": "tensor", "deep": DEEP},
    ],
    ids=lambda body: str(body)[:40].encode("ascii", "replace").decode(),
)
def test_well_formed_records_without_sense_are_said(tmp_path: Path, body: dict) -> None:
    parts = [pack({"kind": "source", "name": "x"}), packed(body), pack({"kind": "end", "tensors": 1})]
    path = tmp_path / "odd.stats"
    path.write_bytes(b"teleojax statistics 1\n" + b"".join(map(record, parts)))
    with pytest.raises(tj.CorruptInputError, match=r"odd\.stats"):
        tj.load_statistics(path)


def packed(header: dict, arrays: bytes = b"") -> bytes:
    """A record of any JSON, as `pack` would write it."""
    text = json.dumps({"stats": None, **header}).replace(f'"{DEEP}"', "[" * 100_000).encode()
    return zlib.compress(len(text).to_bytes(4, "little") + text + arrays)


MOMENTS = {"n": 1, "n_zero": 0, "n_nonfinite": 0, "n_negative": 0} | dict.fromkeys(
    ("mean", "m2", "m3", "m4", "sum_x", "sum_x2", "min", "max"), (1.0).hex()
)
HISTOGRAM = {"dtype": "float32", "drop": 0, "scale": (1.0).hex(), "cells": 1}


@pytest.mark.parametrize(
    ("stats", "key", "words"),
    [
        ({"moments": MOMENTS}, 1, None),
        ({"moments": MOMENTS, "histogram": HISTOGRAM}, 1, None),
        ({"moments": MOMENTS | {"n": 10**30}}, 1, "n = 10"),
        ({"moments": MOMENTS | {"n": -1}}, 1, "n = -1"),
        ({"moments": MOMENTS | {"n": (1.0).hex()}}, 1, "n = '0x1"),
        ({"moments": MOMENTS | {"mean": 1}}, 1, "TypeError"),
        ({"moments": MOMENTS, "histogram": HISTOGRAM}, 0, "a cell without a number in it"),
        ({"moments": MOMENTS, "histogram": HISTOGRAM}, 0x7F800000, "a cell without a number in it"),
        ({"moments": MOMENTS, "histogram": HISTOGRAM}, 1 << 40, "a cell without a number in it"),
        ({"moments": MOMENTS, "histogram": HISTOGRAM | {"scale": (0.0).hex()}}, 1, "an impossible cell width"),
        ({"moments": MOMENTS, "histogram": HISTOGRAM | {"dtype": "f4,f4"}}, 1, "type 'f4,f4'"),
        ({"moments": MOMENTS, "histogram": HISTOGRAM | {"dtype": "finfo"}}, 1, "type 'finfo'"),
        ({"moments": MOMENTS, "cells": 1}, 1, "cells that hold nothing"),
    ],
)
def test_numbers_that_no_measurement_gives_are_refused(stats: dict, key: int, words: str | None) -> None:
    payload = packed({"stats": stats}, np.asarray([key, 1, 1], "<i8").tobytes())
    if words is None:
        assert unpack(payload, "here")[1] is not None
    else:
        with pytest.raises(tj.CorruptInputError, match=re.escape(words)):
            unpack(payload, "here")


def test_counts_that_do_not_agree_are_refused() -> None:
    stats = tj.measure({"w": TENSORS["b.weight"]})["w"]
    other = tj.measure({"w": TENSORS["half"]})["w"]
    with pytest.raises(tj.CorruptInputError, match="do not agree"):
        unpack(pack({}, TensorStats(stats.moments, other.histogram)), "here")


def test_no_file_and_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", str(tmp_path / "none.stats"), "-o", str(tmp_path / "o.stats")]) == 3
    (tmp_path / "text.stats").write_text("hello")
    assert run(["merge", str(tmp_path / "text.stats"), "-o", str(tmp_path / "o.stats")]) == 3
    assert "begins with b'hello'" in capsys.readouterr().err
    assert not (tmp_path / "o.stats").exists()
    assert run(["measure", str(tmp_path / "text.stats"), "-o", str(tmp_path / "nowhere" / "o.stats")]) == 2
