"""Results as tables of other libraries: Polars, pandas, Arrow, Parquet, xarray. Each is imported when it is asked for.

The columns are those of `report.csv()`. Counts are 64-bit integers, numbers float64; what does not exist is null, or
NaN where a library has no null. Parameters that are vectors (of a mixture) are lists.
"""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from teleojax._errors import MissingExtraError
from teleojax.report._columns import Column, column

if TYPE_CHECKING:
    from teleojax.report._report import Report

KEY = "teleojax"  # of the metadata of a table: its summary, and units and meanings as teleojax.units, teleojax.meanings


@runtime_checkable
class Tabular(Protocol):
    """What has rows under the keys of `COLUMNS`, and a summary."""

    @property
    def summary(self) -> dict[str, Any]: ...

    def flat_rows(self) -> list[dict[str, Any]]: ...


class Filled(NamedTuple):
    """A column with its values by row; `kind` is "vector" where they are lists."""

    name: str
    kind: str
    about: Column
    values: list[Any]


def filled_columns(report: Tabular) -> list[Filled]:
    """The columns of `report.csv()`, in that order, None where a row has nothing."""
    rows = report.flat_rows()
    found = []
    for key in dict.fromkeys(key for row in rows for key in row):
        values, about = [row.get(key) for row in rows], column(key)
        vector = any(isinstance(v, list) for v in values)
        found.append(Filled(key, "vector" if vector else about.kind, about, values))
    return found


def _module(name: str, extra: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise MissingExtraError(what, package=name, extra=extra) from e


def require_parquet() -> None:
    """Raises MissingExtraError where Parquet cannot be written."""
    _module("pyarrow.parquet", "arrow", "parquet")


def polars_frame(report: Tabular) -> Any:
    """A polars.DataFrame; it has no place for units."""
    pl = _module("polars", "polars", "to_polars")
    kinds = {"text": pl.String, "count": pl.Int64, "number": pl.Float64, "vector": pl.List(pl.Float64)}
    columns = filled_columns(report)
    return pl.DataFrame(
        {c.name: c.values for c in columns}, schema={c.name: kinds[c.kind] for c in columns}, strict=False
    )


def pandas_frame(report: Tabular) -> Any:
    """A pandas.DataFrame; `attrs` has the summary, units and meanings."""
    pd = _module("pandas", "pandas", "to_pandas")
    series = {}
    for c in filled_columns(report):
        if c.kind == "count":
            series[c.name] = pd.array(c.values, dtype="Int64")
        elif c.kind == "number":
            series[c.name] = np.asarray([math.nan if v is None else v for v in c.values], np.float64)
        else:
            series[c.name] = pd.Series(c.values, dtype=object)
    frame = pd.DataFrame(series)
    frame.attrs.update(_about(report))
    return frame


def arrow_table(report: Tabular, what: str = "to_arrow") -> Any:
    """A pyarrow.Table; fields have their unit and meaning as metadata, the schema the summary and all of them."""
    pa = _module("pyarrow", "arrow", what)
    kinds = {"text": pa.string(), "count": pa.int64(), "number": pa.float64(), "vector": pa.list_(pa.float64())}
    columns = filled_columns(report)
    fields = [
        pa.field(c.name, kinds[c.kind], metadata={"unit": c.about.unit, "meaning": c.about.meaning}) for c in columns
    ]
    arrays = [pa.array(c.values, type=kinds[c.kind]) for c in columns]
    about = {key: json.dumps(value, ensure_ascii=False) for key, value in _about(report).items()}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=about))


def parquet_bytes(report: Report) -> bytes:
    """A Parquet file; its key-value metadata has the summary, units and meanings as JSON."""
    table = arrow_table(report, "to_parquet")
    out = io.BytesIO()
    _module("pyarrow.parquet", "arrow", "to_parquet").write_table(table, out, compression="zstd")
    return out.getvalue()


def xarray_dataset(report: Report) -> Any:
    """An xarray.Dataset along "tensor", indexed by name; variables have units and long_name, the whole the summary.

    Integers have no null: a count that is missing somewhere becomes float64 with NaN. Text that is missing is "".
    Vectors lie along "component", shorter ones filled up with NaN.
    """
    xr = _module("xarray", "xarray", "to_xarray")
    variables, names = {}, list(report)
    for c in filled_columns(report):
        if c.name == "name":
            continue
        attributes = {"long_name": c.about.meaning} | ({"units": c.about.unit} if c.about.unit else {})
        if c.kind == "text":
            values: Any = np.asarray(["" if v is None else v for v in c.values], dtype=object)
        elif c.kind == "vector":
            values = _padded(c.values)
        elif c.kind == "count" and None not in c.values:
            values = np.asarray(c.values, np.int64)
        else:
            values = np.asarray([math.nan if v is None else v for v in c.values], np.float64)
        variables[c.name] = (("tensor", "component")[: values.ndim], values, attributes)
    summary = {k: v for k, v in report.summary.items() if isinstance(v, (str, int, float))}
    return xr.Dataset(variables, {"tensor": np.asarray(names, dtype=object)}, summary)


def _padded(rows: Sequence[list[float | None] | None]) -> np.ndarray:
    width = max((len(row) for row in rows if row), default=0)
    out = np.full((len(rows), width), np.nan)
    for place, row in zip(out, rows, strict=True):
        numbers = [math.nan if v is None else v for v in row or ()]
        place[: len(numbers)] = numbers
    return out


def _about(report: Tabular) -> dict[str, Any]:
    columns = filled_columns(report)
    return {
        KEY: report.summary,
        f"{KEY}.units": {c.name: c.about.unit for c in columns},
        f"{KEY}.meanings": {c.name: c.about.meaning for c in columns},
    }
