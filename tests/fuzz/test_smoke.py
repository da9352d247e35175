"""The fuzzer itself, for seconds: seeds are read, mutations of them are read or refused, and it sees what it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest

from teleojax._errors import CorruptInputError
from tests.fuzz import corpus
from tests.fuzz.fuzz_readers import ROOT, mutated
from tests.fuzz.targets import TARGETS, Finding, Runner, Target

SLOW = {"keras", "orbax", "orbax_zarr3"}  # to make seeds of: their libraries are large
RUNS = 60
DEEDS = {  # what a reader must not do, and what is seen of it
    "path.read_bytes()": None,
    "eval(path.read_bytes())": "exec of '<string>'",
    "Path(path.parent / 'x').write_bytes(b'')": "open",
    "os.system('true')": "os.system",
    "subprocess.run(['true'])": "subprocess.Popen",
    "pickle.loads(pickle.dumps(Path))": "pickle.find_class",
    "path.unlink()": "os.remove",
}
WATCHED = """
import os, pickle, subprocess, sys
from pathlib import Path
from tests.fuzz.targets import Finding, Runner, Target, watch

watch()
for deed in sys.argv[2:]:
    does = eval(f"lambda path: {deed}")
    try:
        Runner(Target("planted", "m.bin", does), Path(sys.argv[1]))(b"1 + 1")
        print("None")
    except Finding as e:
        print(e)
"""


@pytest.mark.parametrize("name", sorted(set(TARGETS) - SLOW))
def test_seeds_are_read_and_mutations_of_them_are_read_or_refused(tmp_path: Path, name: str) -> None:
    if find_spec(TARGETS[name].package) is None:
        pytest.skip(f"no package {TARGETS[name].package}")
    corpus.write(tmp_path, name)
    whole, rng = tmp_path / name / "whole", Random(7)
    run = Runner(TARGETS[name], tmp_path / "scratch", whole if whole.exists() else None)
    seeds = [p.read_bytes() for p in sorted((tmp_path / name / "seeds").iterdir())]
    assert [run(seed) for seed in seeds] == [True] * len(seeds)
    assert False in [run(mutated(name, rng.choice(seeds), rng)) for _ in range(RUNS)]
    assert [run(seed) for seed in seeds] == [True] * len(seeds)  # nothing of the mutations is left


def test_whatever_is_no_refusal_comes_out(tmp_path: Path) -> None:
    def planted(error: Exception) -> Runner:
        def read(_: Path) -> None:
            raise error

        return Runner(Target("planted", "m.bin", read), tmp_path)

    whole = CorruptInputError("here", found="a", needed="b", remedy="C.")
    assert planted(whole)(b"") is False
    with pytest.raises(KeyError):
        planted(KeyError("x"))(b"")
    with pytest.raises(Finding, match="cannot be printed"):
        planted(CorruptInputError("here", found="", needed="b", remedy="C."))(b"")


def test_code_that_runs_and_files_that_are_written_are_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHED, str(tmp_path), *DEEDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, seen in zip(done.stdout.splitlines(), DEEDS.values(), strict=True):
        assert line.startswith("None" if seen is None else f"while reading: {seen}"), line


def test_a_campaign_counts_and_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_readers", "--driver", "random", "--runs", "50", "--seconds", "60"]
    done = subprocess.run(
        [*command, "--targets", "npy", "--work", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "summary.json").read_text())["targets"]
    assert (row["target"], row["executions"], row["findings"]) == ("npy", 50, [])
    assert row["read"] + row["refused"] == 50
