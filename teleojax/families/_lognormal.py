"""Lognormal: ln x ~ N(mu, sigma²). The law of arbitrage equilibrium (arXiv 2405.10955)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import log_ndtr, ndtri

from teleojax.families._family import POSITIVE, REAL, ClosedForm, Family, Params, Shape
from teleojax.families._special import HALF_LOG_2PI, log_of
from teleojax.stats import LogMoments


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (mu, ln sigma)."""
    z = (y - theta[0]) * jnp.exp(-theta[1])
    return -0.5 * z * z - theta[1] - HALF_LOG_2PI


def _standardise(x: np.ndarray, params: Params) -> np.ndarray:
    return (log_of(x) - params["mu"]) / params["sigma"]


def _estimate(moments: LogMoments) -> dict[str, float] | None:
    """mu = mean(ln x), sigma² = mean((ln x − mu)²)."""
    return {"mu": moments.mean, "sigma": moments.sigma} if moments.m2 > 0 else None


def _loglik(moments: LogMoments, params: Params) -> float:
    mean_square = (moments.m2 / moments.n + (moments.mean - params["mu"]) ** 2) / params["sigma"] ** 2
    return -0.5 * mean_square - moments.mean - math.log(params["sigma"]) - HALF_LOG_2PI


def _starts(shape: Shape) -> np.ndarray:
    return np.asarray([[0.0, math.log(shape.sigma)]])


LOGNORMAL = Family(
    name="lognormal",
    parameters=("mu", "sigma"),
    log_density=_log_density,
    constrain=lambda theta, centre: {"mu": theta[0] + centre, "sigma": jnp.exp(theta[1])},
    unconstrain=lambda p: (np.asarray([p["mu"], math.log(p["sigma"])]), 0.0),
    starts=_starts,
    bounds=(REAL, POSITIVE),
    logcdf=lambda x, p: log_ndtr(_standardise(x, p)),
    logsf=lambda x, p: log_ndtr(-_standardise(x, p)),
    ppf=lambda q, p: np.exp(p["mu"] + p["sigma"] * ndtri(q)),
    sample=lambda rng, p, n: np.exp(p["mu"] + p["sigma"] * rng.standard_normal(n)),
    closed_form=ClosedForm(
        _estimate, _loglik, lambda p, n: {"mu": p["sigma"] / math.sqrt(n), "sigma": p["sigma"] / math.sqrt(2 * n)}
    ),
)
