"""What a distribution family of x = |w| > 0 is: a record of functions, no state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from teleojax.stats import LogMoments

Params = Mapping[str, Any]  # numbers; tuples of them for a mixture
Bounds = tuple[tuple[float, float], ...]

POSITIVE = (-30.0, 30.0)  # bounds of the logarithm of a parameter that is positive
REAL = (-1e4, 1e4)  # bounds of a location in ln x
LOG_SPREAD = (-12.0, 6.0)  # bounds of the logarithm of a spread of ln x; float32 numbers lie e^−16 apart
LIMIT_NATS = 1e-5  # a simpler law is all but reached when it is this near, in nats a value (Kullback–Leibler)


class Shape(NamedTuple):
    """What start values are made from: standard deviation, skewness and excess kurtosis of y = ln x."""

    sigma: float
    skew: float
    excess_kurtosis: float


class ClosedForm(NamedTuple):
    """Maximum likelihood of a family for which the log-moments are sufficient, so that both are exact.

    `estimate` returns None where the maximum does not exist; `loglik_per_value` is the mean of ln p(x), in nats;
    `standard_errors(params, n)` come from the information at the maximum.
    """

    estimate: Callable[[LogMoments], dict[str, float] | None]
    loglik_per_value: Callable[[LogMoments, Params], float]
    standard_errors: Callable[[Params, int], dict[str, float]]


def within(starts: ArrayLike, bounds: Bounds) -> np.ndarray:
    """Start values moved to the nearest point of the box."""
    return np.clip(np.asarray(starts, np.float64), *np.asarray(bounds).T)


def _no_limit(params: Params) -> str | None:  # noqa: ARG001
    return None


@dataclass(frozen=True, slots=True)
class Family:
    """A family by its functions, all in float64 and natural logarithms, for x > 0, none with a location.

    What a fit needs is written in JAX, over y = ln x and an unconstrained vector theta of `bounds`' length:
    `log_density(y, theta)` is the log-density of y (per unit of y, so ln p(x) = log_density − y), elementwise in y;
    `constrain(theta, centre)` gives the natural parameters of x when theta describes y − centre, scalars or vectors
    by name, and `unconstrain(params)` (NumPy) is its inverse: (theta, centre). `starts(shape)` are start values
    (starts, thetas) for y − mean(y), and maximisation stays within `bounds`.
    `tail` families describe the values from `xmin` up, their centre is ln xmin.

    What reports and simulations need is NumPy, of x and natural parameters: `logcdf`, `logsf` (no underflow),
    `ppf` of a probability, `sample(rng, params, n)`.

    `closed_form` replaces the maximisation where the log-moments suffice. `contains` names the families that are
    special cases of this one, or its limits. `limit(params)` names the simpler law that parameters have all but
    reached, where they are only weakly identified, else None.
    """

    name: str
    parameters: tuple[str, ...]
    log_density: Callable[[Array, Array], Array]
    constrain: Callable[[Array, Array | float], dict[str, Array]]
    unconstrain: Callable[[Params], tuple[np.ndarray, float]]
    starts: Callable[[Shape], np.ndarray]
    bounds: Bounds
    logcdf: Callable[[np.ndarray, Params], np.ndarray]
    logsf: Callable[[np.ndarray, Params], np.ndarray]
    ppf: Callable[[np.ndarray, Params], np.ndarray]
    sample: Callable[[np.random.Generator, Params, int], np.ndarray]
    closed_form: ClosedForm | None = None
    contains: frozenset[str] = frozenset()
    tail: bool = False
    limit: Callable[[Params], str | None] = _no_limit

    @property
    def n_free(self) -> int:
        """Parameters estimated from the likelihood; the xmin of a tail family is not."""
        return len(self.bounds)

    def logpdf(self, x: np.ndarray, params: Params) -> np.ndarray:
        """ln p(x), density in x, in float64; −inf outside the support."""
        theta, centre = self.unconstrain(params)
        y = np.log(np.asarray(x, np.float64))
        with jax.enable_x64(True):
            log_density = np.asarray(self.log_density(jnp.asarray(y - centre), jnp.asarray(theta)))
        return log_density - y

    def cdf(self, x: np.ndarray, params: Params) -> np.ndarray:
        """P(X ≤ x)."""
        return np.exp(self.logcdf(np.asarray(x, np.float64), params))

    def sf(self, x: np.ndarray, params: Params) -> np.ndarray:
        """P(X > x)."""
        return np.exp(self.logsf(np.asarray(x, np.float64), params))
