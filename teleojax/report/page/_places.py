"""A report by role and by depth: tables of text, and the numbers of the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from scipy.special import ndtri

from teleojax._errors import UsageError
from teleojax.report._finding import NEAR
from teleojax.report._groups import UNKNOWN, group_name, grouped
from teleojax.report._report import Report
from teleojax.report._result import TensorFit
from teleojax.report._table import Cells, report_cells
from teleojax.report.plots._stats import estimate, label, placed, pooled

STATS = ("kl_nats", "mu", "sigma")  # that the figure by depth can show
MERGED = "Tensors of a group are merged and fitted anew, as if their values had been measured together."
AVERAGED = "Means over the tensors of a group, weighted by their values: these results hold no statistics to merge."


class Group(NamedTuple):
    """A group's name, its distance from equilibrium and half the interval of it; NaN where they do not exist."""

    name: str
    kl_nats: float
    half: float


class Place(NamedTuple):
    """Groups of a report by one key, for people: how they came about, their table, their distances."""

    note: str
    cells: Cells
    groups: list[Group]


def place(report: Report, by: str) -> Place | None:
    """The report by "role" or "depth"; None where no measured tensor has one, or the report is by groups already."""
    measured = [r for r in report.values() if r.moments is not None]
    if any(r.tensors is not None for r in measured) or all(getattr(r, by) is None for r in measured):
        return None
    z = _z(report)
    if report.written is None:
        merged = replace(report, options=replace(report.options, bootstrap=0, vuong=False)).group_by(by)
        found = [(r.name, estimate(r, "kl_nats")) for r in merged.values() if r.moments is not None]
        groups = [Group(name, e.value, z * e.se) for name, e in found]
        return Place(MERGED, report_cells(merged, wide=True), groups)
    members = {group_name(value): rows for value, rows in grouped(measured, by).items()}
    found = [(name, pooled(rows, "kl_nats")) for name, rows in members.items()]
    return Place(AVERAGED, _averages(members, z), [Group(name, e.value, z * e.se) for name, e in found])


def depths(report: Report) -> dict[str, Any] | None:
    """For each of STATS a list of roles with rising depths and weighted means there; None where no tensor has both."""
    found: dict[str, Any] = {}
    for stat in STATS:
        try:
            by_role = placed(report.values(), stat, "a page")
        except UsageError:
            continue
        roles = [
            {"role": role, "at": list(members), "mean": [_short(pooled(rs, stat).value) for rs in members.values()]}
            for role, members in by_role.items()
        ]
        found[stat] = {"label": label(stat), "roles": roles}
    return found or None


def extremes(place: Place, by: str) -> str | None:
    """One sentence: the nearest to equilibrium and the farthest, of groups whose half interval is at most NEAR.

    None for fewer groups than two.
    """
    known = [g for g in place.groups if math.isfinite(g.kl_nats) and g.name != UNKNOWN and not g.half > NEAR]
    if len(known) < 2:
        return None
    near, far = min(known, key=lambda g: g.kl_nats), max(known, key=lambda g: g.kl_nats)
    what = "block " if by == "depth" else ""
    return (
        f"By {by}, {what}{near.name} is nearest to arbitrage equilibrium ({near.kl_nats:.4f} ± {_text(near.half)} nats "
        f"per connection) and {what}{far.name} farthest from it ({far.kl_nats:.4f} ± {_text(far.half)})."
    )


def _averages(members: dict[str, list[TensorFit]], z: float) -> Cells:
    headings = ["group", "tensors", "n", "mu", "sigma", f"kl nats ± {z:.2f} se"]
    rows = []
    for name, results in members.items():
        mu, sigma, kl = (pooled(results, stat) for stat in ("mu", "sigma", "kl_nats"))
        n = sum(r.moments.n for r in results if r.moments is not None)
        interval = f"{_text(kl.value)} ± {_text(z * kl.se)}" if math.isfinite(kl.value) else "–"
        rows.append([name, str(len(results)), f"{n:,}", _text(mu.value), _text(sigma.value), interval])
    return Cells(headings, ["left", "right", "right", "right", "right", "right"], rows)


def figure_rows(groups: Sequence[Group]) -> list[list[Any]]:
    """Name, distance and half its interval of each group that has them, as JSON takes them."""
    known = [g for g in groups if math.isfinite(g.kl_nats)]
    return [[g.name, _short(g.kl_nats), _short(g.half) if math.isfinite(g.half) else 0] for g in known]


def _z(report: Report) -> float:
    return float(ndtri((1 + report.options.level) / 2))


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _short(value: float) -> float:
    return float(f"{value:.6g}")
