"""What a distribution family of x = |w| > 0 is: a record of functions, no state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from teleojax.stats import LogMoments

Params = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Family:
    """A family by its functions of (x, params), all in float64 and natural logarithms, all for x > 0, none with a
    location: `logpdf` (density in x), `logcdf`, `logsf`, `ppf` of a probability, `sample(rng, params, n)`.

    `estimate` is the maximum-likelihood estimate from log-moments and `loglik_per_value` the mean log-likelihood there
    in nats per value; both exact, since the moments are sufficient for the family. `estimate` returns None where the
    maximum does not exist (no values, or no spread where the family needs one).
    """

    name: str
    parameters: tuple[str, ...]
    logpdf: Callable[[np.ndarray, Params], np.ndarray]
    logcdf: Callable[[np.ndarray, Params], np.ndarray]
    logsf: Callable[[np.ndarray, Params], np.ndarray]
    ppf: Callable[[np.ndarray, Params], np.ndarray]
    sample: Callable[[np.random.Generator, Params, int], np.ndarray]
    estimate: Callable[[LogMoments], dict[str, float] | None]
    loglik_per_value: Callable[[LogMoments, Params], float]
