"""Curves of one tensor, for figures: bins of ln|w|, densities of its families, the utility of its connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from teleojax._errors import UsageError
from teleojax.diagnose import Bins, LogDensity, density_bins, penalised_log_density
from teleojax.families import FAMILIES
from teleojax.fits import FamilyFit
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.stats import BitHistogram

LOW, HIGH = 1e-3, 1 - 1e-4  # shares of connections between which utility is drawn: beyond, too few to tell
CHUNK = 32  # fits evaluated at once, the last ones filled up: one shape, compiled once
FEWEST = 10  # connections in a category whose utility is shown


@dataclass(frozen=True, slots=True)
class Layer:
    """What the figures need of a fitted tensor: histogram, mean and standard deviation of y = ln|w|, its bins, the
    number of values, the lognormal.
    """

    histogram: BitHistogram
    mean: float
    sd: float
    bins: Bins
    n: int
    fit: LognormalFit


@dataclass(frozen=True, slots=True, eq=False)
class UtilityCurve:
    """Effective utility ĥ in nats and its gradient ∂ĥ/∂y at rising `y`; `of_category` that of the categories `at` which
    hold FEWEST connections or more.
    """

    y: Float[np.ndarray, " points"]
    utility: Float[np.ndarray, " points"]
    gradient: Float[np.ndarray, " points"]
    at: Float[np.ndarray, " categories"]
    of_category: Float[np.ndarray, " categories"]


def layer(result: TensorFit, purpose: str) -> Layer:
    """What figures need of the tensor. Raises UsageError without a histogram, or without values that differ."""
    histogram = result.histogram(purpose)
    stats, fit = result.stats, result.lognormal
    if result.status != "ok" or stats is None or fit is None:
        raise UsageError(
            result.name, found=result.reason or result.status, needed=f"values that differ, for {purpose}",
            remedy="Choose another tensor.",
        )  # fmt: skip
    mean, sd = stats.moments.mean, stats.moments.sigma
    return Layer(histogram, mean, sd, density_bins(histogram, mean, sd), stats.moments.n, fit)


def drawn_families(result: TensorFit) -> list[FamilyFit]:
    """The fits that have parameters, of families that are known."""
    return [f for f in (result.families or {}).values() if f.params and f.family in FAMILIES]


def log_scale_density(fit: FamilyFit, y: np.ndarray, n: int) -> np.ndarray:
    """The family's density of y, per unit of y, for its share of the `n` values; NaN where it has none."""
    with np.errstate(under="ignore", over="ignore"):
        density = np.exp(FAMILIES[fit.family].logpdf(np.exp(y), fit.params) + y) * (fit.n / n if fit.n else 1)
    return np.where(density > 0, density, np.nan)


def log_scale_densities(fits: Sequence[FamilyFit], y: Float[np.ndarray, "fits points"]) -> np.ndarray:
    """ln of the density of y, per unit of y, of many fits of one family, each at its own points; shape of `y`.

    −inf where there is none. Parameters that are vectors have one length in all.
    """
    family = FAMILIES[fits[0].family]
    thetas, centres = zip(*(family.unconstrain(fit.params) for fit in fits), strict=True)
    theta, shifted = np.stack(thetas), y - np.asarray(centres)[:, None]
    found = np.empty_like(shifted)
    with jax.enable_x64(True):
        for begin in range(0, len(fits), CHUNK):
            rows = np.minimum(np.arange(begin, begin + CHUNK), len(fits) - 1)
            chunk = jax.vmap(family.log_density)(jnp.asarray(shifted[rows]), jnp.asarray(theta[rows]))
            found[begin : begin + CHUNK] = np.asarray(chunk)[: len(fits) - begin]
    return found


def densities_of(layers: list[Layer]) -> list[LogDensity]:
    """The density estimate of each, all solved side by side."""
    bins, means, sds = [la.bins for la in layers], [la.mean for la in layers], [la.sd for la in layers]
    edges, counts = [b.edges for b in bins], [b.counts for b in bins]
    return penalised_log_density(edges, counts, np.asarray(means), np.asarray(sds))


def utility_curve(layer: Layer, density: LogDensity, points: int, bins: Bins | None = None) -> UtilityCurve:
    """ĥ = α y − β y² − ln p̂(x) − ln n, at `points` points and in the categories `bins`, those of the layer by default.

    Points lie between the weakest 0.1% and the strongest 0.01% of connections. NaN where there is no density estimate.
    """
    fit, bins = layer.fit, bins if bins is not None else layer.bins
    cumulative = np.append(0, np.cumsum(layer.bins.counts)) / layer.bins.counts.sum()
    low, high = np.interp([LOW, HIGH], cumulative, layer.bins.edges)
    y = np.linspace(low, high, points)
    middle = (bins.edges[1:] + bins.edges[:-1]) / 2
    shown = (bins.counts >= FEWEST) & (middle > y[0]) & (middle < y[-1])
    log_p = np.log(bins.counts[shown] / bins.counts.sum() / np.diff(bins.edges)[shown])
    of_category = _utility(fit, middle[shown], log_p, layer.n)
    gradient = -(y - fit.mu) / fit.sigma**2 - density.score(y)
    return UtilityCurve(y, _utility(fit, y, density.log_density(y), layer.n), gradient, middle[shown], of_category)


def _utility(fit: LognormalFit, y: np.ndarray, log_density: np.ndarray, n: int) -> np.ndarray:
    """ĥ at y from the log-density of y; α and β are of the measure dx, so that ln p(x) = ln p(y) − y."""
    return fit.alpha * y - fit.beta * y**2 - (log_density - y) - math.log(n)
