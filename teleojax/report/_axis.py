"""AxisReport: tensor name -> AxisFit, and its lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from teleojax.stats import AxisFit

COLUMNS = (
    "n", "n_zero", "n_nonfinite", "n_negative", "min", "max", "rms", "mu", "sigma", "mu_se", "sigma_se", "skew",
    "excess_kurtosis", "alpha", "beta", "h_star", "delta_nats",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AxisReport(Mapping[str, AxisFit]):
    """Fits per index along `axis` by tensor name; `skipped` says why a tensor has none."""

    results: dict[str, AxisFit]
    skipped: dict[str, str]
    axis: int | tuple[int, ...]

    def __getitem__(self, name: str) -> AxisFit:
        if name not in self.results and name in self.skipped:
            raise KeyError(f"{name}: not fitted ({self.skipped[name]})")
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict of plain Python values per tensor and index; numbers that do not exist are None."""
        for name, fit in self.results.items():
            columns = {c: np.ravel(getattr(fit, c)).tolist() for c in COLUMNS}
            for i, index in enumerate(np.ndindex(*fit.shape)):
                numbers = {c: v[i] if math.isfinite(v[i]) else None for c, v in columns.items()}
                yield {"name": name, "index": list(index), **numbers}

    def jsonl(self) -> str:
        """One JSON object a line per tensor and index, and a last one with the totals."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in self.rows()]
        fits = sum(fit.n.size for fit in self.results.values())
        summary = {"tensors": len(self.results), "fits": fits, "skipped": len(self.skipped)}
        return "".join(line + "\n" for line in [*lines, json.dumps({"summary": summary})])

    def csv(self) -> str:
        """A header and one row per tensor and index."""
        out = io.StringIO()
        writer: csv.DictWriter[str] = csv.DictWriter(out, ("name", "index", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "index": "x".join(map(str, row["index"]))} for row in self.rows())
        return out.getvalue()
