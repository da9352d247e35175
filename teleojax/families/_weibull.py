"""Weibull: P(X > x) = exp(−(x/scale)^shape)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from teleojax.families._family import POSITIVE, REAL, Family, Params, Shape
from teleojax.families._prentice import clipped_exp
from teleojax.families._special import log_cdf_of_hazard, log_of


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale, ln shape)."""
    z = (y - theta[0]) * jnp.exp(theta[1])
    return theta[1] + z - clipped_exp(z)


def _starts(shape: Shape) -> np.ndarray:
    """From var y = π²/(6 shape²) and mean y = ln scale − γ/shape."""
    k = math.pi / (math.sqrt(6) * shape.sigma)
    return np.asarray([[np.euler_gamma / k, math.log(k)]])


def _log_hazard(x: np.ndarray, params: Params) -> np.ndarray:
    return params["shape"] * (log_of(x) - math.log(params["scale"]))


def _logsf(x: np.ndarray, params: Params) -> np.ndarray:
    with np.errstate(over="ignore"):
        return -np.exp(_log_hazard(x, params))


WEIBULL = Family(
    name="weibull",
    parameters=("shape", "scale"),
    log_density=_log_density,
    constrain=lambda theta, centre: {"shape": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre)},
    unconstrain=lambda p: (np.log([p["scale"], p["shape"]]), 0.0),
    starts=_starts,
    bounds=(REAL, POSITIVE),
    logcdf=lambda x, p: log_cdf_of_hazard(_log_hazard(x, p)),
    logsf=_logsf,
    ppf=lambda q, p: p["scale"] * (-np.log1p(-q)) ** (1 / p["shape"]),
    sample=lambda rng, p, n: p["scale"] * rng.weibull(p["shape"], n),
    contains=frozenset({"exponential"}),
)
