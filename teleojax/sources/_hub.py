"""Models of the Hugging Face Hub: the folder of one in the cache, and `hf://org/name[@revision]`, cached first.

The layout of the cache: `models--org--name/snapshots/<commit>/` holds links to blobs, `refs/<branch>` names a commit.
Format: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, InputError, MissingExtraError
from teleojax.sources._index import Source, natural_key
from teleojax.sources._safetensors import INDEX_SUFFIX, read_index
from teleojax.sources._sharded import index_of, open_safetensors_directory

FOLDER = "models--"
FILES = ["*.safetensors", f"*{INDEX_SUFFIX}", "config.json"]
ELSEWHERE = ["*/*"]  # other variants and formats of the same model
MODEL = re.compile(r"hf://((?:[\w.-]+/)?[\w.-]+)(?:@([\w./-]+))?")
COMMIT = re.compile(r"[\w.-]*[\w-][\w.-]*")  # a name, neither "." nor ".."
MAX_REF_BYTES = 128  # a commit has 40


def is_cached_model(path: Path, _: Sequence[Path] = ()) -> bool:
    """Whether a directory is one model's of the Hub's cache."""
    return path.name.startswith(FOLDER) and (path / "snapshots").is_dir()


def open_cached_model(path: Path, *_: object) -> Source:
    """The snapshot that `refs/main` names, else the only one.

    Raises InputError where there is none or it cannot be told which, and what `open_source` raises for a directory.
    """
    from teleojax.sources._open import open_source

    source = open_source(_snapshot(path))
    source.name = path.name.removeprefix(FOLDER).replace("--", "/")
    return source


def _snapshot(path: Path) -> Path:
    try:
        with (path / "refs" / "main").open("rb") as f:
            commit = f.read(MAX_REF_BYTES).decode("utf-8", errors="replace").strip()
    except OSError:
        commit = None
    if commit is None:
        snapshots = sorted(p.name for p in (path / "snapshots").iterdir() if p.is_dir())
        if len(snapshots) != 1:
            raise InputError(
                path,
                found=f"no refs/main and {len(snapshots)} snapshots",
                needed="one snapshot, or a refs/main that names one",
                remedy="Give the path of the snapshot to read."
                if snapshots
                else "Download the model again: hf download ORG/NAME",
            )
        return path / "snapshots" / snapshots[0]
    if not COMMIT.fullmatch(commit) or not (path / "snapshots" / commit).is_dir():
        raise CorruptInputError(
            path / "refs" / "main",
            found=f"the commit {commit[:80]!r}, of which there is no snapshot",
            needed="the name of a directory in snapshots/",
            remedy="The download was cut off: repeat it, or give the path of a snapshot.",
        )
    return path / "snapshots" / commit


def open_hub(url: str) -> Source:
    """The safetensors at the top of a model on the Hub: from the cache where it is whole, else downloaded into it.

    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_TOKEN` and `HF_ENDPOINT` mean what they mean to huggingface_hub.
    Raises MissingExtraError without `huggingface_hub`, InputError for a URL of another form, when there is no such
    model or no permission, when it has no safetensors, or when it is neither cached nor within reach, and what
    SafetensorsSource raises.
    """
    match = MODEL.fullmatch(url)
    if match is None:
        raise InputError(
            url, found="a URL of another form", needed="hf://org/name or hf://org/name@revision", remedy="Correct it."
        )
    try:
        hub = import_module("huggingface_hub")
    except ImportError as e:
        raise MissingExtraError(url, package="huggingface_hub", extra="hub") from e
    errors = import_module("huggingface_hub.errors")
    model, revision = match.groups()
    folder = _downloaded(hub, errors, url, model, revision, local=True)
    if folder is None or not _is_whole(folder):
        folder = _downloaded(hub, errors, url, model, revision, local=False)
    entries = [] if folder is None else _entries(folder)
    if folder is None or not any(p.name.endswith((".safetensors", INDEX_SUFFIX)) for p in entries):
        raise InputError(
            url,
            found="no safetensors at the top of the repository",
            needed="a model that has them",
            remedy=f"Download what there is and give its path: hf download {model}",
        )
    return open_safetensors_directory(folder, entries, url.removeprefix("hf://"))


def _downloaded(hub: Any, errors: Any, url: str, model: str, revision: str | None, *, local: bool) -> Path | None:
    """The folder of the snapshot; None where it is not in the cache and only the cache is looked at."""
    try:
        return Path(
            hub.snapshot_download(
                model, revision=revision, allow_patterns=FILES, ignore_patterns=ELSEWHERE, local_files_only=local
            )
        )
    except errors.LocalEntryNotFoundError as e:
        if local:
            return None
        raise InputError(
            url,
            found="a model that is not in the cache, and a Hub that is out of reach",
            needed="either of them",
            remedy=f"Unset HF_HUB_OFFLINE if it is set, check the connection, or: hf download {model}",
        ) from e
    except errors.HFValidationError as e:
        raise InputError(url, found=_line(e), needed="hf://org/name", remedy="Correct the name.") from e
    except errors.GatedRepoError as e:
        raise InputError(
            url,
            found="a model behind a gate",
            needed="access to it",
            remedy="Ask for access on its page, then: hf auth login",
        ) from e
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
        what = "revision" if isinstance(e, errors.RevisionNotFoundError) else "model (or a private one)"
        raise InputError(
            url, found=f"no such {what}", needed="one that exists", remedy="Check the name, or: hf auth login"
        ) from e
    except Exception as e:  # of HTTP, of the disk
        raise InputError(
            url, found=f"an error ({_line(e)})", needed="the files of the model", remedy="Try again later."
        ) from e


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has safetensors, and every shard of its index: downloads can be cut off."""
    entries = _entries(folder)
    index = index_of(folder, entries, INDEX_SUFFIX, "model")
    if index is not None:
        return all((folder / shard).exists() for shard in set(read_index(index).values()))
    return any(p.name.endswith(".safetensors") and p.exists() for p in entries)


def _entries(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:200] or type(e).__name__
