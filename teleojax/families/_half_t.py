"""Half Student t: x = |w|, w/scale ~ t with df degrees of freedom. Half-normal as df → ∞."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import betainc, betaincinv, erf, erfinv, polygamma, psi

from teleojax.families._family import LIMIT_NATS, REAL, Family, Params, Shape, within
from teleojax.families._quantile import quantile
from teleojax.families._special import (
    TAIL_RULE,
    inverse_trigamma,
    log_gamma_sample,
    log_of,
    logs_of_pair,
    stirling_remainder,
    stirling_remainder_at,
)

HALF_LOG_PI = 0.5 * math.log(math.pi)
LOG_2 = math.log(2)
NEARLY_NORMAL = math.sqrt(0.75 / LIMIT_NATS)  # df; the divergence from the nearest half-normal is 0.75/df² in the limit
TAIL = 4.0  # z from which the tail is integrated, where its density falls steeply enough
SMALL_DF = 20.0  # up to here the tail is no smaller than 1e-170 where it becomes a power law: no need to integrate
LARGE_DF = 1e3  # from here betainc loses up to six digits
LOG_TAIL, LOG_FAR = math.log(TAIL), 18.0  # from LOG_FAR the leading term of a series serves at either end


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale, ln df)."""
    df = jnp.exp(theta[1])
    z = y - theta[0]
    return _log_peak(df, jnp) + z - 0.5 * (df + 1) * jnp.logaddexp(2 * z - theta[1], 0)


def _log_peak(df: Any, xp: Any = math) -> Any:
    """ln of the density of x/scale at 0, 2Γ((df + 1)/2) / (Γ(df/2) √(π df)), without cancellation."""
    a, remainder = df / 2, stirling_remainder_at if xp is math else partial(stirling_remainder, xp=xp)
    stirling = remainder(2 / (df + 1)) - remainder(2 / df)
    return 0.5 * LOG_2 - HALF_LOG_PI + a * xp.log1p(0.5 / a) - 0.5 + stirling


def _starts(shape: Shape) -> np.ndarray:
    """From var y = (ψ′(½) + ψ′(df/2))/4 and mean y = ln scale + (ln df + ψ(½) − ψ(df/2))/2."""
    rest = 4 * shape.sigma**2 - math.pi**2 / 2
    df = 2 * inverse_trigamma(rest) if rest > polygamma(1, 50) else 100.0
    return within([[0.5 * (psi(df / 2) - psi(0.5) - math.log(df)), math.log(df)]], BOUNDS)


def _log_probabilities(log_z: np.ndarray, df: float) -> tuple[np.ndarray, np.ndarray]:
    """ln P(Z ≤ z) and ln P(Z > z) at scale 1.

    By the incomplete beta function. Where df is large it loses digits in the body and underflows in the tail, and the
    density is integrated instead; where df is small the tail ends as a power law.
    """
    shape, log_z = np.shape(log_z), np.atleast_1d(np.asarray(log_z, np.float64))
    a, log_peak = df / 2, _log_peak(df)
    with np.errstate(all="ignore"):
        log_ratio = 2 * log_z - math.log(df)  # of z²/df
        if df > LARGE_DF:
            inner = math.exp(log_peak) * _body(np.exp(np.minimum(log_z, LOG_TAIL)), df)
            log_inner, log_outer = np.log(inner), np.log1p(-inner)
        else:
            log_inner, log_outer = _by_incomplete_beta(np.exp(log_ratio), a)
        least = log_z < -LOG_FAR
        if least.any():
            log_inner[least] = log_peak + log_z[least] - (df + 1) / 6 * np.exp(log_ratio[least])
            log_outer[least] = np.log1p(-np.exp(log_inner[least]))
        tail = log_z > (LOG_TAIL if df > SMALL_DF else LOG_FAR)
        if tail.any():
            log_outer[tail] = log_peak + (_log_tail if df > SMALL_DF else _log_power_law)(log_z[tail], df)
            log_inner[tail] = np.log1p(-np.exp(log_outer[tail]))
    return log_inner.reshape(shape), log_outer.reshape(shape)


def _by_incomplete_beta(ratio: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms of P and 1 − P at z²/df = ratio and a = df/2, from the side that has the smaller argument."""
    inner = ratio < 1
    own, other = (np.where(side, ratio, 1) / (1 + ratio) for side in (inner, ~inner))
    first, second = np.where(inner, 0.5, a), np.where(inner, a, 0.5)
    near, rest = logs_of_pair(betainc(first, second, own), lambda far: betainc(second[far], first[far], other[far]))
    return np.where(inner, near, rest), np.where(inner, rest, near)


def _body(z: np.ndarray, df: float) -> np.ndarray:
    """∫ (1 + t²/df)^(−(df + 1)/2) dt from 0 to z ≤ TAIL, for df > LARGE_DF.

    With t² = df (e^v − 1), v = u²/df, it is ∫ exp(−βu²/2) √(v/2 / sinh(v/2)) du to u(z), β = 1 − 1/2df, and the root
    is 1 − v²/48 + (1/5760 + 1/4608) v⁴ to 1e-16.
    """
    beta, u = 1 - 0.5 / df, np.sqrt(df * np.log1p(z * z / df))
    square = u * u
    edge, integral = u * np.exp(-0.5 * beta * square), math.sqrt(math.pi / (2 * beta)) * erf(u * math.sqrt(beta / 2))
    integrals = [integral]  # of u⁰, u², u⁴ … against the exponential
    for k in (1, 3, 5, 7):
        integral = (k * integral - edge) / beta
        integrals.append(integral)
        edge = edge * square
    return integrals[0] - integrals[2] / (48 * df**2) + (1 / 5760 + 1 / 4608) / df**4 * integrals[4]


def _log_tail(log_z: np.ndarray, df: float) -> np.ndarray:
    """ln ∫ (1 + z²/df)^(−(df + 1)/2) dz from z > 1 to ∞; the density of ln z is log-concave with its mode at 0."""
    log_ratio = 2 * log_z - math.log(df)
    length = np.logaddexp(0, log_ratio)  # ln(1 + z²/df)
    p = np.exp(log_ratio - length)
    slope = (df + 1) * p - 1
    tau, weight = TAIL_RULE
    v = tau / slope[:, None]
    total = np.exp(v - 0.5 * (df + 1) * np.log1p(p[:, None] * np.expm1(2 * v))) @ weight
    return log_z - 0.5 * (df + 1) * length + np.log(total / slope)


def _log_power_law(log_z: np.ndarray | float, df: float) -> Any:
    """The same to a relative 1/z²."""
    return 0.5 * (df - 1) * math.log(df) - df * log_z


def _standardise(x: np.ndarray, params: Params) -> np.ndarray:
    return log_of(x) - math.log(params["scale"])


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    """By root finding between q/peak ≤ z and the power law that lies above the tail, from what SciPy's inverse gives.

    Past LARGE_DF it begins where √((df − ½) ln(1 + z²/df)) is half-normal.
    """
    q, df = np.asarray(q, np.float64), float(params["df"])
    a, log_peak = df / 2, _log_peak(df)
    with np.errstate(all="ignore"):
        if df > LARGE_DF:
            ratio = np.expm1(2 / (df - 0.5) * erfinv(q) ** 2)
        else:
            lower, upper = betaincinv(0.5, a, q), betaincinv(a, 0.5, 1 - q)
            ratio = np.where(lower < 0.5, lower / (1 - lower), (1 - upper) / upper)
        low, high = np.log(q) - log_peak, (log_peak + _log_power_law(0.0, df) - np.log1p(-q)) / df
        start = 0.5 * (np.log(ratio) + math.log(df))

    def log_density(v: np.ndarray) -> np.ndarray:
        return log_peak + v - 0.5 * (df + 1) * np.logaddexp(2 * v - math.log(df), 0)

    log_z = quantile(q, lambda v: _log_probabilities(v, df), log_density, low, high, start)
    return params["scale"] * np.exp(log_z)


def _sample(rng: np.random.Generator, params: Params, n: int) -> np.ndarray:
    """A half-normal over the root of chi²/df, whose logarithm stays finite for small df."""
    a = params["df"] / 2
    return params["scale"] * np.abs(rng.standard_normal(n)) * np.exp((math.log(a) - log_gamma_sample(rng, a, n)) / 2)


BOUNDS = (REAL, (math.log(0.05), math.log(1e6)))
HALF_T = Family(
    name="half_t",
    parameters=("df", "scale"),
    log_density=_log_density,
    constrain=lambda theta, centre: {"df": jnp.exp(theta[1]), "scale": jnp.exp(theta[0] + centre)},
    unconstrain=lambda p: (np.log([p["scale"], p["df"]]), 0.0),
    starts=_starts,
    bounds=BOUNDS,
    logcdf=lambda x, p: _log_probabilities(_standardise(x, p), p["df"])[0],
    logsf=lambda x, p: _log_probabilities(_standardise(x, p), p["df"])[1],
    ppf=_ppf,
    sample=_sample,
    contains=frozenset({"halfnormal"}),
    limit=lambda p: "halfnormal" if p["df"] > NEARLY_NORMAL else None,
)
