"""What is on disk: one file of JSON lines a finished replica, Orbax checkpoints, and all lines together at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from examples.emergence.models import Model, parameters
from teleojax.report import write_atomically

Record = dict[str, Any]


class Key(NamedTuple):
    """Which replica: "mlp" or "transformer", "real", "null" or "untrained", initializer, seed."""

    network: str
    kind: str
    initializer: str
    seed: int

    def __str__(self) -> str:
        return f"{self.network}-{self.kind}-{self.initializer}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of results. A replica counts as finished if its file names the same settings."""

    folder: Path

    def finished(self, key: Key, settings: Mapping[str, Any]) -> list[Record] | None:
        """The records of a replica that is there, else None. Files appear whole or not at all."""
        path = self._replica(key)
        if not path.exists():
            return None
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return records if records[0]["settings"] == settings else None

    def finish(self, key: Key, records: Iterable[Record]) -> None:
        """Write the records of a replica; the first of them has its `settings`."""
        self._replica(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._replica(key), _lines(records))

    def checkpoint(self, key: Key, step: int) -> Path:
        """Where the parameters of a replica at one step are, or will be."""
        return self.folder.absolute() / "checkpoints" / str(key) / str(step)

    def save_checkpoint(self, key: Key, step: int, model: Model) -> None:
        """Save all parameters by name, in Orbax's format."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self.checkpoint(key, step), parameters(model), force=True)

    def write_results(self, records: Iterable[Record]) -> Path:
        """All records, one JSON line each."""
        path = self.folder / "results.jsonl"
        write_atomically(path, _lines(records))
        return path

    def _replica(self, key: Key) -> Path:
        return self.folder / "replicas" / f"{key}.jsonl"


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
