"""The law of y = ln x when x is a power of a gamma variate, smooth through the normal law (Prentice 1974): JAX.

With w = (y − m)/s and a = 1/Q² it is  ln p(y) = a(Qw − e^(Qw)) + a ln a − ln Γ(a) + ln|Q| − ln s. Written as
−w² φ(Qw) − ln s − ½ ln 2π − R(a), φ(t) = (e^t − 1 − t)/t², R the remainder of Stirling's series, nothing cancels.

Reference: Prentice (1974), A log gamma model and its maximum likelihood estimation, Biometrika 61.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from teleojax.families._special import HALF_LOG_2PI, stirling_remainder

SERIES = 0.5  # |t| below which φ is summed; 14 terms leave 1e-17 there
COEFFICIENTS = tuple(1 / math.factorial(k + 2) for k in range(14))


def exp_limit(x: Array) -> float:
    """The largest exponent that `clipped_exp` takes: its square-root headroom keeps second derivatives finite."""
    return 0.85 * math.log(float(jnp.finfo(x.dtype).max))


def clipped_exp(x: Array) -> Array:
    """e^x, held constant from x = 603 (75 in float32), where a log-density is −10^261 and its slope is of no use."""
    return jnp.exp(jnp.minimum(x, exp_limit(x)))


def phi(t: Array) -> Array:
    """(e^t − 1 − t)/t², ½ at t = 0; e^t as in `clipped_exp`."""
    small = jnp.abs(t) < SERIES
    near, far = jnp.where(small, t, 0), jnp.where(small, 1, t)
    series = jnp.full_like(t, COEFFICIENTS[-1])
    for c in COEFFICIENTS[-2::-1]:
        series = series * near + c
    return jnp.where(small, series, (jnp.expm1(jnp.minimum(far, exp_limit(t))) - far) / (far * far))


def prentice_log_density(y: Array, location: Array, log_s: Array, q: Array) -> Array:
    """ln p(y); location is m. Gamma has s = |Q|, Weibull Q = 1, the lognormal Q = 0; Q < 0 mirrors y."""
    w = (y - location) * jnp.exp(-log_s)
    return -w * w * phi(q * w) - log_s - HALF_LOG_2PI - stirling_remainder(q * q, jnp)
