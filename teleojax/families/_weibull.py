"""Weibull: P(X > x) = exp(−(x/scale)^shape)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from teleojax.families._family import POSITIVE, REAL, Family, Params, Shape


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale, ln shape)."""
    z = (y - theta[0]) * jnp.exp(theta[1])
    return theta[1] + z - jnp.exp(z)


def _starts(shape: Shape) -> np.ndarray:
    """From var y = π²/(6 shape²) and mean y = ln scale − γ/shape."""
    k = math.pi / (math.sqrt(6) * shape.sigma)
    return np.asarray([[np.euler_gamma / k, math.log(k)]])


def _hazard(x: np.ndarray, params: Params) -> np.ndarray:
    return (x / params["scale"]) ** params["shape"]


WEIBULL = Family(
    name="weibull",
    parameters=("shape", "scale"),
    log_density=_log_density,
    constrain=lambda theta, centre: {"shape": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre)},
    unconstrain=lambda p: (np.log([p["scale"], p["shape"]]), 0.0),
    starts=_starts,
    bounds=(REAL, POSITIVE),
    logcdf=lambda x, p: np.log(-np.expm1(-_hazard(x, p))),
    logsf=lambda x, p: -_hazard(x, p),
    ppf=lambda q, p: p["scale"] * (-np.log1p(-q)) ** (1 / p["shape"]),
    sample=lambda rng, p, n: p["scale"] * rng.weibull(p["shape"], n),
    contains=frozenset({"exponential"}),
)
