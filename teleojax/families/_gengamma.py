"""Generalised gamma in SciPy's parameters: (x/scale)^c is gamma(a), c of either sign.

Solved in Prentice's (m, ln s, Q), where it runs smoothly through the lognormal at Q = 0: a = 1/Q², c = Q/s and
ln scale = m − ln(a)/c. Those leave the range of floats near Q = 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import polygamma, psi

from teleojax.families._family import LIMIT_NATS, LOG_SPREAD, REAL, Family, Params, Shape, within
from teleojax.families._prentice import prentice_log_density
from teleojax.families._special import log_gamma_sample, log_gammainc, log_gammaincinv, log_of

USABLE = 0.98  # of the exponents that floats have, for ln(a)/c and m together
NEARLY_LOGNORMAL = 12 * LIMIT_NATS  # Q²; the skewness of y is −Q near 0 and the divergence skew²/12


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (m, ln s, Q)."""
    return prentice_log_density(y, theta[0], theta[1], theta[2])


def _constrain(theta: Array, centre: Array | float) -> dict[str, Array]:
    """Where Q is so near 0 that scale would under- or overflow, the nearest Q that can be told, at the same mean."""
    s, q, location = jnp.exp(theta[1]), theta[2], theta[0] + centre
    least = _least_q(s, _room(location, math.log(float(jnp.finfo(theta.dtype).max)), jnp))
    told = jnp.where(jnp.abs(q) < least, jnp.where(q < 0, -least, least), q)
    m = location + 0.5 * s * (told - q)
    return {"a": told**-2, "c": told / s, "scale": jnp.exp(m + 2 * s * jnp.log(jnp.abs(told)) / told)}


def _room(location: Any, log_max: float, xp: Any = np) -> Any:
    """The largest |ln(a)/c| for which scale stays in the range of floats."""
    return xp.maximum(USABLE * log_max - xp.abs(location), 0.5 * log_max)


def _least_q(s: Array, room: Array) -> Array:
    """q with 2 s |ln q| / q = room, that is −ln q = W(k) with k = room/2s and Lambert's W, by Newton's method."""
    k = room / (2 * s)
    w = jnp.log1p(k)
    for _ in range(6):
        w = w / (1 + w) * (1 + jnp.log(k / w))
    return w / k


def _unconstrain(params: Params) -> tuple[np.ndarray, float]:
    a, c = params["a"], params["c"]
    q = math.copysign(1 / math.sqrt(a), c)
    return np.asarray([math.log(params["scale"]) + math.log(a) / c, math.log(q / c), q]), 0.0


@cache
def _skews() -> tuple[np.ndarray, np.ndarray]:
    """−skewness of y for positive Q, rising, and Q: ψ″(a)/ψ′(a)^1.5 with a = 1/Q²."""
    q = np.concatenate([np.linspace(0.01, 2, 200), np.geomspace(2.02, 10, 100)])
    a = q**-2
    return -polygamma(2, a) / polygamma(1, a) ** 1.5, q


def _starts(shape: Shape) -> np.ndarray:
    """Q from the skewness of y and three more; m and s from mean y = m + s(ψ(a) − ln a)/Q and var y = s² ψ′(a)/Q²."""
    q_of_skew = -math.copysign(float(np.interp(abs(shape.skew), *_skews())), shape.skew)
    q = np.asarray([q_of_skew, 1.0, 0.3, -0.3])
    a = q**-2
    s = shape.sigma * np.abs(q) / np.sqrt(polygamma(1, a))
    return within(np.stack([-s * (psi(a) - np.log(a)) / q, np.log(s), q], axis=1), BOUNDS)


def _log_power(x: np.ndarray, params: Params) -> np.ndarray:
    return params["c"] * (log_of(x) - math.log(params["scale"]))


def _log_probabilities(x: np.ndarray, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """ln P(X ≤ x) and ln P(X > x); c < 0 turns them round."""
    lower, upper = log_gammainc(params["a"], _log_power(x, params))
    return (lower, upper) if params["c"] > 0 else (upper, lower)


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    q = np.asarray(q, np.float64)
    return _of_gamma(log_gammaincinv(params["a"], q, upper=params["c"] < 0), params)


def _of_gamma(log_g: np.ndarray, params: Params) -> np.ndarray:
    """x from the logarithm of the gamma variate."""
    return np.exp(math.log(params["scale"]) + log_g / params["c"])


def _limit(params: Params) -> str | None:
    """Q is next to 0, or the nearest to 0 that can be told."""
    offset = math.log(params["a"]) / params["c"]
    room = _room(math.log(params["scale"]) + offset, math.log(np.finfo(np.float64).max))
    return "lognormal" if 1 / params["a"] < NEARLY_LOGNORMAL or abs(offset) > 0.99 * room else None


BOUNDS = (REAL, LOG_SPREAD, (-10.0, 10.0))
GENGAMMA = Family(
    name="gengamma",
    parameters=("a", "c", "scale"),
    log_density=_log_density,
    constrain=_constrain,
    unconstrain=_unconstrain,
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(x, p)[0],
    logsf=lambda x, p: _log_probabilities(x, p)[1],
    ppf=_ppf,
    sample=lambda rng, p, n: _of_gamma(log_gamma_sample(rng, p["a"], n), p),
    contains=frozenset({"weibull", "gamma", "exponential", "lognormal", "halfnormal", "halfgennorm"}),
    limit=_limit,
)
