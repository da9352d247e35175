"""Install every optional extra alone, in a fresh environment, and run the tests that concern it there.

    python scripts/check_extras.py [EXTRA...] [--keep FOLDER]

One wheel is built; for each extra an environment is made in a temporary folder, the wheel installed with that extra,
and what came along listed: no distribution that belongs to another extra may be among it. Then the test tools are
added, and the packages that the tests write their files with; the tests run in a folder without the package's own
source, so that what is tested is what was installed. Every test file must have a test that passes. "base" is the
package without any extra.

Which extra is tested by which files is the table EXTRAS, and stands nowhere else. Releases can be held down from
outside by pip's own PIP_CONSTRAINT. Python 3.11 and its standard library only; one line of JSON an extra on standard
output, progress on standard error.
Exit status: 0 all is well, 1 an extra is not, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("pytest>=8.2", "beartype>=0.20", "hypothesis>=6.100")
COPIED = ("pyproject.toml", "tests", "scripts")  # what the tests need beside the installed package
LIST = (
    "import importlib.metadata as m, json; print(json.dumps(sorted({d.metadata['Name'] for d in m.distributions()})))"
)


@dataclass(frozen=True, slots=True)
class Extra:
    """How one extra is tested.

    `writers` are packages that the tests alone need, to write files or to serve them. `brings` are distributions of
    other extras that this one's own packages require; `written_with` those that come with the writers, so that the
    tests cannot show that they are not needed: for these, installing without writers and listing is all the proof.
    """

    tests: tuple[str, ...]
    writers: tuple[str, ...] = ()
    brings: frozenset[str] = frozenset()
    written_with: frozenset[str] = frozenset()


SAFETENSORS = "safetensors>=0.5"
REPORT = ("tests/io/test_report_files.py",)
EXTRAS = {
    "base": Extra(
        (
            "tests/edge/test_structure.py",
            "tests/io/test_safetensors.py",
            "tests/io/test_numpy_files.py",
            "tests/io/test_pytree.py",
            "tests/numerics/test_measure.py",
        ),
        (SAFETENSORS,),
    ),
    "arrow": Extra(REPORT),
    "pandas": Extra(REPORT),
    "polars": Extra(REPORT),
    "xarray": Extra(REPORT, brings=frozenset({"pandas"})),
    "flax": Extra(("tests/io/test_flax.py",), ("flax>=0.12",), written_with=frozenset({"tensorstore", "fsspec"})),
    "gguf": Extra(("tests/io/test_gguf.py",)),
    "hdf5": Extra(("tests/io/test_hdf5.py", "tests/io/test_keras.py"), ("keras>=3.10",)),
    "hub": Extra(("tests/io/test_hub.py",), (SAFETENSORS,), brings=frozenset({"fsspec"})),
    "onnx": Extra(("tests/io/test_onnx.py",)),
    "orbax": Extra(
        ("tests/io/test_orbax.py", "tests/io/test_tensorstore.py", "tests/sharding/test_orbax.py"),
        ("flax>=0.12", "orbax-checkpoint>=0.12"),
        written_with=frozenset({"msgpack", "fsspec"}),
    ),
    "remote": Extra(
        ("tests/io/test_remote.py", "tests/io/test_object_stores.py"),
        (SAFETENSORS, "s3fs>=2024.6", "moto[server]>=5", "gcsfs>=2024.6", "gcp-storage-emulator>=2024.8"),
        written_with=frozenset({"jinja2"}),
    ),
    "torch": Extra(("tests/io/test_torch.py",), brings=frozenset({"fsspec", "jinja2"})),
    "zarr": Extra(("tests/io/test_zarr.py",), ("zarr>=3.0",)),
    "zstd": Extra(("tests/io/test_compressed.py",), (SAFETENSORS,)),
    "plots": Extra(("tests/edge/test_plots.py",)),
    "report": Extra(
        tuple(f"tests/pages/test_{name}.py" for name in ("report_page", "comparison_page", "hostile_names")),
        (SAFETENSORS, "axe-playwright-python>=0.1.4", "playwright>=1.50"),
    ),
    "tflite": Extra(("tests/io/test_tflite.py", "tests/io/test_open.py"), (SAFETENSORS,)),
}


class CheckError(Exception):
    """What is wrong with an extra, in words."""


def normal(name: str) -> str:
    """The name of a distribution as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, frozenset[str]]:
    """Of each extra in pyproject.toml the distributions that it names."""
    with (ROOT / "pyproject.toml").open("rb") as f:
        table = tomllib.load(f)["project"]["optional-dependencies"]
    return {extra: frozenset(normal(re.split(r"[^\w.-]", r)[0]) for r in named) for extra, named in table.items()}


def run(command: Sequence[str | Path], cwd: Path, **more: str) -> str:
    """The standard output of a command. Raises CheckError with the end of what it said where it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"{' '.join(map(str, command))[:200]}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


class Environment:
    """A fresh virtual environment in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, folder / "env" / "bin" / "python"
        run([sys.executable, "-m", "venv", folder / "env"], folder)

    def install(self, *what: str) -> None:
        """Install with the pip of this environment; its cache is the user's."""
        run([self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what], self.folder)

    def distributions(self) -> frozenset[str]:
        """Names of what is installed, without pip and what comes with it."""
        found = json.loads(run([self.python, "-I", "-c", LIST], self.folder))
        return frozenset(map(normal, found)) - {"pip", "setuptools"}

    def megabytes(self) -> float:
        """Size of all its files but pip's and setuptools'."""
        files = (p for p in (self.folder / "env").rglob("*") if p.is_file() and not p.is_symlink())
        mine = (p for p in files if not {"pip", "setuptools", "pkg_resources"} & set(p.parts))
        return round(sum(p.stat().st_size for p in mine) / 1e6, 1)


def tested(environment: Environment, files: Sequence[str]) -> dict[str, object]:
    """Counts of the tests and the reasons of those that were skipped.

    Raises CheckError where one fails, or where nothing of a file passes.
    """
    folder = environment.folder / "run"
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    report = folder / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    run([environment.python, "-m", "pytest", *options, f"--basetemp={environment.folder / 'tmp'}", *files], folder)
    passed, skipped = dict.fromkeys(files, 0), []
    for case in ET.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if skip is None:
            passed[str(case.get("file"))] += 1
        else:
            skipped.append(f"{case.get('name')}: {skip.get('message')}")
    if empty := [name for name, n in passed.items() if not n]:
        raise CheckError(f"nothing of {', '.join(empty)} was run: {skipped}")
    return {"passed": sum(passed.values()), "skipped": len(skipped), "reasons": skipped}


def check(name: str, wheel: Path, folder: Path) -> dict[str, object]:
    """One extra: what was installed, how large it is, how its tests went. Raises CheckError where it is not well."""
    extra, named = EXTRAS[name], requirements()
    begin = time.monotonic()
    environment = Environment(folder)
    environment.install(str(wheel) if name == "base" else f"{wheel}[{name}]")
    alone, megabytes = environment.distributions(), environment.megabytes()
    foreign = frozenset().union(*named.values()) - named.get(name, frozenset())
    if missing := named.get(name, frozenset()) - alone:
        raise CheckError(f"{', '.join(sorted(missing))} was not installed")
    if more := (alone & foreign) - extra.brings:
        raise CheckError(f"{', '.join(sorted(more))} of other extras was installed too")
    environment.install(*TOOLS, *extra.writers)
    with_tools = environment.distributions()
    if more := (with_tools & foreign) - extra.brings - extra.written_with:
        raise CheckError(f"{', '.join(sorted(more))} of other extras came with the tests' own packages")
    result = tested(environment, extra.tests)
    return {
        "extra": name,
        **result,
        "seconds": round(time.monotonic() - begin, 1),
        "megabytes": megabytes,
        "distributions": len(alone),
        "of_other_extras": sorted(alone & foreign),
        "through_writers": sorted((with_tools - alone) & foreign),
        "tests": extra.tests,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Install each optional extra alone and run its tests.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"some of: {', '.join(EXTRAS)} (default: all)")
    parser.add_argument("--keep", type=Path, help="an empty folder for the environments, which then stay")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.extras if name not in EXTRAS]:
        parser.error(f"unknown extra {unknown[0]!r}; known: {', '.join(EXTRAS)}")
    if untested := requirements().keys() ^ (EXTRAS.keys() - {"base"}):
        parser.error(f"pyproject.toml and the table of tests differ in: {', '.join(sorted(untested))}")

    status = 0
    with tempfile.TemporaryDirectory(prefix="check-extras-") as scratch:
        folder = arguments.keep or Path(scratch)
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, ROOT], ROOT)
        (wheel,) = Path(scratch).glob("*.whl")
        for name in arguments.extras or EXTRAS:
            print(f"{name}: installing and testing", file=sys.stderr)
            place = folder / name
            place.mkdir(parents=True)
            try:
                print(json.dumps(check(name, wheel, place)), flush=True)
            except CheckError as e:
                print(f"{name}: {e}", file=sys.stderr)
                status = 1
            if arguments.keep is None:
                shutil.rmtree(place)
    return status


if __name__ == "__main__":
    sys.exit(main())
