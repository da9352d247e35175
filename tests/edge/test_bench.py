"""`teleojax bench`: it runs, its numbers are sane, and nothing is timed whose answer is wrong. No speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

from teleojax.bench import (
    Contestant,
    Race,
    WrongAnswerError,
    _timing,
    interleaved,
    log_moments,
    measure_limits,
    weights,
)
from teleojax.bench._data import FORMAT_NAMES, split_unevenly, write_safetensors
from teleojax.bench._record import MEMORY_READ, absent_record, records_of
from teleojax.bench._table import ratio, results_table, seconds
from teleojax.cli import run
from teleojax.stats import careful_moments

SIZE = 65_536


def contestant(name: str, calls: list[str], answer: object = 1.0, *, n_values: int = 10) -> Contestant:
    def go() -> object:
        calls.append(name)
        return answer

    return Contestant(name, go, 1.0, n_values, 40)


def benchmark_report() -> ModuleType:
    """benchmarks/report.py, which is no package."""
    path = Path(__file__).parents[2] / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("benchmark_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    assert run(["bench", "--quick", "--size", str(SIZE), "--json", str(path)]) == 0
    out, _ = capsys.readouterr()
    assert "of read" in out
    assert "SciPy lognorm.fit" in out
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found["limits"]["read"] == max(found["limits"]["methods"].values()) > 0
    assert found["environment"]["machine"]["cores"] >= 1
    assert {"python", "jax", "jaxlib", "numpy", "scipy", "teleojax"} <= set(found["environment"]["versions"])
    races: dict[tuple[str, str | None], list[dict]] = {}
    for record in found["records"]:
        races.setdefault((record["benchmark"], record["dtype"]), []).append(record)
    assert {name for name, _ in races} >= {"log moments", "exact counts", "compile", "import"}
    for records in races.values():
        assert len(records) > 1
        assert records[0]["contestant"] == "teleojax"
        assert records[0]["teleojax_speedup"] == 1
        for record in records:
            assert 0 < record["best_s"] <= record["median_s"]
            assert record["warmup_s"] > 0
            if record["n_values"] and record["n_bytes"]:
                assert record["values_per_s"] == pytest.approx(record["n_values"] / record["best_s"])
                assert record["share_of_read"] > 0
    moments = races["log moments", "float32"]
    assert moments[0]["n_values"] == SIZE
    assert moments[0]["error"] < 1e-6
    assert [r["share_of_read"] for r in moments if r["contestant"] == MEMORY_READ] == [1]
    report = benchmark_report()
    kept = report.curated(found)
    assert json.loads(report.as_text(kept)) == kept
    assert len(kept["records"]) == len(found["records"])
    assert kept["environment"]["date"][:10] in report.stem_of(kept["environment"], quick=False)
    lines = report.markdown(kept["records"]).splitlines()
    assert len(lines) == len(found["records"]) + 2
    assert {line.count("|") for line in lines} == {9}


def test_command_says_where_it_cannot_write_before_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--json", "/no/such/directory/x.json"]) == 2
    assert "/no/such/directory" in capsys.readouterr().err


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    timings = interleaved([contestant("a", calls), contestant("b", calls)], rounds=3)
    assert calls == ["a", "b"] * 4
    for timing in timings:
        assert len(timing.seconds) == 3
        assert 0 < timing.best_s <= timing.median_s


def test_a_turn_can_leave_one_out_for_another_clock() -> None:
    calls: list[str] = []
    race = Race([contestant("a", calls), contestant("b", calls)])
    race.turn(leave_out=0)
    assert calls == ["a", "b", "b"]
    assert [len(t.seconds) for t in race.timings()] == [0, 1]


@pytest.mark.parametrize("answer", [1.1, float("nan"), [1.0, 1.0]])
def test_a_wrong_answer_is_not_timed(answer: object) -> None:
    calls: list[str] = []
    with pytest.raises(WrongAnswerError, match="Nothing was timed"):
        interleaved([contestant("right", calls), contestant("wrong", calls, answer)], rounds=3)
    assert calls == ["right", "wrong"]


def test_records_compare_values_a_second() -> None:
    calls: list[str] = []
    race = Race(
        [contestant("teleojax", calls), contestant("sample", calls, n_values=5), contestant(MEMORY_READ, calls)]
    )
    race.seconds = [[2.0, 3.0], [4.0, 4.0], [1.0, 1.0]]
    ours, sample, read = records_of("b", race.timings(), dtype="float32", read_limit=None)
    assert (ours.best_s, ours.median_s, ours.values_per_s, ours.teleojax_speedup) == (2, 2.5, 5, 1)
    assert (ours.share_of_read, sample.share_of_read, read.share_of_read) == (0.5, 0.25, 1)
    assert sample.teleojax_speedup == 4
    assert read.teleojax_speedup is None
    absent = absent_record("b", "other", "float32", "not installed")
    table = results_table([ours, sample, read, absent], "title")
    assert table.row_count == 5  # and the heading
    assert "NaN" not in json.dumps(absent.as_dict())


def test_words_for_numbers() -> None:
    assert [ratio(v) for v in (12.0, 0.5, 1.001, None)] == ["12× faster", "2× slower", "as fast", "–"]
    assert [seconds(v) for v in (2.5, 0.0025, 2.5e-6, 2.5e-9, None)] == ["2.5 s", "2.5 ms", "2.5 µs", "2.5 ns", "–"]


def test_limits_are_positive() -> None:
    limits = measure_limits(1 << 22, passes=1)
    assert limits.read == max(limits.methods.values())
    assert min(*limits.methods.values(), limits.copy) > 0


@pytest.mark.parametrize("dtype", FORMAT_NAMES)
def test_weights_are_seeded_aligned_and_never_zero(dtype: str) -> None:
    values = weights(100_001, dtype, seed=3)
    assert (values.dtype.name, values.shape) == (dtype, (100_001,))
    assert values.ctypes.data % 64 == 0
    assert (values != 0).all()
    np.testing.assert_array_equal(values, weights(100_001, dtype, seed=3))
    assert (values != weights(100_001, dtype, seed=4)).any()
    assert float(np.std(values.astype(np.float64))) == pytest.approx(0.02, rel=0.05)
    want = careful_moments(values)
    np.testing.assert_allclose(log_moments(values), (want.mean, want.sigma), rtol=1e-12)


def test_written_file_is_a_safetensors_file(tmp_path: Path) -> None:
    values = weights(50_000)
    tensors = split_unevenly(values, 7)
    write_safetensors(tmp_path / "m.safetensors", tensors)
    found = load_file(tmp_path / "m.safetensors")
    assert list(found) == list(tensors)
    assert len({t.size for t in tensors.values()}) == 7
    np.testing.assert_array_equal(np.concatenate(list(found.values())), values)


def test_nothing_is_timed_while_threads_of_somebody_before_still_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0.0, 0.02, 0.02, 0.03, 0.03, 0.0301]  # before and after each sleep: two cores at work, one, none
    events: list[str] = []
    monkeypatch.setattr(_timing.time, "process_time", lambda: used.pop(0))
    monkeypatch.setattr(_timing.time, "sleep", lambda _: events.append("slept"))
    made = partial(Contestant, "", expected=0, n_values=0, n_bytes=0, answer=lambda _: 0)
    Race([made(lambda: events.append("ran"), prepare=lambda: events.append("prepared"))]).turn()
    assert events == ["prepared", "ran", "prepared", "slept", "slept", "slept", "ran"]
    assert not used


def test_patience_with_spinning_threads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(_timing.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(_timing, "PATIENCE_S", 0.05)
    _timing.settle()
    assert next(clock) > 2
