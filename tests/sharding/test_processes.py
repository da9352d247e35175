"""The same bytes from 1 and 8 devices, 1, 2 and 4 processes, and runs that end when one of them is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from teleojax import UsageError
from teleojax.engine import initialize
from tests.sharding.processes import FIT, LAUNCH, ROOT, environment, finish, lines

FAMILIES = ["--families", "lognormal,halfnormal", "--format", "jsonl"]


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of 1 GiB in 2 files: bfloat16 as Llama's, and one float32 tensor of 256 MiB."""
    folder = tmp_path_factory.mktemp("gigabyte")
    script = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), str(folder), "--bytes", "768MiB"]
    finish([*script, "--dtype", "bfloat16", "--tensors", "60", "--shapes", "30", "--fast"])
    rng = np.random.default_rng(0)
    embedding = np.tile(rng.standard_normal(1 << 20, np.float32), 64)
    save_file({"embedding": embedding, "b": embedding[:70_001].astype(np.float64)}, folder / "second.safetensors")
    yield folder
    for file in folder.iterdir():
        file.unlink()


def fitted(target: list[str], out: Path, *options: str, processes: int = 1, devices: int = 1) -> list[str]:
    """The lines of a run, by the launcher where there are several processes."""
    command = [*FIT, *target, *FAMILIES, *options, "-o", str(out)]
    if processes > 1:
        command = [*LAUNCH, "-n", str(processes), "--", *command, "--multiprocess"]
    finish(command, devices=devices)
    return lines(out)


@pytest.mark.parametrize("network", ["minilm", "gigabyte"])
def test_every_spread_of_the_work_gives_the_same_bytes(
    network: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if network == "minilm":
        target = [str(request.getfixturevalue("networks")["minilm"])]
    else:
        folder = request.getfixturevalue("gigabyte")
        target = sorted(str(p) for p in folder.iterdir() if p.suffix == ".safetensors")
    plain = fitted(target, tmp_path / "plain.jsonl")
    spreads = {
        "8 devices": {"devices": 8},
        "small windows": {"options": ["--budget", "64MiB"]},
        "2 processes": {"processes": 2, "options": ["--resume", str(tmp_path / "journal")]},
        "4 processes": {"processes": 4, "devices": 2},
    }
    for name, spread in spreads.items():
        options = spread.pop("options", [])
        assert fitted(target, tmp_path / "other.jsonl", *options, **spread) == plain, name
    # what two processes left is read by one, and by four that find half of it
    assert fitted(target, tmp_path / "other.jsonl", "--resume", str(tmp_path / "journal")) == plain
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "journal.1").unlink()
    options = ["--resume", str(tmp_path / "journal")]
    assert fitted(target, tmp_path / "other.jsonl", *options, processes=4) == plain


def test_groups_and_moments_alone_are_shared_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    save_file({"w": rng.standard_normal(12_000_001, np.float32)}, tmp_path / "m.safetensors")
    for options in (["--groups", "7"], ["--moments-only"]):
        one = fitted([str(tmp_path / "m.safetensors")], tmp_path / "1.jsonl", *options)
        two = fitted([str(tmp_path / "m.safetensors")], tmp_path / "2.jsonl", *options, processes=2)
        assert one == two


def test_results_alone_are_on_standard_output(tmp_path: Path) -> None:
    """Gloo reports its connections on standard output; they must not come among the lines."""
    rng = np.random.default_rng(1)
    save_file({"w": rng.standard_normal(100_001, np.float32)}, tmp_path / "m.safetensors")
    command = [*FIT, str(tmp_path / "m.safetensors"), "--format", "jsonl", "--multiprocess"]
    done = finish([*LAUNCH, "-n", "2", "--", *command])
    assert [line[:10] for line in done.stdout.splitlines()] == ['{"name": "', '{"summary"']


def test_a_broken_shard_is_reported_as_by_one_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name in ("a", "b"):
        save_file({name: rng.standard_normal(9_000_000, np.float32)}, tmp_path / f"{name}.safetensors")
    whole = (tmp_path / "b.safetensors").read_bytes()
    command = [*FIT, str(tmp_path), "--format", "jsonl"]
    one = [*command, "-o", str(tmp_path / "1.jsonl")]
    two = [*LAUNCH, "-n", "2", "--", *command, "--multiprocess", "-o", str(tmp_path / "2.jsonl")]
    # found when the file is opened: nothing is read, by any process
    (tmp_path / "b.safetensors").write_bytes(whole[:-100])
    done = finish(two, code=3)
    assert "b.safetensors" in done.stderr
    assert not (tmp_path / "2.jsonl").exists()
    (tmp_path / "b.safetensors").write_bytes(whole)
    finish(one)
    finish(two)
    assert lines(tmp_path / "1.jsonl") == lines(tmp_path / "2.jsonl")


def test_a_stream_cannot_be_shared() -> None:
    done = finish([*LAUNCH, "-n", "2", "--", *FIT, "-", "--multiprocess"], code=3)
    assert "stdin" in done.stderr


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_of_four_is_killed_the_others_say_so_and_end(gigabyte: Path, tmp_path: Path, victim: int) -> None:
    """Without the launcher, which would end them: each process notices by itself."""
    port = free_port()
    running = []
    for k in range(4):
        where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "4", "--process-id", str(k)]
        resume = ["--resume", str(tmp_path / "journal"), "-o", str(tmp_path / "out.jsonl")]
        command = [*FIT, str(gigabyte / "second.safetensors"), *FAMILIES, "--multiprocess", *where, *resume]
        if k == victim:  # it dies in the middle of its share
            command = [sys.executable, "-c", DIES, *command[3:]]
        running.append(
            subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    start = time.monotonic()
    said = [process.communicate(timeout=120)[1] for process in running]
    assert time.monotonic() - start < 60
    for k, process in enumerate(running):
        assert process.returncode != 0
        if k == victim:
            assert process.returncode == -signal.SIGKILL
        else:
            assert "another process" in said[k] or "another task died" in said[k], said[k]
    assert not (tmp_path / "out.jsonl").exists()
    again = fitted(
        [str(gigabyte / "second.safetensors")], tmp_path / "out.jsonl", "--resume", str(tmp_path / "journal")
    )
    assert again == fitted([str(gigabyte / "second.safetensors")], tmp_path / "plain.jsonl")


DIES = """
import os, signal, sys
from teleojax import cli
from teleojax.engine import _pass

def dies(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

_pass.finish_all = dies
sys.argv[0] = "teleojax"
cli.main()
"""


PARTLY_HELD = """
import jax, numpy as np, teleojax as tj
tj.engine.initialize()
a = np.random.default_rng(0).standard_normal((64, 24_576)).astype(np.float32)
sharding = jax.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P("x"))
array = jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])
stats = tj.measure({"w": array}, multiprocess=True)
assert stats["w"] == tj.measure({"w": a})["w"]
gradient = tj.utility_gradient({"w": array}, stats=stats)["w"]
whole = tj.utility_gradient({"w": a}, stats=stats)["w"]
assert gradient.sharding == sharding and len(gradient.addressable_shards) == 1
assert all(np.array_equal(np.asarray(s.data), whole[s.index]) for s in gradient.addressable_shards)
try:
    tj.utility_gradient({"w": array})
except tj.InputError as e:
    assert "multiprocess=True" in str(e)
else:
    raise AssertionError("measured a part for the whole")
"""


def test_an_array_that_no_process_holds_in_full() -> None:
    finish([*LAUNCH, "-n", "2", "--", sys.executable, "-c", PARTLY_HELD])


def test_the_launcher_ends_the_others() -> None:
    program = "import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(7)\ntime.sleep(60)"
    start = time.monotonic()
    done = finish([*LAUNCH, "-n", "3", "--", sys.executable, "-c", program], code=7)
    assert "process 1 of 3 ended with exit code 7: stopping the others" in done.stderr
    assert time.monotonic() - start < 30


def test_no_place_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="launch_processes"):
        initialize(num_processes=2, process_id=0)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    with pytest.raises(UsageError, match=r"JAX_NUM_PROCESSES: found 'many'"):
        initialize()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    initialize()  # one alone needs nothing
