"""The JSON files beside a checkpoint that say what its tensors are: read as data, and told apart when they change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teleojax.sources._index import Source, files_of

Config = Mapping[str, Any]
MAX_CONFIG_BYTES = 1 << 24
MODEL, ADAPTER = "config.json", "adapter_config.json"
ALONE = ("quantize_config.json", "quant_config.json")  # of GPTQ and AWQ, where the model's has no such part


def config_beside(source: Source, name: str) -> Config | None:
    """The JSON object of that name beside the first file of a source; None where there is none that can be read."""
    files = files_of(source)
    try:
        path = files[0].parent / name if files else None
        if path is None or not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        found: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def config_digests(source: Source) -> list[list[str]]:
    """Path and SHA-256 of every such file beside the files of a source, each path from the source's own folder on."""
    folders = list(dict.fromkeys(file.parent for file in files_of(source)))
    found = []
    for number, folder in enumerate(folders):
        for name in (MODEL, ADAPTER, *ALONE):
            if (digest := _digest(folder / name)) is not None:
                found.append([name if number == 0 else f"{folder.name}/{name}", digest])
    return found


def _digest(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
