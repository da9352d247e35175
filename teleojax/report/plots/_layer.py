"""Figures of one tensor: its density, its probability plot, the utility of its connections."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from teleojax._errors import UsageError
from teleojax.families import FAMILIES
from teleojax.report._curves import densities_of, drawn_families, layer, log_scale_density, utility_curve
from teleojax.report._result import TensorFit
from teleojax.report.plots._style import canvas, legend, plain, style_named
from teleojax.stats import BitHistogram

POINTS = 400  # of a curve


def plot_density(result: TensorFit, ax: Any = None, *, style: str = "light") -> Any:
    """The density of y = ln|w| on a logarithmic scale, counts as steps, with the families that were fitted.

    A tail family stands for the share of values that it describes. Returns the Axes. Raises UsageError for a tensor
    without a histogram or without spread, MissingExtraError without matplotlib.
    """
    look, shown = style_named(style), layer(result, "plot_density")
    ax = canvas(ax, look)
    bins = shown.bins
    density = bins.counts / bins.counts.sum() / np.diff(bins.edges)
    ax.stairs(density, bins.edges, fill=True, color=look.muted, label=f"{shown.n:,} values")
    y = np.linspace(bins.edges[0], bins.edges[-1], POINTS)
    for i, fit in enumerate(drawn_families(result)):
        ax.plot(y, log_scale_density(fit, y, shown.n), lw=1.4, label=fit.family, **look.line(i))
    least = density[density > 0].min()
    ax.set(yscale="log", ylim=(least / 2, 3 * density.max()), xlim=(bins.edges[0], bins.edges[-1]))
    ax.set(xlabel="ln |w|", ylabel="density, per unit of ln |w|", title=plain(result.name))
    legend(ax, look, loc="upper left")
    return ax


def plot_probability(result: TensorFit, ax: Any = None, *, style: str = "light") -> Any:
    """A lognormal probability plot: ln|w| at each rank against the normal quantile of the rank.

    A lognormal law is a straight line; the families that were fitted are curves. Returns the Axes. Raises as
    `plot_density`.
    """
    look, shown = style_named(style), layer(result, "plot_probability")
    ax = canvas(ax, look)
    y, z = _ranked(shown.histogram)
    ax.plot(z, y, ls="", marker="o", ms=3, color=look.muted, mec=look.ink, mew=0.3, label=f"{shown.n:,} values")
    quantiles = np.linspace(z[0], z[-1], 121)
    for i, fit in enumerate(drawn_families(result)):
        family = FAMILIES[fit.family]
        share = fit.n / shown.n if family.tail else 1.0
        rank = 1 - (1 - ndtr(quantiles)) / share if family.tail else ndtr(quantiles)
        inside = rank > 0
        with np.errstate(divide="ignore"):
            ordered = np.log(family.ppf(rank[inside], fit.params))
        ax.plot(quantiles[inside], ordered, lw=1.4, label=fit.family, **look.line(i))
    r2 = f"; R² = {shown.fit.r2:.4f}" if math.isfinite(shown.fit.r2) else ""
    margin = 0.05 * (y[-1] - y[0])
    ax.set(ylim=(y[0] - margin, y[-1] + margin), title=plain(result.name))
    ax.set(xlabel=f"normal quantile of the rank, standard deviations{r2}", ylabel="ln |w|")
    legend(ax, look, loc="lower right")
    return ax


def _ranked(histogram: BitHistogram) -> tuple[np.ndarray, np.ndarray]:
    """ln|w| and normal quantiles at mid-ranks, of cells spread evenly over the quantiles; at most POINTS."""
    after = np.cumsum(histogram.counts)
    z = ndtri((after - histogram.counts / 2) / histogram.n)
    kept = np.unique(np.searchsorted(z, np.linspace(z[0], z[-1], POINTS // 2)))
    kept = np.unique(np.append(kept, np.linspace(0, len(z) - 1, POINTS // 2).astype(int)))
    return np.log(histogram.values())[kept], z[kept]


def plot_utility(result: TensorFit, ax: Any = None, *, style: str = "light") -> Any:
    """Effective utility ĥ = α y − β y² − ln p̂(x) − ln n by category, beside h*; dashed, its gradient ∂ĥ/∂y.

    At arbitrage equilibrium every category has the utility h*, so the curve is flat and its gradient 0. Points are
    categories of at least FEWEST connections, the line is the density estimate; all but the weakest 0.1% and the
    strongest 0.01% of connections. Returns the Axes of the utility; the gradient has its own scale on the right.
    Raises as `plot_density`, and UsageError where there is no density estimate.
    """
    look, shown = style_named(style), layer(result, "plot_utility")
    fit = shown.fit
    (density,) = densities_of([shown])
    if density.status != "ok":
        raise UsageError(
            result.name, found=f"no density estimate ({density.reason})", needed="more values, or more levels",
            remedy="Choose another tensor.",
        )  # fmt: skip
    ax = canvas(ax, look)
    curve = utility_curve(shown, density, POINTS)
    y, utility, gradient = curve.y, curve.utility, curve.gradient
    first, second = look.series[:2]
    handles = [
        ax.plot(curve.at, curve.of_category, ls="", marker="o", ms=2.5, color=look.muted, label="categories")[0],
        ax.plot(y, utility, color=first, lw=1.6, label="utility ĥ")[0],
        ax.axhline(fit.h_star, color=look.ink, lw=1, ls=":", label="h* of equilibrium"),
    ]
    right = canvas(ax.twinx(), look)
    right.spines["right"].set_visible(True)
    handles.append(right.plot(y, gradient, color=second, lw=1.2, ls="--", label="gradient ∂ĥ/∂ln|w|")[0])
    reach = max(1.0, 1.1 * float(np.abs(utility - fit.h_star).max()))
    steepest = max(1.0, 1.1 * float(np.abs(gradient).max()))
    ax.set(xlim=(y[0], y[-1]), ylim=(fit.h_star - reach, fit.h_star + reach), title=plain(result.name))
    ax.set(xlabel="ln |w|", ylabel="effective utility, nats")
    right.set(ylim=(-steepest, steepest), ylabel="utility gradient, nats per unit of ln |w|")
    legend(ax, look, *handles, loc="lower center", ncols=2)
    return ax
