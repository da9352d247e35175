"""Races under pytest-benchmark: every contestant in turn with teleojax, which pytest-benchmark times.

    python -m pytest benchmarks --benchmark-only                all of it
    python -m pytest benchmarks --benchmark-only --quick        small arrays: does it run?
    python -m pytest benchmarks --benchmark-only --large        also 8 GiB files, cold and warm, and 4·10⁹ values

The full dump is left in results/raw.json (raw-quick.json); `python benchmarks/report.py` makes what is kept of it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from teleojax.bench import (
    Contestant,
    Limits,
    Race,
    Record,
    environment,
    measure_limits,
    records_of,
    results_table,
)  # fmt: skip
from teleojax.bench._timing import settle
from teleojax.sources._index import natural_key

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
RECORDS = pytest.StashKey[list[Record]]()
LIMITS = pytest.StashKey[Limits]()
ENVIRONMENT = pytest.StashKey[dict[str, Any]]()
ROUNDS = 5
TABLE_WIDTH = 180


def pytest_addoption(parser: pytest.Parser) -> None:
    """Sizes other than the default."""
    group = parser.getgroup("teleojax")
    group.addoption("--large", action="store_true", help="8 GiB files, cold and warm; 4e9 values")
    group.addoption("--quick", action="store_true", help="arrays 64 times smaller, two rounds: to see that it runs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Leave the full dump where report.py looks for it."""
    config.stash[RECORDS] = []
    if config.option.benchmark_json is None and config.option.benchmark_only:
        config.option.benchmark_json = RESULTS / ("raw-quick.json" if config.option.quick else "raw.json")


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the environment, the memory limits and all records."""
    output_json["quick"] = config.option.quick
    output_json["environment"] = config.stash.get(ENVIRONMENT, None)
    output_json["limits"] = asdict(config.stash[LIMITS]) if LIMITS in config.stash else None
    output_json["records"] = [record.as_dict() for record in config.stash[RECORDS]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """All records as one table."""
    records = config.stash[RECORDS]
    if records:
        text = io.StringIO()
        limits = config.stash[LIMITS]
        title = f"memory: read {limits.read / 1e9:.1f} GB/s, copy {limits.copy / 1e9:.1f} GB/s"
        Console(file=text, width=TABLE_WIDTH).print(results_table(records, title))
        terminalreporter.write(text.getvalue())


@dataclass(frozen=True)
class Sizes:
    """How much of everything, by the options of the run."""

    quick: bool
    large: bool

    @property
    def values(self) -> int:
        """Values of an array that kernels run over: 512 MiB of float32."""
        return 1 << (21 if self.quick else 27)

    @property
    def most(self) -> int:
        """Values of the longest array that is not --large: 1 GiB of float32."""
        return 1 << (22 if self.quick else 28)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoint that is read end to end."""
        return 1 << (24 if self.quick else 30)

    @property
    def large_bytes(self) -> int:
        """Bytes of the checkpoint that is read cold."""
        return 1 << (26 if self.quick else 33)

    @property
    def rounds(self) -> int:
        """Rounds of a race."""
        return 2 if self.quick else ROUNDS


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    """Sizes of this run."""
    return Sizes(pytestconfig.option.quick, pytestconfig.option.large)


@pytest.fixture
def only_large(sizes: Sizes) -> None:
    """Skip unless the run is --large."""
    if not sizes.large:
        pytest.skip("only with --large")


@pytest.fixture(scope="session")
def limits(pytestconfig: pytest.Config) -> Limits:
    """The memory limits, measured once in the run; races over memory read it again in turn."""
    pytestconfig.stash[LIMITS] = measure_limits()
    pytestconfig.stash[ENVIRONMENT] = environment()
    return pytestconfig.stash[LIMITS]


Runner = Callable[..., list[Record]]


@pytest.fixture
def race(benchmark: Any, pytestconfig: pytest.Config, limits: Limits, sizes: Sizes) -> Runner:
    """Run contestants in turn: answers checked first, then rounds. The first is timed by pytest-benchmark.

    Returns the records as `finish` leaves them; they also go into `extra_info`, the table and the dump, with the
    records of peers that are `absent`.
    """
    stash = pytestconfig.stash

    def run(
        name: str,
        contestants: Sequence[Contestant],
        *,
        dtype: str | None = None,
        rounds: int = sizes.rounds,
        bound_by_memory: bool = True,
        absent: Sequence[Record] = (),
        finish: Callable[[list[Record]], list[Record]] = lambda records: records,
    ) -> list[Record]:
        checked = Race(contestants)
        first = contestants[0]

        def others() -> None:
            checked.turn(leave_out=0)
            first.prepare()
            settle()

        benchmark.group = f"{name} {dtype}" if dtype else name
        benchmark.pedantic(first.run, setup=others, rounds=rounds)
        if benchmark.stats is None:  # --benchmark-disable
            return []
        checked.seconds[0] = list(benchmark.stats.stats.data)
        limit = limits.read if bound_by_memory else None
        records = finish(records_of(name, checked.timings(), dtype=dtype, read_limit=limit, subject=first.name))
        stash[RECORDS] += [*records, *absent]
        ours, where = records[0], stash[ENVIRONMENT]
        benchmark.extra_info.update(
            GB_per_s=ours.bytes_per_s and ours.bytes_per_s / 1e9,
            values_per_s=ours.values_per_s,
            share_of_read=ours.share_of_read,
            times_faster_than={r.contestant: r.teleojax_speedup for r in records[1:]},
            dtype=dtype,
            devices=f"{where['machine']['devices']} × {where['machine']['device']}",
            versions=where["versions"],
            commit=where["commit"],
        )
        return records

    return run


@dataclass(frozen=True)
class Checkpoint:
    """A synthetic safetensors checkpoint of bfloat16."""

    path: Path
    files: tuple[Path, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files; their headers are nothing beside the values."""
        return sum(file.stat().st_size for file in self.files)

    def tensors(self) -> dict[str, np.ndarray]:
        """Flat views of the memory-mapped files, in natural order of the names, without teleojax."""
        found = {name: tensor for file in self.files for name, tensor in map_tensors(file)}
        return {name: found[name] for name in sorted(found, key=natural_key)}


def make_checkpoint(folder: Path, n_bytes: int) -> Checkpoint:
    """About that many bytes of bfloat16 in 200 tensors of 120 shapes in 4 files."""
    script = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), str(folder), "--fast"]
    options = ["--bytes", str(n_bytes), "--dtype", "bfloat16", "--tensors", "200", "--shapes", "120"]
    subprocess.run([*script, *options], check=True, capture_output=True)
    return Checkpoint(folder, tuple(sorted(folder.glob("*.safetensors"))))


def map_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The bfloat16 tensors of one safetensors file as flat views of its memory map."""
    memory = np.memmap(path, np.uint8, "c")  # never written to; torch wants memory that could be
    start = 8 + int(memory[:8].view("<u8")[0])
    for name, entry in json.loads(memory[8:start].tobytes()).items():
        if name != "__metadata__":
            a, b = entry["data_offsets"]
            yield name, memory[start + a : start + b].view(ml_dtypes.bfloat16)


@pytest.fixture(scope="session")
def checkpoint(sizes: Sizes) -> Iterator[Checkpoint]:
    """1 GiB, gone after the run."""
    with tempfile.TemporaryDirectory(prefix="teleojax-bench-") as folder:
        yield make_checkpoint(Path(folder) / "model", sizes.checkpoint_bytes)


@pytest.fixture(scope="session")
def large_checkpoint(sizes: Sizes) -> Iterator[Checkpoint]:
    """8 GiB, gone after the run; only with --large."""
    if not sizes.large:
        pytest.skip("only with --large")
    with tempfile.TemporaryDirectory(prefix="teleojax-bench-") as folder:
        yield make_checkpoint(Path(folder) / "model", sizes.large_bytes)
