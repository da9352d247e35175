"""Inverse Gaussian in SciPy's parameters: mean mu · scale, shape (Wald's λ) scale.

With r = ln(x / mean): density of ln x = exp(−r/2 − (2/mu) sinh²(r/2)) / √(2π mu).
"""

from __future__ import annotations

import math
from functools import cache

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import erfcx, ndtri

from teleojax.families._family import REAL, Family, Params, Shape, within
from teleojax.families._prentice import exp_limit
from teleojax.families._quantile import quantile
from teleojax.families._special import HALF_LOG_2PI, log_of

LOG_2 = math.log(2)
SERIES = 40.0  # s from which seven terms leave 1e-17
DIFFERENCE_RULE = np.polynomial.legendre.leggauss(8)


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln mean, ln mu)."""
    r = y - theta[0]
    limit = exp_limit(r)
    sinh = jnp.sinh(0.5 * jnp.clip(r, -limit, limit))
    return -HALF_LOG_2PI - 0.5 * (theta[1] + r) - 2 * jnp.exp(-theta[1]) * sinh * sinh


def _constrain(theta: Array, centre: Array | float) -> dict[str, Array]:
    return {"mu": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre - theta[1])}


def _unconstrain(params: Params) -> tuple[np.ndarray, float]:
    return np.asarray([_log_mean(params), math.log(params["mu"])]), 0.0


def _log_mean(params: Params) -> float:
    return math.log(params["scale"]) + math.log(params["mu"])


@cache
def _log_moments() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of r against ln mu, by the trapezoidal rule."""
    log_mu = np.linspace(-8, 12, 81)
    # r = 2 asinh(√mu u/2): u is near normal for small mu; for large mu both logarithmic tails are covered
    u = np.sinh(np.linspace(-3.2, 3.2, 801))
    root = np.exp(0.5 * log_mu)[:, None]
    r = 2 * np.arcsinh(root * u / 2)
    weight = np.exp(-0.5 * u * u - r / 2) / np.cosh(r / 2) * np.cosh(np.arcsinh(u))
    weight = weight / weight.sum(axis=1, keepdims=True)
    mean = (weight * r).sum(axis=1)
    return log_mu, mean, (weight * (r - mean[:, None]) ** 2).sum(axis=1)


def _starts(shape: Shape) -> np.ndarray:
    """mu whose variance of y is the given one, at most e^5, where it comes near its upper limit π²/2."""
    grid, mean, variance = _log_moments()
    log_mu = min(float(np.interp(shape.sigma**2, variance, grid)), 5.0)
    if shape.sigma**2 < variance[0]:
        log_mu = 2 * math.log(shape.sigma)  # var y → mu
    return within([[-float(np.interp(log_mu, grid, mean)), log_mu]], BOUNDS)


def _log_probabilities(r: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """ln P(R ≤ r) and ln P(R > r).

    With b = 2 sinh(r/2)/√mu and c = 2 cosh(r/2)/√mu (c² = b² + 4/mu), P(R ≤ r) = Φ(b) + e^(2/mu) Φ(−c) is
    ½ e^(−b²/2) (erfcx(−b/√2) + erfcx(c/√2)) below the mean, and above it P(R > r) is the same with a difference.
    """
    shape, r = np.shape(r), np.atleast_1d(np.asarray(r, np.float64))
    with np.errstate(all="ignore"):
        half, root, below = np.abs(r) / 2, math.sqrt(2 / mu), r < 0
        b, c = root * np.sinh(half), root * np.cosh(half)  # both over √2
        both = erfcx(b) + np.where(below, 1, -1) * erfcx(c)
        width = root * np.exp(-half)  # c − b
        close = ~below & (width <= 0.02 * (1 + b))
        if close.any():
            both[close] = _erfcx_fall(b[close], width[close])
        near = np.log(0.5 * both) - b * b
        far = np.log1p(-np.exp(near))
    return np.where(below, near, far).reshape(shape), np.where(below, far, near).reshape(shape)


def _erfcx_fall(b: np.ndarray, width: np.ndarray) -> np.ndarray:
    """erfcx(b) − erfcx(b + width) for a width small beside 1 + b, as the integral of the slope 2/√π − 2s erfcx(s)."""
    node, weight = DIFFERENCE_RULE
    s = b[:, None] + width[:, None] * (1 + node) / 2
    slope = 1 - math.sqrt(math.pi) * s * erfcx(s)
    far = s > SERIES
    if far.any():
        square = 0.5 / s[far] ** 2
        term = series = square
        for n in range(2, 9):  # the asymptotic series of erfcx, DLMF 7.12.1, less its first term
            term = term * (-(2 * n - 1) * square)
            series = series + term
        slope[far] = series
    return slope @ weight * width / math.sqrt(math.pi)


def _relative(x: np.ndarray, params: Params) -> np.ndarray:
    return log_of(x) - _log_mean(params)


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    """By root finding in b, which is next to normal: Φ(b) < P(R ≤ r), and P(R ≤ r) < 2Φ(b) below the mean."""
    q, root = np.asarray(q, np.float64), math.sqrt(params["mu"]) / 2

    def relative(b: np.ndarray) -> np.ndarray:
        return 2 * np.arcsinh(root * b)

    def log_density(b: np.ndarray) -> np.ndarray:
        return LOG_2 - HALF_LOG_2PI - 0.5 * b * b - np.logaddexp(0, relative(b))

    low, high = ndtri(q / 2), ndtri(q)
    start = np.where(q < 0.5, (low + high) / 2, high)
    b = quantile(q, lambda b: _log_probabilities(relative(b), params["mu"]), log_density, low, high, start)
    return np.exp(_log_mean(params) + relative(b))


def _sample(rng: np.random.Generator, params: Params, n: int) -> np.ndarray:
    """|b| is half-normal, and r < 0 with probability 1/(1 + e^(−|r|)). Michael, Schucany & Haas (1976)."""
    r = 2 * np.arcsinh(math.sqrt(params["mu"]) / 2 * np.abs(rng.standard_normal(n)))
    below = rng.random(n) < 1 / (1 + np.exp(-r))
    return np.exp(_log_mean(params) + np.where(below, -r, r))


BOUNDS = (REAL, (-24.0, 20.0))
INVGAUSS = Family(
    name="invgauss",
    parameters=("mu", "scale"),
    log_density=_log_density,
    constrain=_constrain,
    unconstrain=_unconstrain,
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(_relative(x, p), p["mu"])[0],
    logsf=lambda x, p: _log_probabilities(_relative(x, p), p["mu"])[1],
    ppf=_ppf,
    sample=_sample,
)
