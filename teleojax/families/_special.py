"""Logarithms of distribution functions where the functions themselves are 0 or 1 in float64: NumPy, vectorised."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammainc, gammaincc, gammainccinv, gammaincinv, gammaln, ndtri, polygamma

from teleojax.families._quantile import quantile

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
SHIFT = 10  # Γ is taken from Γ(a + SHIFT), where Stirling's series has converged, for a < SHIFT
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400, 43867 / 244188)
LARGE_SHAPE = 1e4  # from here SciPy's inverses inherit what is said at `log_gammainc`
UNDERFLOW = 1e-290  # below this a logarithm is computed without the number itself
LOG_UNDERFLOW = math.log(UNDERFLOW)
ASTRAY_SHAPE = 200.0  # from here SciPy's incomplete gamma functions lose their digits in the tails
NEAR_ONE = 0.9  # a probability whose complement has one digit fewer


def panels(*edges: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes and weights over adjacent intervals."""
    node, weight = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    middle = (np.asarray(edges)[:-1] + np.asarray(edges)[1:])[:, None] / 2
    return (middle + half * node).reshape(-1), (half * weight).reshape(-1)


TAIL_RULE = panels(0, 8, 20, 40)  # for integrands between e^(−τ) and something that falls faster


def stirling_remainder(u: Any, xp: Any = np) -> Any:
    """ln Γ(a) − ((a − ½) ln a − a + ½ ln 2π) at a = 1/u, u ≥ 0, smooth at u = 0 and without cancellation.

    Stirling's series in u for a ≥ SHIFT (DLMF 5.11.1); below, the recurrence of Γ, whose terms are positive.
    `xp` is the module of arrays, `numpy` or `jax.numpy`.
    """
    large = u * SHIFT <= 1
    v = xp.where(large, u, u / (1 + SHIFT * u))
    series = 0.0
    for c in reversed(STIRLING):
        series = series * v * v + c
    a = xp.asarray(1 / xp.where(large, 1.0, u))[..., None] + xp.arange(SHIFT)
    steps = xp.sum((a + 0.5) * xp.log1p(1 / a) - 1, axis=-1)
    return v * series + xp.where(large, 0.0, steps)


@lru_cache(maxsize=64)
def stirling_remainder_at(u: float) -> float:
    """The same of one number, kept: a law is asked for many x in turn."""
    return float(stirling_remainder(u))


def log1mexp(h: np.ndarray) -> np.ndarray:
    """ln(1 − e^(−h)) for h ≥ 0, without cancellation at either end; h that rounding made negative counts as 0."""
    h = np.maximum(h, 0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(h < math.log(2), np.log(-np.expm1(-h)), np.log1p(-np.exp(-h)))


def log_cdf_of_hazard(log_h: np.ndarray) -> np.ndarray:
    """ln(1 − e^(−H)) of a cumulative hazard H by its logarithm, which may lie outside the range of floats."""
    with np.errstate(over="ignore"):
        h = np.exp(log_h)
    return np.where(log_h < -20, log_h - h / 2, log1mexp(h))  # the next term is h²/24


def log_of(x: np.ndarray) -> np.ndarray:
    """ln x in float64, −inf at 0 in silence."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(x, np.float64))


def inverse_trigamma(value: float) -> float:
    """a with ψ′(a) = value > 0, by Newton's method in 1/ψ′, which is convex and nearly linear: monotone, few steps."""
    if value > 1e7 or value < 1e-6:
        return 1 / math.sqrt(value) if value > 1 else 1 / value
    a = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, a))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, a))
        a += step
        if abs(step) < 1e-10 * a:
            break
    return a


def log_gammainc(a: float, log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln P(a, x) and ln Q(a, x) of the regularised incomplete gamma functions, x by its logarithm.

    Neither underflows, and each keeps its relative precision also where it is close to 0. SciPy's functions serve in
    the body, except that for large a they stop after 2000 terms outside |x − a| < 4.5 √a.
    """
    shape, log_x = np.shape(log_x), np.atleast_1d(np.asarray(log_x, np.float64))
    with np.errstate(all="ignore"):
        x = np.exp(log_x)
        log_lower, log_upper = logs_of_pair(gammainc(a, x), lambda far: gammaincc(a, x[far]))
        smaller = np.minimum(log_lower, log_upper)
        tail = smaller < LOG_UNDERFLOW
        if a > ASTRAY_SHAPE:
            tail |= np.abs(x - a) > 4.4 * math.sqrt(a)
        if tail.any():
            small = _log_gamma_tail(a, log_x[tail])
            large, below = np.log1p(-np.exp(small)), log_x[tail] < math.log(a)
            log_lower[tail], log_upper[tail] = np.where(below, small, large), np.where(below, large, small)
    return log_lower.reshape(shape), log_upper.reshape(shape)


def logs_of_pair(lower: np.ndarray, upper: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ln P and ln(1 − P) from P; upper(mask) gives 1 − P itself where P lies so near 1 that too few digits remain."""
    far = lower > NEAR_ONE
    log_lower, log_upper = np.log(lower), np.log1p(-lower)
    if far.any():
        rest = upper(far)
        log_lower[far], log_upper[far] = np.log1p(-rest), np.log(rest)
    return log_lower, log_upper


def _log_gamma_tail(a: float, log_x: np.ndarray) -> np.ndarray:
    """The lesser of ln P and ln Q, in the tails.

    With t = ln(x/a) the density is f(t) ∝ exp(−a(e^t − 1 − t)), log-concave, and the tail is
    f(t) ∫ exp(−a(e^t(e^v − 1) − v)) dv over v from 0 outwards, which begins like e^(−τ) in τ = a(e^t − 1)v > 0.
    """
    t = np.minimum(log_x - math.log(a), 700)  # past that ln Q is −10^304 a
    log_density = 0.5 * math.log(a) - HALF_LOG_2PI - stirling_remainder_at(1 / a) - a * (np.expm1(t) - t)
    slope, ratio = a * np.expm1(t), np.exp(t)
    tau, weight = TAIL_RULE
    v = tau / slope[:, None]
    total = np.exp(-a * (ratio[:, None] * np.expm1(v) - v)) @ weight
    return np.where(np.isposinf(log_x), -np.inf, log_density + np.log(total / np.abs(slope)))


def log_gammaincinv(a: float, q: np.ndarray, *, upper: bool = False) -> np.ndarray:
    """ln x with P(a, x) = q, or Q(a, x) = q for `upper`; where x underflows, from P = x^a / Γ(a + 1)."""
    q = np.asarray(q, np.float64)
    if a > LARGE_SHAPE:
        sign, log_a, width = (-1 if upper else 1), math.log(a), 60 / math.sqrt(a)  # enough for any float64 q
        peak = 0.5 * log_a - HALF_LOG_2PI - stirling_remainder_at(1 / a)

        def log_probabilities(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            lower, higher = log_gammainc(a, log_a + sign * v)
            return (higher, lower) if upper else (lower, higher)

        def log_density(v: np.ndarray) -> np.ndarray:
            return peak - a * (np.expm1(sign * v) - sign * v)

        start = ndtri(q) / math.sqrt(a)
        return log_a + sign * quantile(q, log_probabilities, log_density, np.asarray(-width), np.asarray(width), start)
    lower_inverse, upper_inverse = (gammainccinv, gammaincinv) if upper else (gammaincinv, gammainccinv)
    x = np.where(q < 0.5, lower_inverse(a, q), upper_inverse(a, 1 - q))
    leading = ((np.log1p(-q) if upper else np.log(q)) + gammaln(a + 1)) / a
    with np.errstate(divide="ignore"):
        return np.where(x < UNDERFLOW, leading, np.log(x))


def log_gamma_sample(rng: np.random.Generator, a: float, n: int) -> np.ndarray:
    """Logarithms of gamma(a) variates, for any a > 0: Γ(a) = Γ(a + 1) · U^(1/a) in law, which never underflows."""
    return np.log(rng.standard_gamma(a + 1, n)) - rng.standard_exponential(n) / a
