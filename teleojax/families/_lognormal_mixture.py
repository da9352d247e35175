"""Mixture of two lognormals, in the order of mu.

The ratio of their sigmas is bounded, so that the likelihood has a maximum, whatever the scale of the values: Hathaway
(1985), A constrained formulation of maximum-likelihood estimation for normal mixture distributions, Ann. Stat. 13.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import log_ndtr, ndtr, ndtri

from teleojax.families._family import LIMIT_NATS, LOG_SPREAD, REAL, Family, Params, Shape, within
from teleojax.families._quantile import quantile
from teleojax.families._special import HALF_LOG_2PI, log_of

LEAST_WEIGHT = 1e-3
# Of the sigmas. Without a bound the likelihood grows for ever as a component narrows on one value. Fits condense values
# into nodes up to 0.03 standard deviations apart: at a ratio of e⁵ a component would still settle on one of them.
LOG_RATIO = 4.0
# weight, mean and standard deviation of either component, which together have mean 0 and variance 1 or nearly
PEAKED = (0.5, -0.1, 0.6, 0.1, 1.28)  # a peak and wide flanks
TWO_HUMPS = (0.5, -0.9, 0.43, 0.9, 0.43)
LEFT_TAIL = (0.15, -1.5, 1.6, 0.26, 0.51)  # a long one, as half-normal values have
RIGHT_TAIL = (0.85, -0.26, 0.51, 1.5, 1.6)
LEFT_HUMP = (0.2, -1.6, 0.6, 0.4, 0.6)
RIGHT_HUMP = (0.8, -0.4, 0.6, 1.6, 0.6)


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (logit of the first weight, m₁, m₂, ½ ln(s₁s₂), ln(s₂/s₁))."""
    log_s1, log_s2 = _log_sigmas(theta)
    z1, z2 = (y - theta[1]) * jnp.exp(-log_s1), (y - theta[2]) * jnp.exp(-log_s2)
    first = jax.nn.log_sigmoid(theta[0]) - log_s1 - 0.5 * z1 * z1
    second = jax.nn.log_sigmoid(-theta[0]) - log_s2 - 0.5 * z2 * z2
    return jnp.logaddexp(first, second) - HALF_LOG_2PI


def _log_sigmas(theta: Array) -> tuple[Array, Array]:
    return theta[3] - 0.5 * theta[4], theta[3] + 0.5 * theta[4]


def _constrain(theta: Array, centre: Array | float) -> dict[str, Array]:
    weights, mus = jax.nn.sigmoid(jnp.stack([theta[0], -theta[0]])), theta[1:3] + centre
    sigmas = jnp.exp(jnp.stack(_log_sigmas(theta)))
    swap = theta[1] > theta[2]
    return {k: jnp.where(swap, v[::-1], v) for k, v in {"weights": weights, "mus": mus, "sigmas": sigmas}.items()}


def _unconstrain(params: Params) -> tuple[np.ndarray, float]:
    (w1, w2), (m1, m2), (s1, s2) = params["weights"], params["mus"], params["sigmas"]
    return np.asarray([math.log(w1 / w2), m1, m2, 0.5 * math.log(s1 * s2), math.log(s2 / s1)], np.float64), 0.0


def _starts(shape: Shape) -> np.ndarray:
    """Both tails, and what the signs of kurtosis and skewness suggest."""
    middle = PEAKED if shape.excess_kurtosis > 0 else TWO_HUMPS
    side = LEFT_HUMP if shape.skew < 0 else RIGHT_HUMP
    w, m1, s1, m2, s2 = np.asarray((middle, LEFT_TAIL, RIGHT_TAIL, side)).T
    columns = [np.log(w / (1 - w)), shape.sigma * m1, shape.sigma * m2]
    middle = np.log(shape.sigma) + 0.5 * np.log(s1 * s2)
    return within(np.stack([*columns, middle, np.log(s2 / s1)], axis=1), BOUNDS)


def _arrays(params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(params["weights"]), np.asarray(params["mus"]), np.asarray(params["sigmas"])


def _log_probabilities(y: np.ndarray, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """ln P(Y ≤ y) and ln P(Y > y): sums of the components' own, and the larger from the smaller."""
    (w1, w2), (z1, z2) = params["weights"], _standardise(y, params)
    below = w1 * ndtr(z1) + w2 * ndtr(z2) < 0.5
    side = np.where(below, 1, -1)
    smaller = np.logaddexp(math.log(w1) + log_ndtr(side * z1), math.log(w2) + log_ndtr(side * z2))
    larger = np.log1p(-np.exp(smaller))
    return np.where(below, smaller, larger), np.where(below, larger, smaller)


def _standardise(y: np.ndarray, params: Params) -> list[np.ndarray]:
    return [(y - m) / s for m, s in zip(params["mus"], params["sigmas"], strict=True)]


def _log_slope(y: np.ndarray, params: Params) -> np.ndarray:
    """The log-density of y."""
    each = zip(params["weights"], params["sigmas"], _standardise(y, params), strict=True)
    return np.logaddexp(*(math.log(w / s) - HALF_LOG_2PI - 0.5 * z * z for w, s, z in each))


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    """By root finding between the quantiles of the components, from where one of them alone has the probability."""
    q = np.asarray(q, np.float64)
    w, m, s = _arrays(params)
    each = m + s * ndtri(q)[..., None]
    alone = np.minimum(np.minimum(q, 1 - q)[..., None] / w, 0.5)
    below, above = m + s * ndtri(alone), m - s * ndtri(alone)
    start = np.where(q < 0.5, below.min(axis=-1), above.max(axis=-1))
    law = partial(_log_probabilities, params=params), partial(_log_slope, params=params)
    return np.exp(quantile(q, *law, each.min(axis=-1), each.max(axis=-1), start))


def _sample(rng: np.random.Generator, params: Params, n: int) -> np.ndarray:
    w, m, s = _arrays(params)
    which = (rng.random(n) >= w[0]).astype(np.intp)
    return np.exp(m[which] + s[which] * rng.standard_normal(n))


def _limit(params: Params) -> str | None:
    """One component has hardly any weight, or the moments of y show almost no departure from the normal law."""
    w, m, s = _arrays(params)
    d = m - w @ m
    variance = w @ (s**2 + d**2)
    skew = w @ (d**3 + 3 * d * s**2) / variance**1.5
    kurtosis = w @ (d**4 + 6 * d**2 * s**2 + 3 * s**4) / variance**2 - 3
    return "lognormal" if w.min() < LEAST_WEIGHT or skew**2 / 12 + kurtosis**2 / 48 < LIMIT_NATS else None


BOUNDS = ((-12.0, 12.0), REAL, REAL, LOG_SPREAD, (-LOG_RATIO, LOG_RATIO))
LOGNORMAL_MIXTURE = Family(
    name="lognormal_mixture",
    parameters=("weights", "mus", "sigmas"),
    log_density=_log_density,
    constrain=_constrain,
    unconstrain=_unconstrain,
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(log_of(x), p)[0],
    logsf=lambda x, p: _log_probabilities(log_of(x), p)[1],
    ppf=_ppf,
    sample=_sample,
    contains=frozenset({"lognormal"}),
    limit=_limit,
)
