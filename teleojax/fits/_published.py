"""The published protocols as fits like any other: parameters, and the likelihood that they reach."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from teleojax.families import FAMILIES, Family
from teleojax.fits._histogram import histogram_fit
from teleojax.fits._mle import FamilyFit
from teleojax.fits._probability_plot import probability_plot_fit
from teleojax.stats import TensorStats


def curve_fit(stats: TensorStats, *, bins: int = 100) -> FamilyFit:
    """The lognormal curve through a linear histogram (`histogram_fit`); `extra` has amplitude, r2 and bins."""
    found = histogram_fit(stats, bins=bins)
    extra = {"amplitude": found.amplitude, "curve_r2": found.r2, "bins": found.bins}
    return _at(FAMILIES["lognormal"], {"mu": found.mu, "sigma": found.sigma}, found.status, stats, extra)


def line_fit(stats: TensorStats, *, grid: str | None = None) -> FamilyFit:
    """The Weibull line of a probability plot (`probability_plot_fit`); `extra` has the r2 of the line and n_outside."""
    found = probability_plot_fit(stats, grid=grid)
    extra = {"line_r2": found.r2, "n_outside": found.n_outside}
    return _at(FAMILIES["weibull"], {"shape": found.shape, "scale": found.scale}, found.status, stats, extra)


def _at(
    family: Family, params: Mapping[str, float], status: str, stats: TensorStats, extra: dict[str, float]
) -> FamilyFit:
    """A fit at given parameters; its likelihood is that of every stored cell at its value."""
    histogram = stats.histogram
    if histogram is None or not all(map(math.isfinite, params.values())):
        return FamilyFit(family.name, {}, math.nan, math.nan, math.nan, status, stats.moments.n, extra=extra)
    n = histogram.n
    loglik = float(family.logpdf(histogram.values(), params) @ histogram.counts) / n
    k = len(params)
    aic, bic = 2 * k - 2 * n * loglik, k * np.log(n) - 2 * n * loglik
    return FamilyFit(family.name, dict(params), loglik, aic, float(bic), status, n, extra=extra)
