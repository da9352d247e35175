"""Gamma: density x^(shape − 1) exp(−x/scale) / (Γ(shape) scale^shape)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import psi

from teleojax.families._family import POSITIVE, REAL, Family, Params, Shape, within
from teleojax.families._prentice import prentice_log_density
from teleojax.families._special import inverse_trigamma, log_gamma_sample, log_gammainc, log_gammaincinv, log_of


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln mean, ln shape): the information matrix of mean and shape is diagonal."""
    return prentice_log_density(y, theta[0], -0.5 * theta[1], jnp.exp(-0.5 * theta[1]))


def _constrain(theta: Array, centre: Array | float) -> dict[str, Array]:
    return {"shape": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre - theta[1])}


def _unconstrain(params: Params) -> tuple[np.ndarray, float]:
    log_shape = math.log(params["shape"])
    return np.asarray([math.log(params["scale"]) + log_shape, log_shape]), 0.0


def _starts(shape: Shape) -> np.ndarray:
    """From var y = ψ′(shape) and mean y = ln scale + ψ(shape)."""
    a = inverse_trigamma(shape.sigma**2)
    return within([[math.log(a) - psi(a), math.log(a)]], BOUNDS)


def _log_probabilities(x: np.ndarray, params: Params) -> tuple[np.ndarray, np.ndarray]:
    return log_gammainc(params["shape"], log_of(x) - math.log(params["scale"]))


BOUNDS = (REAL, POSITIVE)
GAMMA = Family(
    name="gamma",
    parameters=("shape", "scale"),
    log_density=_log_density,
    constrain=_constrain,
    unconstrain=_unconstrain,
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(x, p)[0],
    logsf=lambda x, p: _log_probabilities(x, p)[1],
    ppf=lambda q, p: p["scale"] * np.exp(log_gammaincinv(p["shape"], q)),
    sample=lambda rng, p, n: p["scale"] * np.exp(log_gamma_sample(rng, p["shape"], n)),
    contains=frozenset({"exponential"}),
)
