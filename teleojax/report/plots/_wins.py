"""Which family wins where, as a mosaic."""

from __future__ import annotations

from typing import Any

import numpy as np

from teleojax._errors import UsageError
from teleojax.families import FAMILIES
from teleojax.report._report import Report
from teleojax.report.plots._stats import ordered_roles
from teleojax.report.plots._style import SIZE, canvas, legend, plain, style_named

HATCHES = ("", "//", "..", "xx")  # families beyond the colours there are
GAP = 0.004  # of the width, between two groups


def plot_wins(report: Report, ax: Any = None, *, by: str = "role", style: str = "light") -> Any:
    """A mosaic: a column a group, as wide as its share of tensors, cut by the shares that each family wins by BIC.

    `by` is "role", "depth" or "model". Numbers in the tiles count tensors. Returns the Axes. Raises UsageError for
    another `by`, or where no tensor has two families to compare.
    """
    look = style_named(style)
    wins = report.wins(by)
    if not wins:
        raise UsageError(
            "plot_wins", found="no tensor with comparable fits", needed="one, at least", remedy="Fit more families."
        )
    groups = ordered_roles(wins) if by == "role" else list(wins)
    families = [f for f in FAMILIES if any(f in wins[g].wins for g in groups)]
    ax = canvas(ax, look, (max(SIZE[0], 0.45 * len(groups) + 1.5), SIZE[1]))
    width = np.asarray([wins[g].tensors for g in groups]) / sum(wins[g].tensors for g in groups)
    left = np.append(0, np.cumsum(width)[:-1])
    bottom = np.zeros(len(groups))
    for family in families:
        i = list(FAMILIES).index(family)
        count = np.asarray([wins[g].wins.get(family, 0) for g in groups])
        share = count / np.asarray([wins[g].tensors for g in groups])
        hatch = HATCHES[i // len(look.series) % len(HATCHES)]
        colour = look.series[i % len(look.series)]
        bars = ax.bar(
            left, share, np.maximum(width - GAP, width / 2), bottom, align="edge", color=colour, hatch=hatch,
            edgecolor=look.paper, linewidth=0.5, label=family,
        )  # fmt: skip
        texts = [str(c) if c and w > 0.03 else "" for c, w in zip(count, width, strict=True)]
        ax.bar_label(bars, texts, label_type="center", fontsize=7, color=look.paper)
        bottom += share
    ax.set_xticks(left + width / 2, groups, rotation=45 if len(groups) > 5 else 0)
    ax.set(xlim=(0, 1), ylim=(0, 1), title=plain(report.measured.source))
    ax.set(xlabel=f"{by}; width: share of tensors", ylabel="share of tensors won, by lowest BIC")
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
    return ax
