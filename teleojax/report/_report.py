"""Report: tensor name -> TensorFit, its groups, and the files it is written to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from teleojax._errors import UsageError
from teleojax.diagnose import Universality
from teleojax.engine import Measured
from teleojax.report._groups import described, group_name, grouped
from teleojax.report._options import FitOptions
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.report._universality import universality_by
from teleojax.report._wins import FamilyWins, family_wins
from teleojax.report._write import write_atomically, written_or_returned
from teleojax.stats import merge


@dataclass(frozen=True, slots=True)
class Report(Mapping[str, TensorFit]):
    """Results by tensor name, in natural order of the names; of a grouped report, by the group's name.

    `written` is the summary of a report that was read from a file, else None.
    """

    results: dict[str, TensorFit]
    measured: Measured
    options: FitOptions
    written: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> TensorFit:
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def group_by(self, key: str) -> Report:
        """The statistics merged by "role", "depth" or "model" and fitted anew; nothing is read again.

        Tensors whose role or depth is unknown form the group "unknown". A model has one group, of everything that was
        measured. "tensor" returns the report itself. Raises UsageError for any other key, and for a report read from a
        file, which has no statistics.
        """
        from teleojax.report._assemble import fit_statistics

        if key == "tensor":
            return self
        self._refuse_without_statistics(f"groups by {key}")
        measured = [r for r in self.results.values() if r.stats is not None]
        merged = {}
        for value, members in grouped(measured, key, model=self.measured.source).items():
            name = group_name(value)
            role, depth = (value if key == place else None for place in ("role", "depth"))
            about = described(name, members, role=role, depth=depth)
            merged[name] = (about, merge(*(m.stats for m in members if m.stats is not None)))
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
        if self.written is not None:
            return self.written
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

    def flat_rows(self) -> list[dict[str, Any]]:
        """One dict a tensor: the keys of the JSON lines, families flattened as family.key, shapes as 120x90."""
        return [_flat(r.to_dict()) for r in self.results.values()]

    def csv(self) -> str:
        """A header and one row a tensor: the keys of the JSON lines, families flattened as family.key."""
        rows = self.flat_rows()
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def _refuse_without_statistics(self, purpose: str) -> None:
        if self.written is not None:
            raise UsageError(
                self.measured.source,
                found="results read from a file",
                needed=f"statistics, for {purpose}",
                remedy="Fit the checkpoint, or the statistics that teleojax measure keeps of it.",
            )

    def to_jsonl(self, path: str | Path) -> None:
        """Write the JSON lines to a file that appears whole or not at all."""
        write_atomically(path, self.jsonl())

    def to_csv(self, path: str | Path) -> None:
        """Write the CSV to a file that appears whole or not at all."""
        write_atomically(path, self.csv())

    def html(self) -> str:
        """One self-contained HTML page: every tensor with its figures, roles, depths; it fetches nothing.

        Raises MissingExtraError without the extra "report".
        """
        from teleojax.report.page import report_page

        return report_page(self)

    def to_html(self, path: str | Path | None = None) -> str | None:
        """Write the page to a file that appears whole or not at all; without a path, return it."""
        return written_or_returned(path, self.html())

    def to_parquet(self, path: str | Path) -> None:
        """Write the columns of the CSV to a Parquet file, whole or not at all; extra "arrow".

        Units and meanings are in the key-value metadata, as JSON under teleojax.units and teleojax.meanings.
        """
        write_atomically(path, self.parquet())

    def parquet(self) -> bytes:
        """The bytes of that Parquet file."""
        from teleojax.report._exchange import parquet_bytes

        return parquet_bytes(self)

    def to_arrow(self) -> Any:
        """The columns of the CSV as a pyarrow.Table, each with unit and meaning as metadata; extra "arrow"."""
        from teleojax.report._exchange import arrow_table

        return arrow_table(self)

    def to_polars(self) -> Any:
        """The columns of the CSV as a polars.DataFrame, which has no place for units; extra "polars"."""
        from teleojax.report._exchange import polars_frame

        return polars_frame(self)

    def to_pandas(self) -> Any:
        """The columns of the CSV as a pandas.DataFrame, units and meanings in its `attrs`; extra "pandas"."""
        from teleojax.report._exchange import pandas_frame

        return pandas_frame(self)

    def to_xarray(self) -> Any:
        """The columns of the CSV as an xarray.Dataset along "tensor", units in `attrs`; extra "xarray".

        A count that is missing in some row is float64 with NaN, missing text "".
        """
        from teleojax.report._exchange import xarray_dataset

        return xarray_dataset(self)

    def to_latex(self) -> str:
        """The table for people as a LaTeX tabular (package booktabs), names escaped."""
        from teleojax.report._markup import latex_table

        return latex_table(self)

    def to_markdown(self) -> str:
        """The table for people as a Markdown pipe table, names escaped."""
        from teleojax.report._markup import markdown_table

        return markdown_table(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from teleojax.report._notebook import notebook_table

        return notebook_table(self)

    def plot_depth(self, stat: str = "mu", ax: Any = None, *, roles: Collection[str] | None = None,
                   style: str = "light") -> Any:  # fmt: skip
        """A number of the lognormal record by depth, a line a role, with intervals; returns the matplotlib Axes.

        Extra "plots", as for every figure. Raises UsageError where no tensor has the number, a role and a depth.
        """
        from teleojax.report.plots import plot_depth

        return plot_depth(self, stat, ax, roles=roles, style=style)

    def plot_heatmap(self, stat: str = "kl_nats", ax: Any = None, *, style: str = "light") -> Any:
        """A number of the lognormal record as a map of depth by role; returns the matplotlib Axes."""
        from teleojax.report.plots import plot_heatmap

        return plot_heatmap(self, stat, ax, style=style)

    def plot_wins(self, ax: Any = None, *, by: str = "role", style: str = "light") -> Any:
        """Which family wins, by lowest BIC, in what share of each group's tensors; returns the matplotlib Axes."""
        from teleojax.report.plots import plot_wins

        return plot_wins(self, ax, by=by, style=style)


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
