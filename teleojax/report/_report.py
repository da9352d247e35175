"""Report: tensor name -> TensorFit, its groups, and the files it is written to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teleojax._errors import UsageError
from teleojax.engine import Measured
from teleojax.report._result import TensorFit
from teleojax.report._write import write_atomically
from teleojax.stats import merge

GROUPINGS = ("tensor", "role", "depth", "model")


@dataclass(frozen=True, slots=True)
class Report(Mapping[str, TensorFit]):
    """Results by tensor name, in natural order of the names; of a grouped report, by the group's name."""

    results: dict[str, TensorFit]
    measured: Measured
    families: tuple[str, ...]

    def __getitem__(self, name: str) -> TensorFit:
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def group_by(self, key: str) -> Report:
        """The statistics merged by "role", "depth" or "model" and fitted anew; nothing is read again.

        Tensors whose role or depth is unknown form the group "unknown". A model has one group, of everything that was
        measured. "tensor" returns the report itself. Raises UsageError for any other key.
        """
        from teleojax.report._assemble import fit_statistics

        if key not in GROUPINGS:
            raise UsageError(
                "group_by", found=repr(key), needed=f"one of {', '.join(GROUPINGS)}", remedy="Choose one of them."
            )
        if key == "tensor":
            return self
        groups: dict[Any, list[TensorFit]] = {}
        for result in self.results.values():
            if result.stats is not None:
                value = self.measured.source if key == "model" else getattr(result, key)
                groups.setdefault(value, []).append(result)
        merged = {}
        for value in sorted(groups, key=lambda v: (v is None, v)):
            members = groups[value]
            name = "unknown" if value is None else str(value)
            dtypes = {m.dtype for m in members}
            described = {
                "name": name,
                "role": value if key == "role" else None,
                "depth": value if key == "depth" else None,
                "shape": None,
                "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
                "size": sum(m.size for m in members),
                "tensors": len(members),
            }
            merged[name] = (described, merge(*(m.stats for m in members if m.stats is not None)))
        return Report(fit_statistics(merged, self.families), self.measured, self.families)

    @property
    def summary(self) -> dict[str, Any]:
        """Totals: tensors by status, values, bytes read, seconds of reading."""
        statuses = [r.status for r in self.results.values()]
        measured = self.measured
        return {
            "source": measured.source,
            "tensors": len(measured.specs),
            **{status: statuses.count(status) for status in ("ok", "degenerate", "skipped", "failed")},
            "values": sum(stats.moments.size for stats in measured.stats.values()),
            "bytes": measured.nbytes,
            "seconds": round(measured.seconds, 6),
        }

    def jsonl(self) -> str:
        """One JSON object a line, the summary last. Full precision; what does not exist is null."""
        lines = [*(r.to_dict() for r in self.results.values()), {"summary": self.summary}]
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)

    def csv(self) -> str:
        """A header and one row a tensor: the keys of the JSON lines, families flattened as family.key."""
        rows = [_flat(r.to_dict()) for r in self.results.values()]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_jsonl(self, path: str | Path) -> None:
        """Write the JSON lines to a file that appears whole or not at all."""
        write_atomically(path, self.jsonl())

    def to_csv(self, path: str | Path) -> None:
        """Write the CSV to a file that appears whole or not at all."""
        write_atomically(path, self.csv())


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in row.items():
        if key == "families":
            for family, fit in (value or {}).items():
                flat |= {f"{family}.{name}": number for name, number in fit.items()}
        elif key == "shape" and value is not None:
            flat[key] = "x".join(map(str, value))
        else:
            flat[key] = value
    return flat
