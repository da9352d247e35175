"""`compare`: two networks, tensor by tensor and role by role."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from teleojax._errors import UsageError
from teleojax.diagnose import log_wasserstein
from teleojax.report._assemble import fit, fit_statistics
from teleojax.report._comparison import Change, Comparison, TensorChange
from teleojax.report._groups import described, grouped
from teleojax.report._load import load_report
from teleojax.report._match import Pair, match
from teleojax.report._options import FitOptions
from teleojax.report._report import Report
from teleojax.report._result import TensorFit
from teleojax.stats import merge

ERRORS = {"mu": "mu_se", "sigma": "sigma_se", "kl_nats": "kl_se"}


def compare(a: Any, b: Any, *, level: float = 0.95, **options: Any) -> Comparison:
    """What changed from `a` to `b`: mu, sigma, the distance from equilibrium, the best family, the law itself.

    Each is a Report, a Measured, a path of results that `to_jsonl` wrote (*.jsonl), or anything that `fit` takes; the
    latter are fitted with `options`. Tensors are paired by name, else by the name without prefixes such as `model.` and
    `module.`, else by equal shape, role and depth where only one on either side has them. `w1_log` is the Wasserstein-1
    distance between the laws of ln|w|: for two storage types of one network it is what quantisation moved, zeros apart.
    The tensors of a role that were paired are merged and fitted anew on either side; results without statistics have
    neither roles nor w1_log. A tensor that only one side could measure has NaN and a reason.

    `sign` of a change is not 0 where it exceeds its standard error by the quantile of `level`.
    Raises UsageError for a level outside (0, 1), or options with a side that is fitted already; else as `fit`.
    """
    FitOptions(level=level)  # refuses a level that is none
    if options.get("axis") is not None:
        raise UsageError(
            "compare", found="axis", needed="whole tensors", remedy="Fit each side along the axis and compare arrays."
        )
    one, two = _report(a, options), _report(b, options)
    found = match(one.values(), two.values())
    z = float(ndtri((1 + level) / 2))
    measured = [p for p in found.pairs if p.a.moments is not None or p.b.moments is not None]
    changes = {p.a.name: _change(p.a, p.b, p.matched, z) for p in measured}
    only_a, only_b = (tuple(r for r in rest if r.moments is not None) for rest in (found.only_a, found.only_b))
    sources = one.measured.source, two.measured.source
    return Comparison(changes, _roles(measured, one, two, z), only_a, only_b, *sources, level)


def _report(side: Any, options: dict[str, Any]) -> Report:
    if isinstance(side, (str, Path)) and Path(side).suffix == ".jsonl":
        side = load_report(side)
    if not isinstance(side, Report):
        return fit(side, **options)
    if options:
        raise UsageError(
            "compare",
            found=f"{', '.join(options)} with results that are fitted already",
            needed="no options, or something to fit",
            remedy="Fit both sides with the same options first.",
        )
    if any(r.tensors is not None for r in side.values()):
        raise UsageError(
            "compare", found="a report by groups", needed="one by tensors", remedy="Compare before grouping."
        )
    return side


def _change(a: TensorFit, b: TensorFit, matched: str, z: float, tensors: int | None = None) -> TensorChange:
    mu, sigma, kl = (_difference(a, b, stat, z) for stat in ("mu", "sigma", "kl_nats"))
    one, two = (r.stats.histogram if r.stats else None for r in (a, b))
    w1 = math.nan if one is None or two is None else log_wasserstein(one, two)
    reasons = [f"{side}: {r.reason or r.status}" for side, r in (("a", a), ("b", b)) if r.status != "ok"]
    if not reasons and math.isnan(w1):
        reasons = ["no histograms on both sides"]
    return TensorChange(a, b, matched, mu, sigma, kl, w1, "; ".join(reasons) or None, tensors)


def _difference(a: TensorFit, b: TensorFit, stat: str, z: float) -> Change:
    before, after = (getattr(r.lognormal, stat) if r.lognormal else math.nan for r in (a, b))
    fitted = a.status == b.status == "ok"  # of one value, or equal ones, no error can be told
    se = math.hypot(_error(a, stat), _error(b, stat)) if fitted else math.nan
    delta = after - before
    sign = int(np.sign(delta)) * (abs(delta) > z * se) if math.isfinite(delta) and math.isfinite(se) else None
    return Change(before, after, se, sign)


def _error(result: TensorFit, stat: str) -> float:
    """The standard error; that of the jackknife where groups were measured."""
    if result.lognormal is None:
        return math.nan
    lognormal = (result.families or {}).get("lognormal")
    jackknife = lognormal.jackknife_se.get(stat) if lognormal is not None else None
    return float(jackknife) if jackknife is not None else getattr(result.lognormal, ERRORS[stat])


def _roles(pairs: Iterable[Pair], one: Report, two: Report, z: float) -> dict[str, TensorChange]:
    """The pairs of each role that were measured on both sides and have statistics, merged and fitted anew."""
    whole = {p.a.name: p for p in pairs if p.a.stats is not None and p.b.stats is not None}
    by_role = {p.a.name: p.a.role or p.b.role for p in whole.values()}
    known = (replace(p.a, role=by_role[p.a.name]) for p in whole.values() if by_role[p.a.name] is not None)
    groups = {str(role): [whole[r.name] for r in members] for role, members in grouped(known, "role").items()}
    sides = []
    for report, of in ((one, lambda p: p.a), (two, lambda p: p.b)):
        members = {role: [of(p) for p in pairs] for role, pairs in groups.items()}
        merged = {
            role: (described(role, rs, role=role), merge(*(r.stats for r in rs if r.stats is not None)))
            for role, rs in members.items()
        }
        sides.append(fit_statistics(merged, replace(report.options, bootstrap=0, vuong=False)))
    return {role: _change(sides[0][role], sides[1][role], "role", z, len(groups[role])) for role in groups}
