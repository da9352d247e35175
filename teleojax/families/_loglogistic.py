"""Log-logistic: P(X > x) = 1 / (1 + (x/scale)^shape), so that ln x is logistic. SciPy's `fisk`."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import logit

from teleojax.families._family import POSITIVE, REAL, Family, Params, Shape
from teleojax.families._special import log_of


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale, ln shape)."""
    z = (y - theta[0]) * jnp.exp(theta[1])
    return theta[1] + z - 2 * jnp.logaddexp(z, 0)


def _starts(shape: Shape) -> np.ndarray:
    """From var y = π²/(3 shape²); the mean of y is ln scale."""
    return np.asarray([[0.0, math.log(math.pi / (math.sqrt(3) * shape.sigma))]])


def _log_odds(x: np.ndarray, params: Params) -> np.ndarray:
    return params["shape"] * (log_of(x) - math.log(params["scale"]))


LOGLOGISTIC = Family(
    name="loglogistic",
    parameters=("shape", "scale"),
    log_density=_log_density,
    constrain=lambda theta, centre: {"shape": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre)},
    unconstrain=lambda p: (np.log([p["scale"], p["shape"]]), 0.0),
    starts=_starts,
    bounds=(REAL, POSITIVE),
    logcdf=lambda x, p: -np.logaddexp(0, -_log_odds(x, p)),
    logsf=lambda x, p: -np.logaddexp(0, _log_odds(x, p)),
    ppf=lambda q, p: p["scale"] * np.exp(logit(q) / p["shape"]),
    sample=lambda rng, p, n: p["scale"] * np.exp(rng.logistic(size=n) / p["shape"]),
)
