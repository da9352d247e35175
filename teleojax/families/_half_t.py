"""Half Student t: x = |w|, w/scale ~ t with df degrees of freedom. Half-normal as df → ∞."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import betainc, polygamma, psi

from teleojax.families._family import LIMIT_NATS, REAL, Family, Params, Shape, within
from teleojax.families._quantile import quantile
from teleojax.families._special import TAIL_RULE, inverse_trigamma, log_gamma_sample, log_of, panels, stirling_remainder

HALF_LOG_PI = 0.5 * math.log(math.pi)
LOG_2 = math.log(2)
NEARLY_NORMAL = math.sqrt(0.75 / LIMIT_NATS)  # df; the divergence from the nearest half-normal is 0.75/df² in the limit
TAIL = 4.0  # z from which the tail is integrated, where its density falls steeply enough
SMALL_DF = 20.0  # up to here the tail is no smaller than 1e-170 where it becomes a power law: no need to integrate
LARGE_DF = 1e3  # from here betainc loses up to six digits
UNIT_RULE = panels(0, 0.5, 1)


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale, ln df)."""
    df = jnp.exp(theta[1])
    z = y - theta[0]
    return _log_peak(df, jnp) + z - 0.5 * (df + 1) * jnp.logaddexp(2 * z - theta[1], 0)


def _log_peak(df: Any, xp: Any = np) -> Any:
    """ln of the density of x/scale at 0, 2Γ((df + 1)/2) / (Γ(df/2) √(π df)), without cancellation."""
    a = df / 2
    stirling = stirling_remainder(2 / (df + 1), xp) - stirling_remainder(2 / df, xp)
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
    log_z, a = np.asarray(log_z, np.float64), df / 2
    log_peak = _log_peak(df)
    with np.errstate(all="ignore"):
        log_ratio = 2 * log_z - math.log(df)  # of z²/df
        length = np.logaddexp(0, log_ratio)  # ln(1 + z²/df)
        if df > LARGE_DF:
            z = np.exp(np.minimum(log_z, math.log(TAIL)))
            ratio = z * z / df
            inside = sum(w * np.exp(-0.5 * (df + 1) * np.log1p(v * v * ratio)) for v, w in zip(*UNIT_RULE, strict=True))
            log_inner = log_peak + log_z + np.log(inside)
        else:
            log_inner = np.log(betainc(0.5, a, np.exp(log_ratio - length)))
        log_inner = np.where(log_z < -18, log_peak + log_z - (df + 1) / 6 * np.exp(log_ratio), log_inner)
        log_outer = np.log(betainc(a, 0.5, np.exp(-length)))
        power_law = log_peak + 0.5 * (df - 1) * math.log(df) - df * log_z  # to a relative 1/z²
        log_outer = np.where(log_z > 18, power_law, log_outer)
        inner = log_ratio < 0
        if df > SMALL_DF:
            tail = log_z > math.log(TAIL)
            log_outer = np.where(tail, log_peak + _log_tail(np.where(tail, log_z, 2.0), df), log_outer)
            inner &= ~tail
        return (
            np.where(inner, log_inner, np.log1p(-np.exp(log_outer))),
            np.where(inner, np.log1p(-np.exp(log_inner)), log_outer),
        )


def _log_tail(log_z: np.ndarray, df: float) -> np.ndarray:
    """ln ∫ (1 + z²/df)^(−(df + 1)/2) dz from z > 1 to ∞; the density of ln z is log-concave with its mode at 0."""
    log_ratio = 2 * log_z - math.log(df)
    length = np.logaddexp(0, log_ratio)
    p = np.exp(log_ratio - length)
    slope = (df + 1) * p - 1
    total = np.zeros_like(log_z)
    for tau, weight in zip(*TAIL_RULE, strict=True):
        v = tau / slope
        total += weight * np.exp(v - 0.5 * (df + 1) * np.log1p(p * np.expm1(2 * v)))
    return log_z - 0.5 * (df + 1) * length + np.log(total / slope)


def _standardise(x: np.ndarray, params: Params) -> np.ndarray:
    return log_of(x) - math.log(params["scale"])


def _ppf(q: np.ndarray, params: Params) -> np.ndarray:
    """By root finding between q/peak ≤ z and the power law that lies above the tail."""
    df = params["df"]
    q = np.asarray(q, np.float64)
    log_peak = _log_peak(df)
    low = np.log(q) - log_peak
    high = (log_peak + 0.5 * (df - 1) * math.log(df) - np.log1p(-q)) / df
    log_z = quantile(q, lambda v: _log_probabilities(v, df), low, high)
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
