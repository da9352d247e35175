"""Figures of a network: a number by depth and role, as lines and as a map."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.special import ndtri

from teleojax._errors import UsageError
from teleojax.report._report import Report
from teleojax.report.plots._stats import estimate, label, placed, pooled
from teleojax.report.plots._style import SIZE, canvas, legend, plain, style_named


def plot_depth(
    report: Report, stat: str = "mu", ax: Any = None, *, roles: Collection[str] | None = None, style: str = "light"
) -> Any:
    """A number of the lognormal record by depth: a line a role through the means, a point a tensor with its interval.

    `roles` chooses among them. Intervals are those of `report.options.level`, for mu, sigma and kl_nats. Returns the
    Axes. Raises UsageError for an unknown `stat`, roles that are not there, or where no tensor has the number, a role
    and a depth.
    """
    look, ylabel = style_named(style), label(stat)
    by_role = placed(report.values(), stat, "plot_depth")
    if missing := set(roles or ()) - set(by_role):
        raise UsageError(
            "roles", found=", ".join(sorted(missing)), needed=f"some of {', '.join(by_role)}", remedy="Choose those."
        )
    ax = canvas(ax, look)
    z = float(ndtri((1 + report.options.level) / 2))
    for i, (role, by_depth) in enumerate(by_role.items()):
        if roles is not None and role not in roles:
            continue
        marks = look.marks(i)
        tensors = [(depth, *estimate(r, stat)) for depth, members in by_depth.items() for r in members]
        depth, value, se = np.asarray(tensors, np.float64).T
        ax.errorbar(depth, value, yerr=np.nan_to_num(z * se), ls="", ms=4, elinewidth=1, label=role, **marks)
        means = [pooled(members, stat).value for members in by_depth.values()]
        ax.plot(list(by_depth), means, lw=0.9, color=marks["color"])
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="depth, blocks", ylabel=ylabel, title=plain(report.measured.source))
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def plot_heatmap(report: Report, stat: str = "kl_nats", ax: Any = None, *, style: str = "light") -> Any:
    """A number of the lognormal record as a map of depth by role; several tensors of a place by their weighted mean.

    Places without a tensor stay empty. Returns the Axes; the scale stands beside it. Raises as `plot_depth`.
    """
    look, words = style_named(style), label(stat)
    by_role = placed(report.values(), stat, "plot_heatmap")
    depths = sorted({depth for by_depth in by_role.values() for depth in by_depth})
    values = np.full((len(depths), len(by_role)), np.nan)
    for j, by_depth in enumerate(by_role.values()):
        for depth, members in by_depth.items():
            values[depths.index(depth), j] = pooled(members, stat).value
    ax = canvas(ax, look, (max(SIZE[0], 0.5 * len(by_role) + 2), SIZE[1]))
    image = ax.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="cividis", interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label(words, color=look.ink, fontsize=9)
    bar.ax.tick_params(colors=look.ink, labelsize=8)
    bar.outline.set_visible(False)
    step = max(1, len(depths) // 16)
    ax.set_yticks(range(0, len(depths), step), [str(d) for d in depths[::step]])
    ax.set_xticks(range(len(by_role)), by_role, rotation=45 if len(by_role) > 5 else 0)
    ax.set(xlabel="role", ylabel="depth, blocks", title=plain(report.measured.source))
    return ax
