"""Report: tensor name -> TensorFit, its groups, and the files it is written to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from teleojax._errors import UsageError
from teleojax.diagnose import Universality
from teleojax.engine import Measured
from teleojax.report._groups import group_name, grouped
from teleojax.report._options import FitOptions
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.report._universality import universality_by
from teleojax.report._wins import FamilyWins, family_wins
from teleojax.report._write import write_atomically
from teleojax.stats import merge


@dataclass(frozen=True, slots=True)
class Report(Mapping[str, TensorFit]):
    """Results by tensor name, in natural order of the names; of a grouped report, by the group's name."""

    results: dict[str, TensorFit]
    measured: Measured
    options: FitOptions

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

        if key == "tensor":
            return self
        measured = [r for r in self.results.values() if r.stats is not None]
        merged = {}
        for value, members in grouped(measured, key, model=self.measured.source).items():
            name = group_name(value)
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
        return Report(fit_statistics(merged, self.options), self.measured, self.options)

    def rank(self, key: str = "kl_nats") -> list[TensorFit]:
        """Tensors that have the number, the largest first: a field of the lognormal record ("kl_nats", "dispersion",
        "fisher", "ks", "sigma", …) or "delta_nats". Raises UsageError for any other key.
        """
        if key != "delta_nats" and key not in {f.name for f in fields(LognormalFit)}:
            raise UsageError(
                "rank", found=repr(key), needed="delta_nats or a number of the lognormal", remedy="Use kl_nats, say."
            )

        def number(result: TensorFit) -> float:
            return getattr(result if key == "delta_nats" else result.lognormal, key, math.nan)

        return sorted((r for r in self.results.values() if math.isfinite(number(r))), key=number, reverse=True)

    def wins(self, by: str = "role") -> dict[str, FamilyWins]:
        """Which family wins in how many tensors of each "role", "depth", or of the "model"."""
        return family_wins(self.results, by)

    def universality(self, by: str = "model") -> dict[str, Universality]:
        """Are mu and sigma the same across the tensors of each "role", "depth", or of the "model"?

        Their spread is held against their standard errors, those of the jackknife where groups were measured; mu +
        ½ ln fan_in stands beside mu. Tensors without a lognormal fit take no part. Raises UsageError for another `by`.
        """
        return universality_by(self.results, by)

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
