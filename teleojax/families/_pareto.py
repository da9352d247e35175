"""Pareto, from xmin up: P(X > x) = (xmin/x)^alpha.

alpha is the textbook's exponent of the survival function, SciPy's b; the density falls as x^−(alpha + 1), and that is
the alpha of the package `powerlaw` and of Clauset, Shalizi & Newman (2009).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from teleojax.families._family import POSITIVE, Family, Shape, within
from teleojax.families._special import log_cdf_of_hazard
from teleojax.families._tail import above, log_excess


def _log_density(y: Array, theta: Array) -> Array:
    """theta = (ln alpha,); y is the excess over ln xmin."""
    inside, t = above(y)
    return jnp.where(inside, theta[0] - jnp.exp(theta[0]) * t, -jnp.inf)


def _starts(shape: Shape) -> np.ndarray:
    """The excess is exponential: its standard deviation is 1/alpha."""
    return within([[-math.log(shape.sigma)]], (POSITIVE,))


PARETO = Family(
    name="pareto",
    parameters=("alpha", "xmin"),
    log_density=_log_density,
    constrain=lambda theta, centre: {"alpha": jnp.exp(theta[0]), "xmin": jnp.exp(jnp.asarray(centre))},
    unconstrain=lambda p: (np.log([p["alpha"]]), math.log(p["xmin"])),
    starts=_starts,
    bounds=(POSITIVE,),
    logcdf=lambda x, p: log_cdf_of_hazard(math.log(p["alpha"]) + log_excess(x, p["xmin"])),
    logsf=lambda x, p: -p["alpha"] * np.exp(log_excess(x, p["xmin"])),
    ppf=lambda q, p: p["xmin"] * np.exp(-np.log1p(-q) / p["alpha"]),
    sample=lambda rng, p, n: p["xmin"] * np.exp(rng.standard_exponential(n) / p["alpha"]),
    tail=True,
)
