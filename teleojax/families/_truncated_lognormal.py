"""Lognormal cut off below xmin: ln x ~ N(mu, sigma²) given x > xmin, a tail that contains the power law as a limit.

With r = (mu − ln xmin)/sigma and u the excess of ln x in units of sigma, density of u = e^(−u²/2 + ru) / M(r),
M(r) = ∫₀^∞ of the numerator = Φ(r)/φ(r), whose mean is E(r) = r + 1/M(r). As r → −∞ it is Pareto with alpha = −r/sigma.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import erfcx, log_ndtr, ndtri_exp

from teleojax.families._family import LIMIT_NATS, LOG_SPREAD, Family, Params, Shape, within
from teleojax.families._quantile import quantile
from teleojax.families._special import HALF_LOG_2PI, TAIL_RULE, log1mexp
from teleojax.families._tail import above, log_excess

DEEP = 3.0  # −r from which M is integrated numerically
NEARLY_PARETO = -((0.5 / LIMIT_NATS) ** 0.25)  # r; the divergence from the nearest Pareto law is ½ r^−4 in the limit
UNIT_NODES, UNIT_WEIGHTS = np.polynomial.legendre.leggauss(20)


def _mean(r: Any, xp: Any = np) -> tuple[Any, Any]:
    """E(r) and ln M(r) − max(r, 0)²/2. `xp` is `numpy` or `jax.numpy`.

    Far below 0 both are integrals over τ = −ru of e^(−τ − τ²/2r²), which do not cancel as r + φ(r)/Φ(r) does.
    """
    normal = jax.scipy.special.log_ndtr if xp is jnp else log_ndtr
    deep = r < -DEEP
    rho = xp.where(deep, -r, DEEP)
    tau, weight = (xp.asarray(v) for v in TAIL_RULE)
    law = weight * xp.exp(-tau - 0.5 * (tau / rho[..., None]) ** 2)
    total, first = xp.sum(law, axis=-1), xp.sum(law * tau, axis=-1)
    shallow = xp.where(deep, 0.0, r)
    log_phi = normal(shallow)
    hazard = xp.exp(-0.5 * shallow * shallow - HALF_LOG_2PI - log_phi)
    below = xp.where(r > 0, 0.0, shallow)
    return (
        xp.where(deep, first / (total * rho), shallow + hazard),
        xp.where(deep, xp.log(total / rho), HALF_LOG_2PI + log_phi + 0.5 * below * below),
    )


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln mean excess, asinh r): likelihoods determine the mean, whatever r is."""
    inside, t = above(y)
    r = jnp.sinh(theta[1])
    mean, log_normaliser = _mean(r, jnp)
    log_s = theta[0] - jnp.log(mean)
    u = t * jnp.exp(-log_s)
    over = jnp.where(r > 0, r, 0)  # completes the square where it would otherwise cancel; smooth at 0 with _mean
    return jnp.where(inside, -0.5 * (u - over) ** 2 + (r - over) * u - log_normaliser - log_s, -jnp.inf)


def _constrain(theta: Array, centre: Array | float) -> dict[str, Array]:
    r = jnp.sinh(theta[1])
    sigma = jnp.exp(theta[0]) / _mean(r, jnp)[0]
    return {"mu": centre + r * sigma, "sigma": sigma, "xmin": jnp.exp(jnp.asarray(centre))}


def _unconstrain(params: Params) -> tuple[np.ndarray, float]:
    centre, r = math.log(params["xmin"]), _r(params)
    return np.asarray([math.log(params["sigma"]) + math.log(_mean(r)[0]), math.asinh(r)]), centre


def _r(params: Params) -> float:
    return (params["mu"] - math.log(params["xmin"])) / params["sigma"]


@cache
def _skews() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Skewness of the excess, rising, asinh r, and its mean in standard deviations."""
    v = np.linspace(math.asinh(20), -math.asinh(12), 200)
    mean, hazard = _mean(np.sinh(v))[0], _mean(np.sinh(v))[0] - np.sinh(v)
    variance = 1 - hazard * mean
    return hazard * (mean * mean + hazard * mean - 1) / variance**1.5, v, mean / np.sqrt(variance)


def _starts(shape: Shape) -> np.ndarray:
    """r from the skewness of the excess, which is 2 in the Pareto limit and 0 when nothing is cut, and r = 0."""
    skews, grid, ratios = _skews()
    v = np.asarray([float(np.interp(shape.skew, skews, grid)), 0.0])
    ratio = np.interp(-v, -grid, ratios)
    return within(np.stack([math.log(shape.sigma) + np.log(ratio), v], axis=1), BOUNDS)


def _log_probabilities(log_u: np.ndarray, r: float) -> tuple[np.ndarray, np.ndarray]:
    """ln P(U ≤ u) and ln P(U > u).

    Near 0 the integral of the density; beyond, Φ(r − u)/Φ(r) by the scaled complement for r < 0, else by differences.
    """
    shape, log_u = np.shape(log_u), np.atleast_1d(np.asarray(log_u, np.float64))
    with np.errstate(all="ignore"):
        u = np.exp(log_u)
        if r < 0:
            root = math.sqrt(2)
            log_sf = -0.5 * u * u + r * u + np.log(erfcx((u - r) / root)) - np.log(erfcx(-r / root))
            log_cdf = log1mexp(-log_sf)
        else:
            below = log_ndtr(u - r)
            difference = below + log1mexp(np.where(u < r, below - log_ndtr(-r), 1)) - log_ndtr(r)
            ratio = log_ndtr(r - u) - log_ndtr(r)
            log_cdf = np.where(u < r, difference, log1mexp(-ratio))
            log_sf = np.where(u < r, log1mexp(-difference), ratio)
        near = u * max(1, abs(r)) < 1
        if near.any():
            v = u[near, None] * (1 + UNIT_NODES) / 2
            log_integral = np.log(np.exp(-0.5 * v * v + r * v) @ (UNIT_WEIGHTS / 2))
            log_cdf[near] = log_u[near] + log_integral - _log_normaliser(r)
            log_sf[near] = log1mexp(-log_cdf[near])
    return log_cdf.reshape(shape), log_sf.reshape(shape)


def _log_normaliser(r: float) -> float:
    """ln M(r)."""
    if r < 0:
        return math.log(erfcx(-r / math.sqrt(2))) + 0.5 * math.log(math.pi / 2)
    return HALF_LOG_2PI + float(log_ndtr(r)) + 0.5 * r * r


def _log_u(x: np.ndarray, params: Params) -> np.ndarray:
    return log_excess(x, params["xmin"]) - math.log(params["sigma"])


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    """By root finding: the hazard is h = 1/M(r) at u = 0 and rises by less than u, so hu < −ln P(U > u) < hu + u²/2.

    And P(U > u) < e^(−(u − r)²/2) above max(r, 0), which bounds u where h is next to nothing.
    """
    q, r = np.asarray(q, np.float64), _r(params)
    h, cumulative = math.exp(-_log_normaliser(r)), -np.log1p(-q)
    root = np.sqrt(2 * cumulative)
    low = np.log(2 * cumulative / (h + np.sqrt(h * h + 2 * cumulative)))
    high = np.minimum(np.log(cumulative) - math.log(max(h, 1e-300)), np.log(max(r, 0) + root))
    start = np.log(np.maximum(r - ndtri_exp(log_ndtr(r) - cumulative), np.exp(low)))

    def log_density(v: np.ndarray) -> np.ndarray:
        u = np.exp(v)
        return v + r * u - 0.5 * u * u - _log_normaliser(r)

    log_u = quantile(q, lambda v: _log_probabilities(v, r), log_density, low, high, start)
    return params["xmin"] * np.exp(params["sigma"] * np.exp(log_u))


def _sample(rng: np.random.Generator, params: Params, n: int) -> np.ndarray:
    """By inversion of ln P(U > u)."""
    r = _r(params)
    u = r - ndtri_exp(log_ndtr(r) - rng.standard_exponential(n))
    return params["xmin"] * np.exp(params["sigma"] * np.maximum(u, 0))


BOUNDS = (LOG_SPREAD, (math.asinh(-50), math.asinh(1000)))
TRUNCATED_LOGNORMAL = Family(
    name="truncated_lognormal",
    parameters=("mu", "sigma", "xmin"),
    log_density=_log_density,
    constrain=_constrain,
    unconstrain=_unconstrain,
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(_log_u(x, p), _r(p))[0],
    logsf=lambda x, p: _log_probabilities(_log_u(x, p), _r(p))[1],
    ppf=_ppf,
    sample=_sample,
    contains=frozenset({"pareto"}),
    tail=True,
    limit=lambda p: "pareto" if _r(p) < NEARLY_PARETO else None,
)
