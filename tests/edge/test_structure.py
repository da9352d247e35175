"""The shape of the house: who imports whom, what is exported, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import teleojax

PACKAGE = Path(teleojax.__file__).parent
# left to right: a room imports only rooms to its left
ROOMS = (
    "_version", "_errors", "sources", "blocks", "kernels", "stats", "engine", "families", "fits", "teleo", "diagnose",
    "train", "report", "bench", "cli",
)  # fmt: skip
PUBLIC = {
    "AxisFit", "AxisReport", "BitHistogram", "CellCounts", "Comparison", "CorruptInputError", "FAMILIES", "Family",
    "FamilyFit", "GradientFiles", "GradientReport", "GradientSummary", "InputError", "LogMoments", "LognormalFit",
    "Measured", "MissingExtraError", "OutputError", "ProcessLostError", "Report", "Source", "TeleojaxError",
    "TensorFit", "TensorSpec", "TensorStats", "TensorTrajectory", "Trajectory", "UsageError", "compare", "engine",
    "fit", "gradient_summary",
    "load_report", "load_statistics", "lognormal_gradient", "measure", "merge", "merge_measured", "open_source",
    "save_statistics", "teleo", "track", "train", "utility_gradient", "write_gradient",
}  # fmt: skip
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py") or p.parent != PACKAGE)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        if module.startswith("teleojax."):
            assert ROOMS.index(module.split(".")[1]) <= ROOMS.index(room), f"{room} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_engine_jits(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    names = {n.attr for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)}
    # what bench jits are the programs that teleojax is compared with
    assert room in ("engine", "bench") or not names & {"jit", "filter_jit", "shard_map", "pmap"}


def test_exported_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname for node in imports for alias in node.names} == PUBLIC | {"__version__"}
    assert len(tree.body) == len(imports) + 1  # and the docstring: re-exports, nothing else
    for name in PUBLIC:
        assert hasattr(teleojax, name)


def test_importing_starts_no_backend_and_is_quick_to_load() -> None:
    code = (
        "import sys, teleojax, teleojax.cli\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "heavy = {'torch', 'matplotlib', 'pandas', 'polars', 'tflite', 'scipy.stats', 'optax', 'tensorstore'}\n"
        "heavy |= {'pyarrow', 'xarray'}\n"
        "heavy |= {'orbax', 'gguf', 'onnx', 'h5py', 'zarr', 'keras', 'fsspec', 'huggingface_hub'}\n"
        "heavy |= {'msgpack', 'aiohttp', 'jinja2', 'bokeh'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_has_an_exit_code_and_a_remedy() -> None:
    for name, code in {"UsageError": 2, "InputError": 3, "CorruptInputError": 3}.items():
        kind = getattr(teleojax, name)
        error = kind("here", found="a", needed="b", remedy="Do c.")
        assert isinstance(error, teleojax.TeleojaxError)
        assert error.exit_code == code
        assert str(error) == "here: found a; needed b. Do c."
    missing = teleojax.MissingExtraError("m.tflite", package="tflite", extra="tflite")
    assert "pip install 'teleojax[tflite]'" in str(missing)
