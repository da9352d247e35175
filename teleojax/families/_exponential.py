"""Exponential: P(X > x) = exp(−x/scale)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from teleojax.families._family import REAL, ClosedForm, Family, Params, Shape
from teleojax.families._prentice import clipped_exp
from teleojax.families._special import log1mexp
from teleojax.stats import LogMoments


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale,)."""
    z = y - theta[0]
    return z - clipped_exp(z)


def _estimate(moments: LogMoments) -> dict[str, float] | None:
    """scale = mean(x)."""
    usable = moments.n > 0 and 0 < moments.sum_x < math.inf
    return {"scale": moments.sum_x / moments.n} if usable else None


def _loglik(moments: LogMoments, params: Params) -> float:
    return -math.log(params["scale"]) - moments.sum_x / moments.n / params["scale"]


def _starts(shape: Shape) -> np.ndarray:  # noqa: ARG001
    return np.asarray([[np.euler_gamma]])


EXPONENTIAL = Family(
    name="exponential",
    parameters=("scale",),
    log_density=_log_density,
    constrain=lambda theta, centre: {"scale": jnp.exp(theta[0] + centre)},
    unconstrain=lambda p: (np.log([p["scale"]]), 0.0),
    starts=_starts,
    bounds=(REAL,),
    logcdf=lambda x, p: log1mexp(x / p["scale"]),
    logsf=lambda x, p: -x / p["scale"],
    ppf=lambda q, p: -p["scale"] * np.log1p(-q),
    sample=lambda rng, p, n: p["scale"] * rng.standard_exponential(n),
    closed_form=ClosedForm(_estimate, _loglik, lambda p, n: {"scale": p["scale"] / math.sqrt(n)}),
)
