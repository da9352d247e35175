"""Quantiles by root finding, all elements side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAX_STEPS = 200  # bisection alone ends in 60; about four are usual
PAD = 1e-3  # added to the bracket, for bounds that rounding has moved past the root
NEAR = 1e-8  # of log-odds: from here one step of Newton's method is right to rounding
WIDTH = 1e-15  # of a bracket that holds no further number


def quantile(
    q: np.ndarray,
    log_probabilities: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    log_density: Callable[[np.ndarray], np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """y in [low, high] with P(Y ≤ y) = q, from `log_probabilities(y)` = (ln P(Y ≤ y), ln P(Y > y)) and ln of the slope.

    Newton's method on the log-odds, in which both tails keep their relative precision and most laws run nearly
    straight; bisection where a step leaves the bracket or does not halve the error.
    """
    q = np.asarray(q, np.float64)
    with np.errstate(all="ignore"):
        wanted = np.log(q) - np.log1p(-q)
        low, high = (np.broadcast_to(bound, q.shape) + pad for bound, pad in ((low, -PAD), (high, PAD)))
        y = (low + high) / 2 if start is None else np.clip(start, low, high)
        last = np.full(q.shape, np.inf)
        for _ in range(MAX_STEPS):
            log_cdf, log_sf = log_probabilities(y)
            error = log_cdf - log_sf - wanted
            size = np.abs(error)
            newton = y - error * np.exp(log_cdf + log_sf - log_density(y))
            low, high = np.where(error < 0, y, low), np.where(error > 0, y, high)
            near = size < NEAR
            good = (low < newton) & (newton < high) & (size <= last / 2) | near & np.isfinite(newton)
            y, last = np.where(good, newton, (low + high) / 2), size
            if np.all(near | (high - low <= WIDTH + 4 * np.finfo(np.float64).eps * np.abs(y))):
                break
    return y
