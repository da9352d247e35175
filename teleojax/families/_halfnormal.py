"""Half-normal: x = |w|, w ~ N(0, scale²). What a freshly initialised Gaussian layer shows."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf, erfinv, log_ndtr

from teleojax.families._family import Family, Params
from teleojax.stats import LogMoments

HALF_LOG_2_OVER_PI = 0.5 * math.log(2 / math.pi)
LOG_2 = math.log(2.0)


def _logpdf(x: np.ndarray, params: Params) -> np.ndarray:
    return HALF_LOG_2_OVER_PI - math.log(params["scale"]) - 0.5 * (x / params["scale"]) ** 2


def _logcdf(x: np.ndarray, params: Params) -> np.ndarray:
    return np.log(erf(x / (params["scale"] * math.sqrt(2))))


def _estimate(moments: LogMoments) -> dict[str, float] | None:
    """scale² = mean(x²)."""
    usable = moments.n > 0 and 0 < moments.sum_x2 < math.inf
    return {"scale": moments.rms} if usable else None


def _loglik(moments: LogMoments, params: Params) -> float:
    mean_square = moments.sum_x2 / moments.n / params["scale"] ** 2
    return HALF_LOG_2_OVER_PI - math.log(params["scale"]) - 0.5 * mean_square


HALFNORMAL = Family(
    name="halfnormal",
    parameters=("scale",),
    logpdf=_logpdf,
    logcdf=_logcdf,
    logsf=lambda x, p: LOG_2 + log_ndtr(-x / p["scale"]),
    ppf=lambda q, p: p["scale"] * math.sqrt(2) * erfinv(q),
    sample=lambda rng, p, n: np.abs(p["scale"] * rng.standard_normal(n)),
    estimate=_estimate,
    loglik_per_value=_loglik,
)
