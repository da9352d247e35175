"""Lognormal: ln x ~ N(mu, sigma²). The law of arbitrage equilibrium (arXiv 2405.10955)."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr, ndtri

from teleojax.families._family import Family, Params
from teleojax.stats import LogMoments

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def standardise(x: np.ndarray, params: Params) -> np.ndarray:
    """(ln x − mu) / sigma."""
    return (np.log(x) - params["mu"]) / params["sigma"]


def _logpdf(x: np.ndarray, params: Params) -> np.ndarray:
    return -0.5 * standardise(x, params) ** 2 - np.log(x) - math.log(params["sigma"]) - HALF_LOG_2PI


def _estimate(moments: LogMoments) -> dict[str, float] | None:
    """mu = mean(ln x), sigma² = mean((ln x − mu)²)."""
    return {"mu": moments.mean, "sigma": moments.sigma} if moments.m2 > 0 else None


def _loglik(moments: LogMoments, params: Params) -> float:
    mean_square = (moments.m2 / moments.n + (moments.mean - params["mu"]) ** 2) / params["sigma"] ** 2
    return -0.5 * mean_square - moments.mean - math.log(params["sigma"]) - HALF_LOG_2PI


LOGNORMAL = Family(
    name="lognormal",
    parameters=("mu", "sigma"),
    logpdf=_logpdf,
    logcdf=lambda x, p: log_ndtr(standardise(x, p)),
    logsf=lambda x, p: log_ndtr(-standardise(x, p)),
    ppf=lambda q, p: np.exp(p["mu"] + p["sigma"] * ndtri(q)),
    sample=lambda rng, p, n: np.exp(p["mu"] + p["sigma"] * rng.standard_normal(n)),
    estimate=_estimate,
    loglik_per_value=_loglik,
)
