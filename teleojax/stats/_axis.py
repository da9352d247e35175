"""AxisFit: one lognormal per index along an axis, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from teleojax.stats._logmoments import Partials


@dataclass(frozen=True, slots=True, eq=False)
class AxisFit:
    """Maximum-likelihood lognormals of |w|, one per index along the kept axes; every array has their `shape`.

    Counts as in LogMoments; `mu` and `sigma` of ln|w|, its `skew` and `excess_kurtosis`; `min`, `max`, `rms` of |w|
    over n. float32 from the fast kernel, float64 where care was needed for the whole tensor. NaN where a number does
    not exist: everything for n = 0, skewness and kurtosis (and alpha, beta, h_star) for sigma = 0.
    """

    n: Int[np.ndarray, ...]
    n_zero: Int[np.ndarray, ...]
    n_nonfinite: Int[np.ndarray, ...]
    n_negative: Int[np.ndarray, ...]
    mu: Float[np.ndarray, ...]
    sigma: Float[np.ndarray, ...]
    skew: Float[np.ndarray, ...]
    excess_kurtosis: Float[np.ndarray, ...]
    min: Float[np.ndarray, ...]
    max: Float[np.ndarray, ...]
    rms: Float[np.ndarray, ...]

    @staticmethod
    def from_partials(partials: Partials, shape: tuple[int, ...]) -> AxisFit:
        """From one Partials entry per index."""
        n, m2 = partials.n, partials.m2
        with np.errstate(all="ignore"):  # 0/0 is the NaN that is meant
            some = np.where(n > 0, 1.0, np.nan)
            spread = np.where(m2 > 0, m2, np.nan)
            arrays = (
                n,
                partials.n_zero,
                partials.n_nonfinite,
                partials.n_negative,
                partials.mean * some,
                np.sqrt(m2 / n),
                np.sqrt(n) * partials.m3 / spread**1.5,
                n * partials.m4 / spread**2 - 3,
                partials.min * some,
                partials.max * some,
                np.sqrt(partials.sum_x2 / n),
            )
        return AxisFit(*(a.reshape(shape) for a in arrays))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the kept axes."""
        return self.n.shape

    @property
    def mu_se(self) -> np.ndarray:
        """Standard error of mu, σ/√n."""
        return self.sigma / np.sqrt(np.maximum(self.n, 1))

    @property
    def sigma_se(self) -> np.ndarray:
        """Standard error of sigma, σ/√(2n)."""
        return self.mu_se / np.sqrt(2)

    @property
    def beta(self) -> np.ndarray:
        """Cost parameter 1/(2σ²), measure dx."""
        return 0.5 / np.where(self.sigma > 0, self.sigma, np.nan) ** 2

    @property
    def alpha(self) -> np.ndarray:
        """Benefit parameter μ/σ² − 1, measure dx."""
        return 2 * self.beta * self.mu - 1

    @property
    def h_star(self) -> np.ndarray:
        """Effective utility at equilibrium, ln Z − ln n, in nats."""
        log_z = 0.5 * np.log(np.pi / self.beta) + (self.alpha + 1) ** 2 / (4 * self.beta)
        return log_z - np.log(np.maximum(self.n, 1))

    @property
    def delta_nats(self) -> np.ndarray:
        """What a half-normal gains over the lognormal in log-likelihood, nats per value (negative: it loses)."""
        halfnormal = 0.5 * np.log(2 / np.pi) - np.log(self.rms) - 0.5
        sigma = np.where(self.sigma > 0, self.sigma, np.nan)
        return halfnormal - (-self.mu - np.log(sigma) - 0.5 * np.log(2 * np.pi) - 0.5)
