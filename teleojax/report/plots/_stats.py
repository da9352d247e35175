"""Numbers of the lognormal record for figures: labels with units, means over tensors with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from teleojax._errors import UsageError
from teleojax.report._columns import column
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.sources._roles import ROLES

STATS = tuple(f.name for f in fields(LognormalFit))
ERRORS = {"mu": "mu_se", "sigma": "sigma_se", "kl_nats": "kl_se"}
WORDS = {
    "mu": "μ", "sigma": "σ", "alpha": "α", "beta": "β", "h_star": "h*", "kl_nats": "distance from equilibrium",
    "dispersion": "dispersion of utility", "fisher": "mean squared utility gradient",
}  # fmt: skip


class Estimate(NamedTuple):
    """A number and its standard error, NaN where it has none."""

    value: float
    se: float


def label(stat: str) -> str:
    """The number in words, with its unit. Raises UsageError for one that the lognormal record does not have."""
    if stat not in STATS:
        raise UsageError(
            "stat", found=repr(stat), needed=f"one of {', '.join(STATS)}", remedy="Choose one of them."
        )  # fmt: skip
    unit = "nats" if stat.startswith("utility_") else column(stat).unit
    return WORDS.get(stat, stat) + (f", {unit}" if unit != "1" else "")


def estimate(result: TensorFit, stat: str) -> Estimate:
    """The number of one tensor."""
    fit = result.lognormal
    if fit is None:
        return Estimate(math.nan, math.nan)
    return Estimate(getattr(fit, stat), getattr(fit, ERRORS[stat]) if stat in ERRORS else math.nan)


def pooled(results: Iterable[TensorFit], stat: str) -> Estimate:
    """The mean over tensors, weighted by their values; its error as of independent tensors. NaN of nothing."""
    rows = [(r.moments.n, *estimate(r, stat)) for r in results if r.moments is not None and r.status == "ok"]
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return Estimate(math.nan, math.nan)
    n, value, se = np.asarray(rows, np.float64).T
    share = n / n.sum()
    return Estimate(float(share @ value), float(np.sqrt(np.square(share) @ np.square(se))))


def placed(results: Iterable[TensorFit], stat: str, purpose: str) -> dict[str, dict[int, list[TensorFit]]]:
    """Tensors that have the number, by role in the order of ROLES and by rising depth.

    Raises UsageError where there are none.
    """
    found: dict[str, dict[int, list[TensorFit]]] = {}
    for r in results:
        if r.role is not None and r.depth is not None and math.isfinite(estimate(r, stat).value):
            found.setdefault(r.role, {}).setdefault(r.depth, []).append(r)
    if not found:
        raise UsageError(
            purpose, found=f"no tensor with {stat}, a role and a depth", needed="one, at least",
            remedy="The names of the tensors say neither; plot single tensors instead.",
        )  # fmt: skip
    return {role: dict(sorted(found[role].items())) for role in ordered_roles(found)}


def ordered_roles(roles: Iterable[str]) -> list[str]:
    """Roles in the order of ROLES, unknown ones last."""
    order = list(ROLES)
    return sorted(roles, key=lambda role: (order.index(role) if role in order else len(order), role))
