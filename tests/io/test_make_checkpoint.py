"""scripts/make_checkpoint.py: the same arguments give the same bytes, in the layout that was asked for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_checkpoint.py"
MIB = 1 << 20
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_checkpoint_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, out: Path, *options: str) -> Path:
    assert script.main([str(out), *options]) == 0
    return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def load(folder: Path) -> dict[str, np.ndarray]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


SMALL = ("--bytes", "2MiB", "--tensors", "40", "--shapes", "25", "--shards", "3")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_asked_for(script: ModuleType, tmp_path: Path, dtype: str) -> None:
    out = run(script, tmp_path / "ckpt", *SMALL, "--dtype", dtype)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in out.iterdir()) == [*shards, "model.safetensors.index.json"]

    tensors = load(out)
    assert len(tensors) == 40
    assert {value.dtype for value in tensors.values()} == {DTYPES[dtype]}
    assert len({value.shape for value in tensors.values()}) == 25
    assert {value.ndim for value in tensors.values()} == {1, 2}
    assert all(value.size % 8192 for value in tensors.values())
    assert all(np.isfinite(value.astype(np.float32)).all() for value in tensors.values())
    assert {"model.embed_tokens.weight", "model.layers.3.self_attn.q_proj.weight", "lm_head.weight"} <= set(tensors)

    total = sum(value.nbytes for value in tensors.values())
    assert abs(total - 2 * MIB) <= 0.01 * 2 * MIB
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"]) == set(tensors)
    for shard in shards:
        with safe_open(out / shard, "np") as opened:
            assert set(opened.keys()) == {name for name, file in index["weight_map"].items() if file == shard}


@pytest.mark.parametrize(
    ("size", "tensors", "shapes", "shards"),
    [
        (1000, 1, 1, 1),
        (20_000, 2, 2, 2),
        (40_000, 12, 6, 12),
        (100_000, 12, 12, 1),
        (1 << 31, 200, 120, 4),
        (140 * 10**9, 723, 300, 30),
    ],
)
def test_plans(script: ModuleType, size: int, tensors: int, shapes: int, shards: int) -> None:
    planned = script.plan(size // 2, tensors=tensors, shapes=shapes, seed=0)
    assert len({tensor.name for tensor in planned}) == tensors
    assert len({tensor.shape for tensor in planned}) == shapes
    assert abs(2 * sum(tensor.size for tensor in planned) - size) <= 0.01 * size
    runs = script.split(planned, shards)
    assert [tensor for shard in runs for tensor in shard] == planned
    sizes = [sum(tensor.size for tensor in shard) for shard in runs]
    assert len(sizes) == shards
    assert min(map(len, runs)) >= 1
    if shards <= tensors // 20:
        assert max(sizes) < 1.5 * min(sizes)


def test_header_comes_first(script: ModuleType, tmp_path: Path) -> None:
    """Length, JSON padded to eight bytes, then the tensors in the order of the header with no gap."""
    out = run(script, tmp_path / "ckpt", *SMALL)
    for path in out.glob("*.safetensors"):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        assert length % 8 == 0
        entries = json.loads(data[8 : 8 + length])
        assert entries.pop("__metadata__") == {"format": "pt"}
        position = 0
        for entry in entries.values():
            assert entry["data_offsets"] == [position, position + 2 * int(np.prod(entry["shape"]))]
            position = entry["data_offsets"][1]
        assert len(data) == 8 + length + position


@pytest.mark.parametrize("options", [(), ("--fast",), ("--distribution", "student_t")])
def test_same_arguments_same_bytes(script: ModuleType, tmp_path: Path, options: tuple[str, ...]) -> None:
    first = digests(run(script, tmp_path / "a", *SMALL, *options))
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "b"), *SMALL, *options], check=True)
    assert done.returncode == 0
    assert digests(tmp_path / "b") == first
    other = digests(run(script, tmp_path / "c", *SMALL, *options, "--seed", "1"))
    assert not set(other.values()) & set(first.values())


def test_values_do_not_depend_on_the_sharding(script: ModuleType, tmp_path: Path) -> None:
    options = ("--bytes", "1MiB", "--tensors", "20", "--shapes", "10")
    one = load(run(script, tmp_path / "one", *options, "--shards", "1"))
    five = load(run(script, tmp_path / "five", *options, "--shards", "5"))
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    assert one.keys() == five.keys()
    assert all(np.array_equal(one[name], five[name]) for name in one)


def test_no_two_tensors_or_chunks_are_alike(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "CHUNK_VALUES", 1000)
    tensors = load(run(script, tmp_path / "ckpt", *SMALL, "--dtype", "float32"))
    heads = [
        tuple(value.ravel()[start : start + 8] / np.float32(script.scale_of(0, name)))
        for name, value in tensors.items()
        for start in range(0, value.size - 8, 1000)
    ]
    assert len(heads) > 500
    assert len(set(np.round(np.array(heads)[:, 0], 5))) > 0.98 * len(heads)


@pytest.mark.parametrize("distribution", ["normal", "lognormal", "student_t"])
@pytest.mark.parametrize("fast", [False, True])
def test_distributions(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, fast: bool
) -> None:
    """Quantiles of |w| / s within five standard errors; signs balanced; across several chunks."""
    monkeypatch.setattr(script, "CHUNK_VALUES", 100_000)
    monkeypatch.setattr(script, "POOL_VALUES", 400_000)
    options = ("--tensors", "1", "--shapes", "1", "--shards", "1", "--bytes", "1600000", "--dtype", "float32")
    options = (*options, "--distribution", distribution, *(["--fast"] if fast else []))
    ((name, value),) = load(run(script, tmp_path / "ckpt", *options)).items()
    unit = value.ravel().astype(np.float64) / script.scale_of(0, name)
    n = unit.size / (4 if fast else 1)  # --fast repeats values: chunks overlap in the pool
    # P(|w|/s < q) for the 25%, 50%, 90% quantiles of |N(0,1)|, LN(0,1), |t_4|
    quantiles = {
        "normal": (0.318639, 0.674490, 1.644854),
        "lognormal": (0.509416, 1.0, 3.602224),
        "student_t": (0.340538, 0.740697, 2.131847),
    }[distribution]
    for probability, quantile in zip((0.25, 0.5, 0.9), quantiles, strict=True):
        error = 5 * (probability * (1 - probability) / n) ** 0.5
        assert abs(np.mean(np.abs(unit) < quantile) - probability) < error
    assert abs(np.mean(unit < 0) - 0.5) < 5 * 0.5 / n**0.5


def test_fast_repeats_its_pool_with_other_scales(script: ModuleType, tmp_path: Path) -> None:
    tensors = load(run(script, tmp_path / "ckpt", *SMALL, "--dtype", "float32", "--fast"))
    pool = script.make_pool(script.Recipe(0, "normal", "float32", True))
    scales = {script.scale_of(0, name) for name in tensors}
    assert len(scales) == len(tensors)
    name, value = next(iter(tensors.items()))
    run_of = value.ravel()[:50] / np.float32(script.scale_of(0, name))
    (starts,) = np.nonzero(np.isclose(pool, run_of[0], rtol=1e-6))
    assert any(np.allclose(pool[start : start + 50], run_of, rtol=1e-6) for start in starts)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A shard of 300 MiB is written in less than 200 MiB, interpreter and NumPy included."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here to read the peak from")
    # VmHWM and not ru_maxrss: the latter keeps the size of the process that forked.
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    options = ["--bytes", "300MiB", "--shards", "1", "--tensors", "12", "--shapes", "12", "--fast"]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[:] = sys.argv[1:]\n{code}", str(SCRIPT), str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "model.safetensors").stat().st_size > 297 * MIB
    (peak_kib,) = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    assert peak_kib < 200 * 1024


def test_a_failed_run_leaves_no_shard_that_looks_whole(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = script._fill_unit, []

    def fails_later(*args: object) -> None:
        calls.append(1)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(script, "_fill_unit", fails_later)
    assert script.main([str(tmp_path / "ckpt"), *SMALL]) == 3
    assert "No space left" in capsys.readouterr().err
    left = [path.name for path in (tmp_path / "ckpt").iterdir()]
    assert left
    assert all(name.endswith("-of-00003.safetensors") and not name.startswith(".") for name in left)
    assert len(left) < 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bytes", "lots"), "no number of bytes"),
        (("--bytes", "1KiB"), "more bytes or fewer tensors"),
        (("--tensors", "9"), "4 to 9 different shapes"),
        (("--tensors", "0"), "at least 1"),
        (("--shards", "0"), "1 to 200 shards"),
        (("--dtype", "int8"), "invalid choice"),
    ],
)
def test_impossible_requests(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        script.main([str(tmp_path / "ckpt"), *options])
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ckpt").exists()


def test_another_checkpoint_in_the_folder_is_not_mixed_in(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(script, tmp_path / "ckpt", *SMALL)
    before = digests(out)
    with pytest.raises(SystemExit):
        script.main([str(out), *SMALL, "--shards", "2"])
    assert "name another folder" in capsys.readouterr().err
    assert digests(out) == before
    assert digests(run(script, out, *SMALL)) == before


@pytest.mark.parametrize(
    ("text", "value"), [("1048576", 1048576), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("1.5kib", 1536)]
)
def test_byte_counts(script: ModuleType, text: str, value: int) -> None:
    assert script.parse_bytes(text) == value
