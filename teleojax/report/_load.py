"""`load_report`: the JSON lines of a report, read back; data alone, nothing in them is executed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from teleojax._errors import CorruptInputError, InputError
from teleojax.diagnose import LARGE, BootstrapTest, Goodness, VuongTest
from teleojax.engine import Measured
from teleojax.families import FAMILIES
from teleojax.fits import FamilyFit
from teleojax.report._check import FamilyCheck
from teleojax.report._options import DEFAULT_FAMILIES, FitOptions
from teleojax.report._report import Report
from teleojax.report._result import LognormalFit, TensorFit, WrittenMoments
from teleojax.sources import TensorSpec

STATUSES = ("ok", "degenerate", "skipped", "failed")
COUNTS = ("n", "n_zero", "n_nonfinite", "n_negative")
OF_VALUES = ("min", "max", "rms", "skew", "excess_kurtosis")
OF_LOGNORMAL = (
    "mu", "sigma", "mu_se", "sigma_se", "alpha", "beta", "h_star", "kl_nats", "kl_se", "dispersion", "fisher", "ks",
    "w1_log", "r2",
)  # fmt: skip
GOODNESS = ("ks", "ad", "cvm", "w1_log", "r2")
ERRORS = ("_jackknife_se", "_se")
OF_FAMILY = frozenset(
    {"n", "loglik_per_value", "aic", "bic", "kl_nats", *GOODNESS, "p_value", "replicates", "vuong_z", "vuong_p"}
    | {"status", "limit"}
)
WRITTEN_AS = "a line as Report.to_jsonl writes it"


def load_report(path: str | Path) -> Report:
    """Read the JSON lines that `report.to_jsonl` or `teleojax fit --format jsonl` wrote.

    Every number is what was written, null is NaN again, and `jsonl()` of the result is the file. There are no
    statistics in the lines, so `stats` are None, and what needs them (groups, densities, curves) raises UsageError; so
    are `utility_low` and `utility_high`, which are NaN. `options` are the defaults, but for the families.

    Raises InputError for a file that cannot be read, CorruptInputError for one that is no such file, was cut short, or
    holds lines that contradict themselves.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().decode().split("\n")
    except OSError as e:
        raise InputError(path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path.") from e
    except UnicodeDecodeError as e:
        raise CorruptInputError(
            path, found=f"bytes that are no UTF-8 ({e.reason} at {e.start})", needed="JSON lines", remedy="Fit again."
        ) from e
    rows = [_object(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows or set(rows[-1]) != {"summary"} or not isinstance(rows[-1]["summary"], dict):
        raise CorruptInputError(
            path, found=f"{len(rows)} lines and no summary at the end", needed="the whole file", remedy="Fit again."
        )
    results: dict[str, TensorFit] = {}
    for i, row in enumerate(rows[:-1], 1):
        result = _checked(path, i, row)
        if result.name in results:
            _refuse(path, i, f"a second line for {result.name!r}")
        results[result.name] = result
    return _report(results, rows[-1]["summary"], path)


def _refuse(path: Path, line: int, found: object, cause: Exception | None = None) -> NoReturn:
    raise CorruptInputError(
        f"{path}, line {line}", found=str(found), needed=WRITTEN_AS, remedy="Fit again, and keep the file as it is."
    ) from cause


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name}, which is no JSON")

    try:
        row = json.loads(line, parse_constant=no_constant)
    except (ValueError, RecursionError) as e:
        _refuse(path, number, f"no JSON ({type(e).__name__}: {str(e)[:100]})", e)
    if not isinstance(row, dict):
        _refuse(path, number, f"JSON of type {type(row).__name__}")
    return row


def _checked(path: Path, number: int, row: dict[str, Any]) -> TensorFit:
    """The result of a line, which must say the same again."""
    try:
        result = _result(row)
        again = result.to_dict()
        json.dumps(again, ensure_ascii=False).encode()  # half a surrogate pair could not be written again
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
        _refuse(path, number, f"{type(e).__name__}: {str(e)[:100]}", e)
    if again != row:
        odd = sorted(key for key in {*again, *row} if again.get(key, row) != row.get(key, again))
        _refuse(path, number, f"unknown or contradicting values under {', '.join(odd)}")
    return result


def _result(row: dict[str, Any]) -> TensorFit:
    measured = row["n"] is not None
    fitted = row["mu"] is not None
    shape = row["shape"]
    families = row["families"]
    if families is not None and not isinstance(families, dict):
        raise TypeError(f"families is a {type(families).__name__}")
    lines = {str(name): dict(line) for name, line in (families or {}).items()}
    written = WrittenMoments(*(_count(row[k]) for k in COUNTS), *(_number(row[k]) for k in OF_VALUES))
    return TensorFit(
        name=_text(row["name"]),
        role=None if row["role"] is None else _text(row["role"]),
        depth=None if row["depth"] is None else _count(row["depth"]),
        shape=None if shape is None else tuple(map(_count, shape)),
        dtype=_text(row["dtype"]),
        size=_count(row["size"]),
        status=_one_of(STATUSES, row["status"]),
        reason=None if row["reason"] is None else _text(row["reason"]),
        lognormal=LognormalFit(**{k: _number(row[k]) for k in OF_LOGNORMAL}) if fitted else None,
        families={name: _family(name, line) for name, line in lines.items()} if families is not None else None,
        tensors=_count(row["tensors"]) if "tensors" in row else None,
        checks={name: _check(name, line) for name, line in lines.items() if "kl_nats" in line},
        written=written if measured else None,
    )


def _family(name: str, line: dict[str, Any]) -> FamilyFit:
    errors = {key for key in line if key.endswith(ERRORS)}
    known = FAMILIES[name].parameters if name in FAMILIES else [k for k in line if f"{k}_se" in errors]
    params = [k for k in line if k in known]
    others = [k for k in line if k not in OF_FAMILY and k not in params and k not in errors]
    jackknife = {k.removesuffix(ERRORS[0]): _numbers(line[k]) for k in errors if k.endswith(ERRORS[0])}
    return FamilyFit(
        family=name,
        params={k: _numbers(line[k]) for k in params},
        loglik_per_value=_number(line["loglik_per_value"]),
        aic=_number(line["aic"]),
        bic=_number(line["bic"]),
        status=_text(line["status"]),
        n=_count(line["n"]),
        se={k: _numbers(line[f"{k}_se"]) for k in params if f"{k}_se" in errors},
        limit=None if line["limit"] is None else _text(line["limit"]),
        jackknife_se={k: jackknife[k] for k in params if k in jackknife},
        extra={k: line[k] if isinstance(line[k], int) else _number(line[k]) for k in others},
    )


def _check(name: str, line: dict[str, Any]) -> FamilyCheck:
    n = _count(line["n"])
    goodness = Goodness(**{k: _number(line[k]) for k in GOODNESS}, n=n) if "ad" in line else None
    bootstrap = vuong = None
    if "p_value" in line:
        ks = goodness.ks if goodness is not None else math.nan
        bootstrap = BootstrapTest(ks, _number(line["p_value"]), _count(line["replicates"]), n > LARGE)
    if "vuong_z" in line:
        nested = name in FAMILIES and "lognormal" in FAMILIES[name].contains
        vuong = VuongTest(
            name, "lognormal", nested, n, z=_number(line["vuong_z"]), p_value=_number(line["vuong_p"])
        )  # fmt: skip
    return FamilyCheck(_number(line["kl_nats"]), goodness, bootstrap, vuong)


def _report(results: dict[str, TensorFit], summary: dict[str, Any], path: Path) -> Report:
    specs, skipped, failed = {}, {}, {}
    for name, r in results.items():
        specs[name] = TensorSpec(name, (r.size,) if r.shape is None else r.shape, r.dtype, str(path), 0, 0)
        if r.status == "failed":
            failed[name] = r.reason or ""
        else:
            skipped[name] = r.reason or "results without statistics"
    source = summary.get("source")
    measured = Measured(source if isinstance(source, str) else str(path), specs, {}, skipped, failed)
    families = next((tuple(r.families) for r in results.values() if r.families), DEFAULT_FAMILIES)
    return Report(results, measured, FitOptions(families), written=summary)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r:.40}; needed text")
    return value


def _one_of(choices: tuple[str, ...], value: Any) -> str:
    if value not in choices:
        raise ValueError(f"found {value!r:.40}; needed one of {', '.join(choices)}")
    return str(value)


def _count(value: Any) -> int:
    """A count; 0 where there is none."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"found {value!r:.40}; needed a count")
    return value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"found {value!r:.40}; needed a number")
    return float(value)


def _numbers(value: Any) -> Any:
    return tuple(map(_number, value)) if isinstance(value, list) else _number(value)
