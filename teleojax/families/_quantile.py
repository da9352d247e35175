"""Quantiles by root finding, all elements side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAX_STEPS = 200  # bisection alone ends in 60; about ten are usual
PAD = 1e-3  # added to the bracket, for bounds that rounding has moved past the root
HUGE = 1e300


def quantile(
    q: np.ndarray,
    log_probabilities: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """y in [low, high] with P(Y ≤ y) = q, from `log_probabilities(y)` = (ln P(Y ≤ y), ln P(Y > y)).

    The smaller of the two is matched, in logarithms, so that both tails keep their relative precision.
    Reference: Chandrupatla (1997), A new hybrid quadratic/bisection algorithm, Advances in Engineering Software 28.
    """
    q = np.asarray(q, np.float64)
    lower = q < 0.5
    log_q, log_p = np.log(q), np.log1p(-q)

    def excess(y: np.ndarray) -> np.ndarray:
        """Rises in y, 0 at the quantile."""
        log_cdf, log_sf = log_probabilities(y)
        return np.clip(np.where(lower, log_cdf - log_q, log_p - log_sf), -HUGE, HUGE)

    a, b = np.broadcast_to(high, q.shape) + PAD, np.broadcast_to(low, q.shape) - PAD
    fa, fb = excess(a), excess(b)
    t, best = np.full(q.shape, 0.5), a
    with np.errstate(all="ignore"):  # the quadratic's formula is used only where it holds
        for _ in range(MAX_STEPS):
            x = a + t * (b - a)
            fx = excess(x)
            same = np.sign(fx) == np.sign(fa)
            c, fc = np.where(same, a, b), np.where(same, fa, fb)
            b, fb = np.where(same, b, a), np.where(same, fb, fa)
            a, fa = x, fx
            closer = np.abs(fa) < np.abs(fb)
            best = np.where(closer, a, b)
            tolerance = (4 * np.finfo(np.float64).eps * np.abs(best) + 1e-15) / np.abs(b - a)
            done = (tolerance > 0.5) | (np.where(closer, fa, fb) == 0)
            if np.all(done):
                break
            xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
            quadratic = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
            inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
            t = np.clip(np.where(quadratic, inverse, 0.5), tolerance, 1 - tolerance)
            t = np.where(done, 0.0, t)
    return best
