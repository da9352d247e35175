"""A number over training, role by role."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from teleojax._errors import UsageError
from teleojax.report._groups import group_name, grouped
from teleojax.report._report import Report
from teleojax.report.plots._stats import label, ordered_roles, pooled
from teleojax.report.plots._style import canvas, legend, style_named


def plot_trajectory(
    reports: Sequence[Report],
    steps: Sequence[float],
    stat: str = "kl_nats",
    ax: Any = None,
    *,
    roles: Collection[str] | None = None,
    style: str = "light",
) -> Any:
    """A number of the lognormal record over training: a line a role, the mean over its tensors weighted by values.

    One report a checkpoint and its step, in any order. Bands are intervals of the first report's level, for mu, sigma
    and kl_nats. Tensors whose role is not known are "unknown". Returns the Axes. Raises UsageError where reports and
    steps are not as many, or no tensor has the number.
    """
    look, ylabel = style_named(style), label(stat)
    if len(reports) != len(steps) or not reports:
        raise UsageError(
            "plot_trajectory", found=f"{len(reports)} reports and {len(steps)} steps", needed="one step a report",
            remedy="Pass sequences of equal length.",
        )  # fmt: skip
    order = np.argsort(np.asarray(steps), kind="stable")
    by_step = []
    for i in order:
        groups = grouped(reports[i].values(), "role")
        by_step.append({group_name(role): pooled(members, stat) for role, members in groups.items()})
    known = {r for found in by_step for r, e in found.items() if np.isfinite(e.value)}
    shown = [r for r in ordered_roles(known) if roles is None or r in roles]
    if not shown:
        raise UsageError(
            "plot_trajectory", found=f"no tensor with {stat}" + (" of those roles" if roles is not None else ""),
            needed="one, at least", remedy=f"There are the roles {', '.join(sorted(known)) or 'of none'}.",
        )  # fmt: skip
    ax = canvas(ax, look)
    x, z = np.asarray(steps, np.float64)[order], float(ndtri((1 + reports[0].options.level) / 2))
    for i, role in enumerate(shown):
        value, se = np.asarray([found.get(role, (np.nan, np.nan)) for found in by_step], np.float64).T
        marks = look.marks(i)
        ax.plot(x, value, lw=1.2, ms=4, label=role, **marks)
        error = z * np.nan_to_num(se)
        ax.fill_between(x, value - error, value + error, color=marks["color"], alpha=0.2, lw=0)
    ax.set(xlabel="training step", ylabel=ylabel)
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
    return ax
