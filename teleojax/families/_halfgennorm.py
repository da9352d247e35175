"""Half generalised normal: density beta / (scale Γ(1/beta)) · exp(−(x/scale)^beta).

beta = 2 is the half-normal (its scale times √2), 1 the exponential; as beta → ∞ it is uniform on (0, scale).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import polygamma, psi

from teleojax.families._family import REAL, Family, Params, Shape, within
from teleojax.families._prentice import prentice_log_density
from teleojax.families._special import log_gamma_sample, log_gammainc, log_gammaincinv, log_of


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (m, ln beta), m = ln scale − ln(beta)/beta: (x/scale)^beta is gamma(1/beta), with mean at y = m."""
    return prentice_log_density(y, theta[0], -0.5 * theta[1], jnp.exp(0.5 * theta[1]))


def _constrain(theta: Array, centre: Array | float) -> dict[str, Array]:
    return {"beta": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre + theta[1] * jnp.exp(-theta[1]))}


def _unconstrain(params: Params) -> tuple[np.ndarray, float]:
    log_beta = math.log(params["beta"])
    return np.asarray([math.log(params["scale"]) - log_beta / params["beta"], log_beta]), 0.0


def _starts(shape: Shape) -> np.ndarray:
    """From var y = ψ′(1/beta)/beta², which falls in beta from ∞ to 1, and mean y = ln scale + ψ(1/beta)/beta.

    Near 1 the variance no longer tells beta, and the start is 10.
    """
    low, high = BOUNDS[1][0], math.log(10)
    for _ in range(40):
        middle = (low + high) / 2
        a = math.exp(-middle)
        low, high = (low, middle) if a * a * polygamma(1, a) < shape.sigma**2 else (middle, high)
    a = math.exp(-low)
    return within([[a * (math.log(a) - psi(a)), low]], BOUNDS)


def _log_probabilities(x: np.ndarray, params: Params) -> tuple[np.ndarray, np.ndarray]:
    return log_gammainc(1 / params["beta"], params["beta"] * (log_of(x) - math.log(params["scale"])))


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    return params["scale"] * np.exp(log_gammaincinv(1 / params["beta"], q) / params["beta"])


def _sample(rng: np.random.Generator, params: Params, n: int) -> np.ndarray:
    return params["scale"] * np.exp(log_gamma_sample(rng, 1 / params["beta"], n) / params["beta"])


BOUNDS = (REAL, (math.log(0.02), math.log(1e4)))  # below, scale leaves the range of floats; above, it is uniform
HALFGENNORM = Family(
    name="halfgennorm",
    parameters=("beta", "scale"),
    log_density=_log_density,
    constrain=_constrain,
    unconstrain=_unconstrain,
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(x, p)[0],
    logsf=lambda x, p: _log_probabilities(x, p)[1],
    ppf=_ppf,
    sample=_sample,
    contains=frozenset({"halfnormal", "exponential"}),
)
