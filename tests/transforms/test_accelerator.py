"""What an accelerator does, on a CPU that is taken for one: the choice of a counting program, and one copy a frame."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import teleojax as tj
from teleojax import TeleojaxError
from teleojax.bench import Race, weights
from teleojax.bench._contestants import counts_contestants
from teleojax.blocks import ROW
from teleojax.engine import _choose, _compile, _counting, _window
from teleojax.engine._choose import CANDIDATES, counting_trials, try_candidates
from teleojax.engine._compile import compiled_pattern_counts
from teleojax.kernels import pattern_counts, pattern_counts_scattered
from tests.arrays import PackedSource

LEAST_BUDGET = 64 << 20  # windows of 16 MiB: a few megabytes make several
OTHERS = ["NumPy bincount", "jax.numpy bincount", "jax.numpy scatter"]
WORKING = {name for name in CANDIDATES if "Pallas" not in name}  # on a CPU its compiler refuses


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU taken for an accelerator that tries its candidates on few rows."""
    monkeypatch.setattr(_compile, "on_cpu", lambda: False)
    monkeypatch.setattr(_choose, "TRIAL_BYTES", 4 * ROW * 4)
    counting_trials.cache_clear()
    yield
    counting_trials.cache_clear()


def network(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of every kind that the engine tells apart, some rows of which need care."""
    rng = np.random.default_rng(seed)
    wide = (rng.standard_normal(5_000_001) * 0.02).astype(np.float32)
    wide[[77, 2_000_000, 3_000_000, 3_000_001]] = 1e-40, np.nan, -np.inf, 0.0
    wide[4_000_000:4_100_000] = 0.5
    return {
        "float32": wide,
        "float32 again": rng.standard_normal(100_003).astype(np.float32),
        "whole": rng.standard_normal(5000).astype(np.float32),
        "bfloat16": (rng.standard_normal(5_000_000) * 0.02).astype(ml_dtypes.bfloat16),
        "float16": rng.standard_normal(700_001).astype(np.float16),
        "float8": rng.standard_normal(800_000).astype(ml_dtypes.float8_e4m3fn),
        "float64": rng.standard_normal(70_001),
        "zeros": np.zeros(50_000, ml_dtypes.bfloat16),
    }


def ignoring_bounds(bits: Any, first: Any, stop: Any, *, n_bits: int) -> Any:  # noqa: ARG001
    return pattern_counts(bits, jnp.int32(0), jnp.int32(bits.shape[0]), n_bits=n_bits)


def stopping_at_16_bits(bits: Any, first: Any, stop: Any, *, n_bits: int) -> Any:
    return jnp.minimum(pattern_counts(bits, first, stop, n_bits=n_bits), (1 << 16) - 1)


def off_by_one(bits: Any, first: Any, stop: Any, *, n_bits: int) -> Any:
    return pattern_counts(bits, first, stop, n_bits=n_bits).at[-1].add(1)


def raising(bits: Any, first: Any, stop: Any, *, n_bits: int) -> Any:
    raise NotImplementedError(f"{n_bits} bits")


def slow(bits: Any, first: Any, stop: Any, *, n_bits: int) -> Any:
    def wait(counts: np.ndarray) -> np.ndarray:
        time.sleep(0.3)
        return counts

    counts = pattern_counts_scattered(bits, first, stop, n_bits=n_bits)
    return jax.pure_callback(wait, jax.ShapeDtypeStruct(counts.shape, counts.dtype), counts)


BROKEN = {"raises": raising, "off": off_by_one, "unbounded": ignoring_bounds, "saturates": stopping_at_16_bits}


def trial_bits(n_rows: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_rows, ROW), np.uint8)


def test_the_fastest_right_candidate_is_first_and_broken_ones_are_dropped() -> None:
    trials = try_candidates({"slow": slow, **BROKEN, "fast": pattern_counts_scattered}, trial_bits(), 8)
    assert [t.name for t in trials] == ["fast", "slow"]
    assert trials[0].seconds < 0.3 <= trials[1].seconds
    got = trials[0].program(trial_bits(), 3, 5, n_bits=8)
    np.testing.assert_array_equal(got, np.bincount(trial_bits()[3:5].ravel(), minlength=256))


@pytest.mark.parametrize("name", BROKEN)
def test_no_right_candidate_is_an_error_that_says_why(name: str) -> None:
    why = "NotImplementedError.*8 bits" if name == "raises" else "wrong counts"
    with pytest.raises(TeleojaxError, match=f"{name}: {why}.*JAX_PLATFORMS=cpu"):
        try_candidates({name: BROKEN[name]}, trial_bits(), 8)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(("itemsize", "n_bits"), [(1, 8), (2, 16), (4, 16)])
def test_the_choice_is_measured_once(itemsize: int, n_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = counting_trials(itemsize, n_bits)
    assert {t.name for t in trials} == WORKING
    assert [t.seconds for t in trials] == sorted(t.seconds for t in trials)
    monkeypatch.setattr(_choose, "try_candidates", None)
    assert compiled_pattern_counts(itemsize, n_bits) is trials[0].program


def test_a_cpu_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compile, "counting_trials", None)
    assert compiled_pattern_counts() is compiled_pattern_counts(4, 16)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("candidate", ["scatter", "sort and search"])
@pytest.mark.parametrize(
    "layout", [{}, {"stream": True}, {"shift": 3, "gap": 5}], ids=["mapped", "stream", "unaligned"]
)
def test_numbers_are_those_of_a_cpu(candidate: str, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    source = PackedSource(network(), **layout)
    with monkeypatch.context() as cpu:
        cpu.setattr(_compile, "on_cpu", lambda: True)
        want = tj.measure(source, budget_bytes=LEAST_BUDGET)
    monkeypatch.setattr(_choose, "CANDIDATES", {candidate: CANDIDATES[candidate]})
    got = tj.measure(source, budget_bytes=LEAST_BUDGET)
    assert len(got) == len(network())
    assert counting_trials.cache_info().currsize >= 1  # the candidate was taken
    assert got.stats == want.stats
    assert tj.measure(source).stats == want.stats
    moments = tj.measure(source, histogram=False)
    assert moments["float32"].moments == want["float32"].moments


@pytest.mark.usefixtures("accelerator")
def test_a_frame_is_copied_once_and_a_span_counted_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    source = PackedSource({str(i): rng.standard_normal((700 + i) * ROW).astype(np.float32) for i in range(3)})
    with monkeypatch.context() as cpu:
        cpu.setattr(_compile, "on_cpu", lambda: True)
        want = tj.measure(source)
    copies: list[jax.Array] = []
    counted: list[tuple[Any, int, int]] = []
    summed: list[Any] = []
    device_put, row_sums = jax.device_put, _compile.compiled_row_sums()

    def copy(rows: np.ndarray, device: Any) -> jax.Array:
        copies.append(device_put(rows, device))
        return copies[-1]

    def count(rows: Any, first: int, stop: int, *, n_bits: int) -> jax.Array:
        counted.append((rows, first, stop))
        return jax.jit(pattern_counts, static_argnames="n_bits")(rows, first, stop, n_bits=n_bits)

    def add(rows: Any, *, dtype: str) -> Any:
        summed.append(rows)
        return row_sums(rows, dtype=dtype)

    monkeypatch.setattr(jax, "device_put", copy)
    monkeypatch.setattr(_counting, "compiled_pattern_counts", lambda *_: count)
    monkeypatch.setattr(_window, "compiled_row_sums", lambda: add)
    got = tj.measure(source)
    assert len(copies[0]) == 2048  # a window; what is left of the 2103 rows takes small frames
    assert [id(rows) for rows in summed] == [id(rows) for rows in copies]
    assert [(first, stop) for rows, first, stop in counted if rows is copies[0]] == [
        (0, 700),
        (700, 1401),
        (1401, 2048),
    ]
    assert {id(rows) for rows, _, _ in counted} == {id(rows) for rows in copies}
    assert sum(stop - first for _, first, stop in counted) == 2103
    assert got.stats == want.stats


@pytest.mark.usefixtures("accelerator")
def test_counts_are_not_waited_for_when_a_window_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counts:
        events: list[str] = []  # noqa: RUF012

        def copy_to_host_async(self) -> None:
            self.events.append("sent")

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            self.events.append("waited for")
            return np.arange(3)

    monkeypatch.setattr(_counting, "compiled_pattern_counts", lambda *_: lambda *_, **__: Counts())
    with ThreadPoolExecutor(1) as threads:
        (job,) = _counting.begin_counting(np.zeros((2048, 4), np.uint8), 0, 2048, 8, threads)
    assert Counts.events == ["sent"]
    assert job().tolist() == [0, 1, 2]
    assert Counts.events == ["sent", "waited for"]


def test_counts_contestants_of_a_cpu() -> None:
    assert [c.name for c in counts_contestants(weights(4 * ROW))] == ["teleojax", *OTHERS]


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "bfloat16"])
def test_counts_contestants_of_an_accelerator_are_all_candidates_that_work(dtype: str) -> None:
    values = weights(4 * ROW, dtype)
    contestants = counts_contestants(values)
    ours = [f"teleojax, {t.name}" for t in counting_trials(values.itemsize, 8 * values.itemsize)]
    assert [c.name for c in contestants] == ["teleojax", *ours, *OTHERS]
    assert len(ours) == len(WORKING)
    assert contestants[0].note.startswith(ours[0].removeprefix("teleojax, "))
    Race(contestants)  # raises where an answer is wrong


ON_BOTH_PATHS = """
import hashlib, sys, jax
from teleojax.engine import _choose, _compile, _counting, measure

def digest(measured):
    parts = [(n, repr(s.moments), s.histogram.keys.tolist(), s.histogram.counts.tolist()) for n, s in measured.items()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()

in_place = digest(measure(sys.argv[1]))
_choose.TRIAL_BYTES = 1 << 17
_compile.on_cpu = lambda: False
print(jax.device_count(), in_place, digest(measure(sys.argv[1])))
"""


def test_numbers_are_the_same_on_one_and_eight_devices(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({name: values for name, values in network().items() if name != "float8"}, path)
    digests = set()
    for n_devices in (1, 8):
        flags = f"--xla_force_host_platform_device_count={n_devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", ON_BOTH_PATHS, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found, *both = done.stdout.split()
        assert int(found) == n_devices
        digests |= set(both)
    assert len(digests) == 1
