"""A number over training: by role, by tensor, of one tensor with its changes; and where a run changes."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from teleojax._errors import UsageError
from teleojax.report._groups import group_name, grouped
from teleojax.report._report import Report
from teleojax.report.plots._stats import STATS, label, ordered_roles, pooled
from teleojax.report.plots._style import canvas, legend, plain, style_named
from teleojax.sources._index import natural_key

if TYPE_CHECKING:
    from teleojax.report.trajectory import TensorTrajectory, Trajectory

LEVEL = 0.95  # of bands about one tensor
PANELS = ("mu", "sigma", "kl_nats")  # of the figure of a run
MOST_LINES = 7  # tensors that are drawn each: as many as there are colours
PANEL = (6.4, 2.3)  # inches
LONGEST_LABEL = 24  # characters that stand beside one


def plot_trajectory(
    reports: Sequence[Report],
    steps: Sequence[float],
    stat: str = "kl_nats",
    ax: Any = None,
    *,
    by: str = "role",
    roles: Collection[str] | None = None,
    style: str = "light",
) -> Any:
    """A number of the lognormal record over training: a line a role, the mean over its tensors weighted by values, or
    with `by` "tensor" a line a tensor.

    One report a checkpoint and its step, in any order. Bands are intervals of the first report's level, for mu, sigma
    and kl_nats. `roles` chooses among them; tensors whose role is not known are "unknown". Returns the Axes. Raises
    UsageError where reports and steps are not as many, or no tensor has the number.
    """
    look, ylabel = style_named(style), label(stat)
    if len(reports) != len(steps) or not reports:
        raise UsageError(
            "plot_trajectory", found=f"{len(reports)} reports and {len(steps)} steps", needed="one step a report",
            remedy="Pass sequences of equal length.",
        )  # fmt: skip
    if by not in ("role", "tensor"):
        raise UsageError("by", found=repr(by), needed="role or tensor", remedy="Choose one of them.")
    order = np.argsort(np.asarray(steps), kind="stable")
    by_step = []
    for i in order:
        groups = grouped(reports[i].values(), "role")
        if by == "tensor":
            chosen = [r for role, rs in groups.items() if roles is None or group_name(role) in roles for r in rs]
            by_step.append({r.name: pooled([r], stat) for r in chosen})
        else:
            by_step.append({group_name(role): pooled(members, stat) for role, members in groups.items()})
    known = {r for found in by_step for r, e in found.items() if np.isfinite(e.value)}
    if by == "tensor":
        shown = sorted(known, key=natural_key)
    else:
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
        ax.plot(x, value, lw=1.2, ms=4, label=_shown(role), **marks)
        error = z * np.nan_to_num(se)
        ax.fill_between(x, value - error, value + error, color=marks["color"], alpha=0.2, lw=0)
    ax.set(xlabel="training step", ylabel=ylabel)
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _shown(name: str) -> str:
    """A name for a legend, which leaves out what begins with an underscore."""
    text = plain(name)
    return f" {text}" if text.startswith("_") else text


def plot_changes(tensor: TensorTrajectory, stat: str = "kl_nats", ax: Any = None, *, style: str = "light") -> Any:
    """A statistic of one tensor at every step with its 95% interval, the line of each piece, and the changes.

    Returns the Axes. Raises UsageError for an unknown statistic, or where no step has it.
    """
    look, value, se = style_named(style), tensor.values(stat), tensor.errors(stat)
    here = np.isfinite(value)
    if not here.any():
        raise UsageError(
            tensor.name, found=f"no step with {stat}", needed="one, at least", remedy="Choose another statistic."
        )
    ax = canvas(ax, look)
    x, z = np.asarray(tensor.steps, np.float64), float(ndtri((1 + LEVEL) / 2))
    error = z * np.nan_to_num(se[here])
    marks = look.marks(0)
    ax.errorbar(x[here], value[here], yerr=error, ls="", ms=4, elinewidth=1, label="checkpoints", **marks)
    lines = [c.line for c in tensor.changes_of(stat) if c.line is not None]
    for i, change in enumerate(lines):
        begin = lines[i - 1].x if i else float(x[here][0])
        old = [change.before - change.slope_before * (change.x - t) for t in (begin, change.previous)]
        color = look.series[1]
        ax.plot([begin, change.previous], old, lw=1.2, color=color, label=None if i else "pieces")
        ax.axvline((change.previous + change.x) / 2, lw=0.9, ls=":", color=look.ink, label=None if i else "changes")
        if i == len(lines) - 1:
            end = float(x[here][-1])
            ax.plot([change.x, end], [change.after, change.after + change.slope_after * (end - change.x)],
                    lw=1.2, color=color)  # fmt: skip
    words = label(stat) if stat in STATS else stat
    ax.set(xlabel="training step", ylabel=words, title=plain(tensor.name))
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def refuse_figure(path: str | Path) -> None:
    """Before anything is measured: refuse a file that no figure can be saved to.

    Raises MissingExtraError without matplotlib, UsageError for an ending that it does not write.
    """
    figure = canvas(None, style_named("light")).figure
    kinds = figure.canvas.get_supported_filetypes()
    importlib.import_module("matplotlib.pyplot").close(figure)
    if Path(path).suffix.lstrip(".").lower() not in kinds:
        raise UsageError(
            path, found=f"the ending {Path(path).suffix!r}", needed="one such as .png, .pdf or .svg",
            remedy="Choose another file.",
        )  # fmt: skip


def save_figure(trajectory: Trajectory, path: str | Path, *, style: str = "light") -> None:
    """A figure of the run in a file, by its ending: mu, sigma and kl nats over the steps, and how many tensors change.

    A line a tensor where there are few, else a line a role. Raises UsageError where there is nothing to draw, or the
    file cannot be written; else as `refuse_figure`.
    """
    look = style_named(style)
    refuse_figure(path)
    plt = importlib.import_module("matplotlib.pyplot")
    rows = len(PANELS) + 1
    figure, axes = plt.subplots(
        rows, sharex=True, figsize=(PANEL[0], rows * PANEL[1]), layout="constrained", facecolor=look.paper
    )
    try:
        by = "tensor" if len(trajectory) <= MOST_LINES else "role"
        for ax, stat in zip(axes, PANELS, strict=False):
            trajectory.plot(stat, canvas(ax, look), by=by, style=style).set_xlabel("")
            if len(label(stat)) > LONGEST_LABEL:
                ax.set_ylabel(label(stat).replace(", ", ",\n"))
        _counted(trajectory, canvas(axes[-1], look), look)
        figure.savefig(path, dpi=150, facecolor=look.paper)
    except OSError as e:
        raise UsageError(
            path, found=e.strerror or str(e), needed="a place that can be written", remedy="Choose another file."
        ) from e
    finally:
        plt.close(figure)


def _counted(trajectory: Trajectory, ax: Any, look: Any) -> None:
    """Tensors that change at each step, by statistic."""
    for i, stat in enumerate(PANELS):
        at = [c.step for t in trajectory.values() for c in t.changes_of(stat)]
        steps = sorted(set(at))
        counts = [at.count(step) for step in steps]
        ax.plot(steps, counts, ls="", ms=4, label=label(stat).split(",")[0], **look.marks(i))
        ax.vlines(steps, 0, counts, color=look.marks(i)["color"], lw=1.2)
    ax.set(xlabel="training step", ylabel="tensors that change")
    ax.set_ylim(bottom=0)
    ax.yaxis.get_major_locator().set_params(integer=True)
    legend(ax, look, loc="upper left", bbox_to_anchor=(1, 1))
