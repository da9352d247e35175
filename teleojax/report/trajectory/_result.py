"""Trajectory: tensor name -> its results over the steps of a run, and where they change."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from teleojax._errors import UsageError
from teleojax.diagnose import ChangePoint, change_points
from teleojax.report._report import Report, _flat
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.report._write import write_atomically

PRESENT = "present"  # the statistic of a change where a tensor appears or vanishes


def _lognormal(name: str) -> Callable[[TensorFit], float]:
    return lambda r: getattr(r.lognormal, name) if r.lognormal is not None else math.nan


def _moment(name: str) -> Callable[[TensorFit], float]:
    return lambda r: float(getattr(r.moments, name)) if r.moments is not None else math.nan


def _error(formula: Callable[[LognormalFit], float]) -> Callable[[TensorFit], float]:
    """The standard error of a number of the lognormal record; NaN where nothing can be told of it."""
    return lambda r: formula(r.lognormal) if r.lognormal is not None and r.status == "ok" else math.nan


LOGNORMAL = ("mu", "sigma", "alpha", "beta", "h_star", "kl_nats", "dispersion", "fisher", "ks", "w1_log", "r2")
MOMENTS = ("n", "n_zero", "n_nonfinite", "n_negative", "min", "max", "rms", "skew", "excess_kurtosis")
STATS: dict[str, Callable[[TensorFit], float]] = {
    **{name: _lognormal(name) for name in LOGNORMAL},
    **{name: _moment(name) for name in MOMENTS},
    "delta_nats": lambda r: r.delta_nats,
}
ERRORS: dict[str, Callable[[TensorFit], float]] = {
    "mu": _error(lambda fit: fit.mu_se),
    "sigma": _error(lambda fit: fit.sigma_se),
    # α = μ/σ² − 1 and β = 1/(2σ²), μ and σ independent
    "alpha": _error(lambda fit: math.hypot(fit.mu_se / fit.sigma**2, 2 * fit.mu * fit.sigma_se / fit.sigma**3)),
    "beta": _error(lambda fit: fit.sigma_se / fit.sigma**3),
    "kl_nats": _error(lambda fit: fit.kl_se),
    "n_zero": lambda r: math.sqrt(max(r.moments.n_zero, 1)) if r.moments is not None else math.nan,
}
CHANGING = ("mu", "sigma", "alpha", "beta", "h_star", "kl_nats", "dispersion", "fisher", "delta_nats", "n_zero")


@dataclass(frozen=True, slots=True)
class StatChange:
    """A change of one statistic of one tensor at `step`, the first step of what is new.

    `line` has the two lines that meet there, x being steps; None where the tensor appears or vanishes (`stat`
    "present", `present` then says which).
    """

    name: str
    stat: str
    step: int
    previous_step: int
    line: ChangePoint | None
    present: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The change as a JSON line; of a tensor that appears, `before` is 0 and `after` 1."""
        found: dict[str, Any] = {"kind": "change", "name": self.name, "stat": self.stat}
        found |= {"step": self.step, "previous_step": self.previous_step}
        if self.line is None:
            return {**found, "before": int(not self.present), "after": int(bool(self.present)),
                    "slope_before": None, "slope_after": None, "gain": None}  # fmt: skip
        keys = ("before", "after", "slope_before", "slope_after", "gain")
        return {**found, **{key: getattr(self.line, key) for key in keys}}


@dataclass(frozen=True, slots=True)
class TrackedStep:
    """One checkpoint: its step and name, its results without statistics, and totals as in a report's summary.

    `identity` tells it from itself after a change (None of arrays); `kept` whether it comes from the file of an earlier
    run rather than from a reading now.
    """

    step: int
    checkpoint: str
    report: Report
    identity: dict[str, Any] | None = None
    kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The step as a JSON line."""
        named = {"kind": "step", "step": self.step, "checkpoint": self.checkpoint}
        return {**named, **self.report.summary, "identity": self.identity}


@dataclass(frozen=True, slots=True)
class TensorTrajectory:
    """One tensor over all steps of the run; `results` has None where a step does not have it."""

    name: str
    steps: tuple[int, ...]
    results: tuple[TensorFit | None, ...]
    changes: tuple[StatChange, ...]

    @property
    def measured(self) -> list[TensorFit]:
        """Its results at the steps at which it was measured, one at least."""
        return [r for r in self.results if r is not None and r.moments is not None]

    @property
    def role(self) -> str | None:
        """Its role in the network, by the name."""
        return self.measured[0].role

    def values(self, stat: str) -> Float64[np.ndarray, " steps"]:
        """A statistic at every step, NaN where it does not exist.

        A number of the lognormal record ("mu", "kl_nats", …), a count or number of the values ("n", "n_zero", "rms",
        "skew", …), or "delta_nats"; raises UsageError for any other.
        """
        return self._each(_known(stat, STATS))

    def errors(self, stat: str) -> Float64[np.ndarray, " steps"]:
        """The standard errors of `values`, NaN where none is known."""
        _known(stat, STATS)
        return self._each(ERRORS.get(stat, lambda _: math.nan))

    def _each(self, number: Callable[[TensorFit], float]) -> Float64[np.ndarray, " steps"]:
        return np.asarray([math.nan if r is None else number(r) for r in self.results], np.float64)

    def changes_of(self, stat: str) -> list[StatChange]:
        """The changes of one statistic, by rising step."""
        return [c for c in self.changes if c.stat == stat]

    def plot(self, stat: str = "kl_nats", ax: Any = None, *, style: str = "light") -> Any:
        """A statistic of the tensor over training, its lines between changes, the changes; returns matplotlib Axes.

        Extra "plots". Raises UsageError where no step has the number.
        """
        from teleojax.report.plots import plot_changes

        return plot_changes(self, stat, ax, style=style)


def _known(stat: str, among: Mapping[str, Any]) -> Any:
    if stat not in among:
        raise UsageError("stat", found=repr(stat), needed=f"one of {', '.join(among)}", remedy="Choose one of them.")
    return among[stat]


@dataclass(frozen=True, slots=True)
class Trajectory(Mapping[str, TensorTrajectory]):
    """Tensors by name, in the order in which steps bring them; `points` are the steps, in rising order.

    `options` are those of the fits; `false_alarm` that of the change points.
    """

    points: tuple[TrackedStep, ...]
    tensors: dict[str, TensorTrajectory]
    options: dict[str, Any]
    false_alarm: float

    @staticmethod
    def of(points: tuple[TrackedStep, ...], options: dict[str, Any], false_alarm: float) -> Trajectory:
        """The tensors that any of the steps measured, with their changes."""
        names = dict.fromkeys(n for p in points for n, r in p.report.items() if r.moments is not None)
        tensors = {name: _tensor(name, points, false_alarm) for name in names}
        return Trajectory(points, tensors, options, false_alarm)

    def __getitem__(self, name: str) -> TensorTrajectory:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, rising."""
        return tuple(p.step for p in self.points)

    @property
    def reports(self) -> list[Report]:
        """The results of each step; without statistics, as read from a file."""
        return [p.report for p in self.points]

    @property
    def changes(self) -> list[StatChange]:
        """The changes of all tensors, by rising step."""
        return sorted((c for t in self.tensors.values() for c in t.changes), key=lambda c: c.step)

    @property
    def summary(self) -> dict[str, Any]:
        """Totals: steps, how many of them were read now and how many kept, tensors, changes, values, bytes, seconds."""
        kept = sum(p.kept for p in self.points)
        totals = [p.report.summary for p in self.points]
        return {
            "steps": len(self.points),
            "first": self.steps[0] if self.points else None,
            "last": self.steps[-1] if self.points else None,
            "measured": len(self.points) - kept,
            "kept": kept,
            "tensors": len(self.tensors),
            "changes": sum(len(t.changes) for t in self.tensors.values()),
            **{key: sum(t.get(key, 0) for t in totals) for key in ("failed", "values", "bytes")},
            "seconds": round(sum(t.get("seconds", 0.0) for t in totals), 6),
            "false_alarm": self.false_alarm,
        }

    def jsonl(self) -> str:
        """One JSON object a line: see `teleojax.report.trajectory._record`. What does not exist is null."""
        from teleojax.report.trajectory._record import trajectory_lines

        return trajectory_lines(self)

    def flat_rows(self) -> list[dict[str, Any]]:
        """One dict a step and tensor: step, checkpoint, and the columns of a report."""
        return [
            {"step": p.step, "checkpoint": p.checkpoint, **_flat(r.to_dict())}
            for p in self.points
            for r in p.report.values()
        ]

    def csv(self) -> str:
        """A header and one row a step and tensor."""
        rows = self.flat_rows()
        out = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step", "checkpoint"]
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

    def to_polars(self) -> Any:
        """The columns of the CSV as a polars.DataFrame; extra "polars"."""
        from teleojax.report._exchange import polars_frame

        return polars_frame(self)

    def to_pandas(self) -> Any:
        """The columns of the CSV as a pandas.DataFrame, units and meanings in its `attrs`; extra "pandas"."""
        from teleojax.report._exchange import pandas_frame

        return pandas_frame(self)

    def to_arrow(self) -> Any:
        """The columns of the CSV as a pyarrow.Table, each with unit and meaning as metadata; extra "arrow"."""
        from teleojax.report._exchange import arrow_table

        return arrow_table(self)

    def plot(
        self, stat: str = "kl_nats", ax: Any = None, *, by: str = "role", roles: Collection[str] | None = None,
        style: str = "light",
    ) -> Any:  # fmt: skip
        """A number of the lognormal record over training, a line a "role" or a "tensor"; returns the matplotlib Axes.

        Extra "plots". Raises UsageError where no tensor has the number.
        """
        from teleojax.report.plots import plot_trajectory

        return plot_trajectory(self.reports, self.steps, stat, ax, by=by, roles=roles, style=style)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from teleojax.report.trajectory._table import notebook_html

        return notebook_html(self)


def _tensor(name: str, points: tuple[TrackedStep, ...], false_alarm: float) -> TensorTrajectory:
    results = tuple(p.report.results.get(name) for p in points)
    steps = tuple(p.step for p in points)
    plain = TensorTrajectory(name, steps, results, ())
    found = [
        StatChange(name, stat, steps[c.index], int(c.previous), c)
        for stat in CHANGING
        for c in change_points(np.asarray(steps), plain.values(stat), plain.errors(stat), false_alarm=false_alarm)
    ]
    here = [r is not None for r in results]
    for i in range(1, len(here)):
        if here[i] != here[i - 1]:
            found.append(StatChange(name, PRESENT, steps[i], steps[i - 1], None, here[i]))
    return TensorTrajectory(name, steps, results, tuple(sorted(found, key=lambda c: c.step)))
