"""Fuzzing of every reader: any bytes at all are read, or refused with a TeleojaxError; nothing else may happen.

    python -m tests.fuzz.fuzz_readers --seconds 120

Each target (see targets.py) runs in a process of its own, which is started again where an input ends it. The driver
"atheris" is libFuzzer, guided by the coverage of the readers' Python code; "random" mutates the seeds without guidance,
where atheris is not installed. Half of the mutations change bytes, half keep the format's frame (see mutators.py).
Findings are exceptions other than TeleojaxError, runs of more than 10 s, more than 1 GiB of memory, ends of the
process, and code that is run or files that are written while reading: for each kind the first input and its traceback.
Exit status: 0 without findings, 1 with.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import platform
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.corpus import TOKENS
from tests.fuzz.mutators import MUTATIONS, attempt, mutate_bytes
from tests.fuzz.targets import COUNTED, TARGETS, Runner, counters, dictionary, watch

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 10
MEMORY_MIB = 1024  # beyond what the process takes after it has read the seeds
LONGER = 2  # than the longest seed an input may be
READERS = ("teleojax.sources.", "teleojax.stats._codec", "teleojax.engine._statsfile", "teleojax.engine._journal")
RESTARTS = 20  # of a target whose inputs end the process
KEPT = 50  # kinds of findings of a target


class Fuzzer:
    """One target: runs inputs, counts them, keeps what they find."""

    def __init__(self, name: str, work: Path) -> None:
        whole = work / name / "whole"
        self.name, self._findings = name, work / "findings"
        self._run = Runner(TARGETS[name], _scratch(work), whole if whole.exists() else None)
        self.seeds = [p.read_bytes() for p in sorted((work / name / "seeds").iterdir())]
        self.longest = LONGER * max(1024, *map(len, self.seeds))
        self.counted = counters(work / name / "counted")
        self._kinds: set[str] = set()
        self._findings.mkdir(exist_ok=True)
        sys.unraisablehook = lambda u: self._keep(u.exc_value or RuntimeError(u.err_msg), b"")

    def warm_up(self) -> None:
        """Read the seeds, so that everything is imported, and take the memory of that as the base."""
        for seed in self.seeds:
            self._once(seed)
        self._base = _peak_mib()
        self.counted[3:] = self._base

    def __call__(self, data: bytes) -> None:
        """Run one input."""
        begin = time.perf_counter()
        read = self._once(data)
        self.counted[0] += 1
        self.counted[1] += read
        self.counted[2] = max(self.counted[2], time.perf_counter() - begin)
        if (peak := _peak_mib()) > self.counted[4]:
            self.counted[4] = peak
            if peak > self._base + MEMORY_MIB:
                self._base = peak
                self._keep(MemoryError(f"{peak:.0f} MiB"), data)

    def _once(self, data: bytes) -> bool:
        try:
            return self._run(data)
        except Exception as e:
            self._keep(e, data)
            return False

    def _keep(self, e: BaseException, data: bytes) -> None:
        frames = [f for f in traceback.extract_tb(e.__traceback__) if "/tests/fuzz/" not in f.filename]
        kind = f"{type(e).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else repr(e)[:80]
        if kind in self._kinds or len(self._kinds) >= KEPT:
            return
        self._kinds.add(kind)
        path = self._findings / f"{self.name}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
        path.with_suffix(".bin").write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(e)), encoding="utf-8")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _scratch(work: Path) -> Path:
    memory = Path("/dev/shm")  # files in memory, where there are such
    return (memory if os.access(memory, os.W_OK) else work) / f"teleojax-fuzz-{os.getppid()}"


def _import_readers(also: tuple[str, ...]) -> None:
    import teleojax.sources

    for module in pkgutil.iter_modules(teleojax.sources.__path__, "teleojax.sources."):
        importlib.import_module(module.name)
    for name in ("teleojax.engine._statsfile", "teleojax.engine._journal", *also):
        importlib.import_module(name)


def _others() -> list[str]:
    """Modules of the package that read nothing, whose coverage would say nothing."""
    modules = (
        p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in (ROOT / "teleojax").rglob("*.py")
    )
    return [m.removesuffix(".__init__") for m in modules if not m.startswith(READERS)]


def fuzz_guided(name: str, work: Path, *, seconds: float, runs: int, seed: int) -> None:
    """libFuzzer on one target. Does not return."""
    import atheris

    also = TARGETS[name].instrument
    with atheris.instrument_imports(include=["teleojax", *also], exclude=_others(), enable_loader_override=False):
        _import_readers(also)
    fuzzer = Fuzzer(name, work)
    fuzzer.warm_up()
    watch()
    mutation = MUTATIONS.get(name)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(number)
        if mutation is None or rng.random() < 0.5:
            return atheris.Mutate(data, max_size)
        return attempt(mutation, data, rng)[:max_size]

    found = work / name / "found"
    found.mkdir(exist_ok=True)
    words = work / name / "words"
    words.write_bytes(dictionary(TOKENS.get(name, ["{"])))
    options = [
        f"-max_total_time={max(1, round(seconds))}", f"-runs={runs or -1}", f"-seed={seed}", f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={round(fuzzer.counted[3]) + MEMORY_MIB + 256}", f"-max_len={fuzzer.longest}", "-len_control=0",
        f"-dict={words}", f"-artifact_prefix={work / 'findings' / name}-", "-reload=0", str(found),
        str(work / name / "seeds"),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], fuzzer, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz_unguided(name: str, work: Path, *, seconds: float, runs: int, seed: int) -> None:
    """Random mutations of the seeds of one target."""
    _import_readers(())
    fuzzer, rng = Fuzzer(name, work), Random(seed)
    fuzzer.warm_up()
    watch()
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end and not 0 < runs <= done:
        signal.alarm(HANG_SECONDS)  # whose default is to end the process
        fuzzer(mutated(name, rng.choice(fuzzer.seeds), rng)[: fuzzer.longest])
        done += 1
    signal.alarm(0)


def mutated(name: str, data: bytes, rng: Random) -> bytes:
    """One to three mutations of an input of a target, of its bytes or within its frame."""
    for _ in range(rng.randint(1, 3)):
        mutation = MUTATIONS.get(name, mutate_bytes) if rng.random() < 0.5 else mutate_bytes
        data = attempt(mutation, data, rng)
    return data


DRIVERS: dict[str, Callable[..., None]] = {"atheris": fuzz_guided, "random": fuzz_unguided}


def _child(arguments: argparse.Namespace) -> None:
    warnings.simplefilter("error")  # a warning is a traceback of a kind
    warnings.filterwarnings("default", module=r"(?!teleojax)")
    name, seconds, runs, seed = arguments.child
    fuzz = DRIVERS[arguments.driver]
    fuzz(name, arguments.work, seconds=float(seconds), runs=int(runs), seed=int(seed))


def campaign(name: str, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run one target for so many seconds and say what came of it."""
    work: Path = arguments.work
    log, ended, begin = work / f"{name}.log", [], time.monotonic()
    (work / name / "counted").unlink(missing_ok=True)
    with log.open("wb") as out:
        for attempt_number in range(RESTARTS):
            left = seconds - (time.monotonic() - begin)
            if left < 1:
                break
            numbers = [name, str(left), str(arguments.runs), str(arguments.seed + attempt_number)]
            command = [
                sys.executable,
                "-m",
                __spec__.name,
                "--driver",
                arguments.driver,
                "--work",
                str(work),
                "--child",
            ]
            done = subprocess.run([*command, *numbers], cwd=ROOT, stdout=out, stderr=out, check=False)
            if done.returncode == 0:
                break
            ended.append(f"{name}: the process ended with {done.returncode}, see {log}")
    counted = dict(zip(COUNTED, counters(work / name / "counted").tolist(), strict=True))
    text = log.read_text(encoding="utf-8", errors="replace")
    edges = [int(n) for n in re.findall(r"\bcov: (\d+)", text)]
    return {
        "target": name,
        "executions": int(counted["executions"]),
        "seconds": round(time.monotonic() - begin, 1),
        "edges": max(edges, default=None),
        "read": int(counted["read"]),
        "refused": int(counted["executions"] - counted["read"]),
        "slowest_s": round(counted["slowest_s"], 3),
        "grown_mib": round(counted["peak_mib"] - counted["base_mib"]),
        "findings": [*ended, *sorted(str(p) for p in (work / "findings").glob(f"{name}-*.txt"))],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results, one line a target, and their sums."""
    columns = ("target", "executions", "seconds", "edges", "read", "slowest_s", "grown_mib", "findings")
    total = {
        "target": "all",
        "slowest_s": max(r["slowest_s"] for r in rows),
        "grown_mib": max(r["grown_mib"] for r in rows),
    }
    total |= {c: round(sum(r[c] for r in rows), 1) for c in ("executions", "seconds", "read")} | {"edges": None}
    shown = [{**r, "findings": len(r["findings"])} for r in rows]
    shown.append(total | {"findings": sum(r["findings"] for r in shown)})
    lines = [
        list(columns),
        *(
            [("" if r[c] is None else f"{r[c]:,}" if isinstance(r[c], int) else str(r[c])) for c in columns]
            for r in shown
        ),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def main() -> int:
    """Run the targets one after another, each for its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="of all targets together")
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET", help="%(choices)s"
    )
    parser.add_argument("--driver", choices=DRIVERS, default="atheris" if find_spec("atheris") else "random")
    parser.add_argument("--runs", type=int, default=0, help="inputs of each target at most; 0: as many as time allows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "fuzz", help="corpus, findings, logs, summary.json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arguments.work = arguments.work.resolve()
    if arguments.child:
        _child(arguments)
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    for old in (arguments.work / "findings").glob("*"):
        old.unlink()
    names = [n for n in arguments.targets if find_spec(TARGETS[n].package)]
    for missing in sorted(set(arguments.targets) - set(names)):
        print(f"{missing}: left out, no package {TARGETS[missing].package!r}", file=sys.stderr)
    if unmade := [n for n in names if not (arguments.work / n / "seeds").exists()]:
        subprocess.run([sys.executable, "-m", "tests.fuzz.corpus", str(arguments.work), *unmade], cwd=ROOT, check=True)
    rows = []
    for name in names:
        rows.append(campaign(name, arguments, arguments.seconds / len(names)))
        print(table(rows[-1:]).splitlines()[1], file=sys.stderr)
    packages = ("teleojax", "atheris", "numpy", "h5py", "onnx", "torch", "gguf", "tensorstore", "msgpack", "zstandard")
    versions = {p: version(p) for p in packages if find_spec(p)}
    about = {
        "driver": arguments.driver,
        "seed": arguments.seed,
        "python": platform.python_version(),
        "versions": versions,
    }
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}",
        **about,
        "targets": rows,
    }
    (arguments.work / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(table(rows))
    for finding in (f for r in rows for f in r["findings"]):
        print(finding)
    return 1 if any(r["findings"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
