"""Half-normal: x = |w|, w ~ N(0, scale²). What a freshly initialised Gaussian layer shows."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import erf, erfinv, log_ndtr

from teleojax.families._family import REAL, ClosedForm, Family, Params, Shape
from teleojax.families._prentice import clipped_exp
from teleojax.families._special import log_of
from teleojax.stats import LogMoments

HALF_LOG_2_OVER_PI = 0.5 * math.log(2 / math.pi)
LOG_2 = math.log(2.0)
MEAN_LOG = -(np.euler_gamma + LOG_2) / 2  # of y when scale = 1


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln scale,)."""
    z = y - theta[0]
    return HALF_LOG_2_OVER_PI + z - 0.5 * clipped_exp(2 * z)


def _estimate(moments: LogMoments) -> dict[str, float] | None:
    """scale² = mean(x²)."""
    usable = moments.n > 0 and 0 < moments.sum_x2 < math.inf
    return {"scale": moments.rms} if usable else None


def _loglik(moments: LogMoments, params: Params) -> float:
    mean_square = moments.sum_x2 / moments.n / params["scale"] ** 2
    return HALF_LOG_2_OVER_PI - math.log(params["scale"]) - 0.5 * mean_square


def _starts(shape: Shape) -> np.ndarray:  # noqa: ARG001
    return np.asarray([[-MEAN_LOG]])


def _log_probabilities(x: np.ndarray, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """ln P(X ≤ x) and ln P(X > x), the larger from the smaller, so that it keeps its relative precision near 0."""
    z = np.asarray(x / params["scale"])
    inner = erf(np.minimum(z, 1) / math.sqrt(2))
    log_inner, log_outer = np.asarray(log_of(inner)), np.asarray(np.log1p(-inner))
    far = z > 1
    log_outer[far] = LOG_2 + log_ndtr(-z[far])
    log_inner[far] = np.log1p(-np.exp(log_outer[far]))
    return log_inner, log_outer


HALFNORMAL = Family(
    name="halfnormal",
    parameters=("scale",),
    log_density=_log_density,
    constrain=lambda theta, centre: {"scale": jnp.exp(theta[0] + centre)},
    unconstrain=lambda p: (np.log([p["scale"]]), 0.0),
    starts=_starts,
    bounds=(REAL,),
    logcdf=lambda x, p: _log_probabilities(x, p)[0],
    logsf=lambda x, p: _log_probabilities(x, p)[1],
    ppf=lambda q, p: p["scale"] * math.sqrt(2) * erfinv(q),
    sample=lambda rng, p, n: np.abs(p["scale"] * rng.standard_normal(n)),
    closed_form=ClosedForm(_estimate, _loglik, lambda p, n: {"scale": p["scale"] / math.sqrt(2 * n)}),
)
