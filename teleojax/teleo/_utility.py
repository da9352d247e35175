"""Utility parameters of a lognormal layer, in the measure dx (categories of equal width in x = |w|).

Effective utility of a connection in category i: h_i = α ln x_i − β (ln x_i)² − ln M_i; at arbitrage equilibrium it is
the same, h*, in every category, and x is lognormal (Venkatasubramanian et al., arXiv 2405.10955).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from teleojax._errors import UsageError


@dataclass(frozen=True, slots=True)
class UtilityParameters:
    """Benefit α and cost β of h = α ln x − β ln²x − ln M, measure dx."""

    alpha: float
    beta: float

    @property
    def log_z(self) -> float:
        """ln Z, Z = ∫₀^∞ x^α exp(−β ln²x) dx = √(π/β) exp((α + 1)² / 4β); it is the potential φ* at equilibrium."""
        return 0.5 * math.log(math.pi / self.beta) + (self.alpha + 1) ** 2 / (4 * self.beta)

    def h_star(self, n: int) -> float:
        """Effective utility at equilibrium of a layer of n connections, h* = ln Z − ln n, in nats."""
        return self.log_z - math.log(n)


@dataclass(frozen=True, slots=True)
class LognormalParameters:
    """Mean and standard deviation of ln x."""

    mu: float
    sigma: float


def utility_parameters(mu: float, sigma: float) -> UtilityParameters:
    """β = 1/(2σ²), α = μ/σ² − 1 (measure dx; by ln x it would be μ/σ²). Raises UsageError unless σ > 0."""
    if not sigma > 0:
        raise UsageError("utility_parameters", found=f"sigma = {sigma}", needed="sigma > 0", remedy="Correct sigma.")
    return UtilityParameters(alpha=mu / sigma**2 - 1, beta=0.5 / sigma**2)


def lognormal_parameters(alpha: float, beta: float) -> LognormalParameters:
    """μ = (α + 1)/(2β), σ = 1/√(2β) (measure dx). Raises UsageError unless β > 0."""
    if not beta > 0:
        raise UsageError("lognormal_parameters", found=f"beta = {beta}", needed="beta > 0", remedy="Correct beta.")
    return LognormalParameters(mu=(alpha + 1) / (2 * beta), sigma=1 / math.sqrt(2 * beta))
