"""Utility parameters of a lognormal layer, and the effective utility of its connections.

A connection of strength x = |w| gains α ln x, pays β (ln x)², and loses γ ln M_i to the M_i connections that share its
category i (Venkatasubramanian et al., arXiv 2405.10955; there γ = 1). At arbitrage equilibrium the sum is the same in
every category, and x is lognormal.

α belongs to a measure: "dx" for categories of equal width in x and densities per unit of x, "dlnx" for equal width in
ln x and densities per unit of ln x. One law of x has α_dlnx = α_dx + γ and the same β, because p(ln x) = x p(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from teleojax._errors import UsageError
from teleojax.teleo._arguments import increasing, not_negative, one_of, positive, real, vectors

MEASURES = ("dx", "dlnx")
Term = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class UtilityParameters:
    """Benefit α, cost β and competition γ of h = α ln x − β ln²x − γ ln M, in the stated measure."""

    alpha: float
    beta: float
    gamma: float = 1.0
    measure: str = "dx"

    @property
    def log_z(self) -> float:
        """ln Z, where Z = ∫₀^∞ exp((α ln x − β ln²x)/γ) over the measure; it is the same number in either.

        In dx: ln Z = ½ ln(πγ/β) + (α + γ)²/(4βγ). The potential at equilibrium is φ* = γ ln Z.
        """
        alpha = self.to_measure("dlnx").alpha
        return 0.5 * math.log(math.pi * self.gamma / self.beta) + alpha**2 / (4 * self.beta * self.gamma)

    def h_star(self, n: int) -> float:
        """Effective utility at equilibrium of a layer of n connections, h* = γ (ln Z − ln n), in nats."""
        return self.gamma * (self.log_z - math.log(n))

    def to_measure(self, measure: str) -> UtilityParameters:
        """The same law in another measure: α + γ from dx to dlnx, α − γ back; β, γ, ln Z and h* stay."""
        one_of("to_measure", MEASURES, measure=measure)
        shift = self.gamma * ((measure == "dlnx") - (self.measure == "dlnx"))
        return UtilityParameters(self.alpha + shift, self.beta, self.gamma, measure)


@dataclass(frozen=True, slots=True)
class LognormalParameters:
    """Mean and standard deviation of ln x; they know no measure."""

    mu: float
    sigma: float


def utility_parameters(mu: float, sigma: float, *, gamma: float = 1.0, measure: str = "dx") -> UtilityParameters:
    """Utility parameters under which LN(μ, σ) is the equilibrium, in measure dx unless told.

    β = γ/(2σ²); α = γ (μ/σ² − 1) in dx, γ μ/σ² in dlnx. Raises UsageError unless σ > 0 and γ > 0.
    """
    positive("utility_parameters", sigma=sigma, gamma=gamma)
    alpha, beta = gamma * (mu / sigma**2 - 1), 0.5 * gamma / sigma**2
    return UtilityParameters(alpha, beta, gamma, "dx").to_measure(measure)


def lognormal_parameters(alpha: float, beta: float, *, gamma: float = 1.0, measure: str = "dx") -> LognormalParameters:
    """Equilibrium lognormal of utility parameters, which are of measure dx unless told.

    σ = √(γ/(2β)); μ = (α + γ)/(2β) in dx, α/(2β) in dlnx. Raises UsageError unless β > 0 and γ > 0.
    """
    positive("lognormal_parameters", beta=beta, gamma=gamma)
    alpha = UtilityParameters(alpha, beta, gamma, measure).to_measure("dlnx").alpha
    return LognormalParameters(mu=alpha / (2 * beta), sigma=math.sqrt(gamma / (2 * beta)))


class CategoryUtility(eqx.Module):
    """Effective utility by category: h = benefit − cost − competition, in nats.

    x: the categories' values.  occupied: false where a category is empty; its competition is that of an occupancy of 1,
    so that with counts h is what the first connection to enter would have.
    """

    x: Float[Array, " m"]
    h: Float[Array, " m"]
    benefit: Float[Array, " m"]
    cost: Float[Array, " m"]
    competition: Float[Array, " m"]
    occupied: Bool[Array, " m"]


def effective_utility(
    occupancy: ArrayLike,
    x: ArrayLike,
    alpha: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    gamma: ArrayLike = 1.0,
    measure: str = "dx",
    benefit: Term | None = None,
    cost: Term | None = None,
) -> CategoryUtility:
    """Effective utility of each category of a histogram, h_i = α ln x_i − β (ln x_i)² − γ ln M_i.

    Args:
        occupancy: [m] counts M_i, or shares p_i; with shares h is larger by γ ln M throughout.
        x: [m] values of categories that are of equal width in `measure`; or [m + 1] edges, of any widths. With edges
            x_i is the middle of a category (arithmetic in dx, geometric in dlnx) and M_i is counted per unit of the
            measure, so that h* = γ (ln Z − ln M) as in `UtilityParameters.h_star`, up to the width of the categories.
        alpha, beta: of the same measure. Not needed where both terms are given.
        gamma: competition.
        measure: "dx" or "dlnx", of the categories and so of α and β.
        benefit, cost: other terms, as functions of x in place of α ln x and β (ln x)².

    Raises UsageError for shapes that do not fit, α or β missing, β, γ or x not positive, a negative occupancy, edges
    that do not increase.
    """
    where = "effective_utility"
    one_of(where, MEASURES, measure=measure)
    not_negative(where, occupancy=occupancy)
    (occupancy,) = vectors(where, occupancy=occupancy)
    width = None
    if jnp.shape(x) == (occupancy.size + 1,):
        increasing(where, x=x)
        (not_negative if measure == "dx" else positive)(where, x=x)
        edges = real(x)
        if measure == "dx":
            x, width = 0.5 * (edges[1:] + edges[:-1]), edges[1:] - edges[:-1]
        else:
            x, width = jnp.sqrt(edges[1:]) * jnp.sqrt(edges[:-1]), jnp.log(edges[1:] / edges[:-1])
    occupancy, x = vectors(where, occupancy=occupancy, x=x)
    gain, loss = _terms(where, x, alpha, beta, gamma, benefit, cost)
    occupied = occupancy > 0
    competition = jnp.log(jnp.where(occupied, occupancy, 1))
    if width is not None:
        competition = competition - jnp.log(width)
    competition = real(gamma) * competition
    return CategoryUtility(x, gain - loss - competition, gain, loss, competition, occupied)


def connection_utility(
    x: ArrayLike,
    log_density: ArrayLike,
    alpha: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    n: ArrayLike = 1,
    gamma: ArrayLike = 1.0,
    benefit: Term | None = None,
    cost: Term | None = None,
) -> Float[Array, " n"]:
    """Effective utility of each connection, ĥ(x) = α ln x − β ln²x − γ ln p̂(x) − γ ln n, in nats.

    `log_density` is ln p̂ at each x, per unit of x where α is of measure dx, per unit of ln x where it is of dlnx;
    either way the same ĥ comes out. `n` is the layer's number of connections, which may be more than are given here.
    Where p̂ = 0, ĥ = +∞. `benefit` and `cost` as in `effective_utility`, and so the errors.
    """
    where = "connection_utility"
    positive(where, n=n)
    x, log_density = vectors(where, x=x, log_density=log_density)
    gain, loss = _terms(where, x, alpha, beta, gamma, benefit, cost)
    return gain - loss - real(gamma) * (log_density + jnp.log(real(n)))


def lognormal_utility(x: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Float[Array, " m"]:
    """Utility before competition, u_i = α ln x_i − β (ln x_i)²: the game whose equilibrium is lognormal.

    α and β are of the measure in which the categories have equal width. Raises UsageError unless β > 0 and x > 0.
    """
    (x,) = vectors("lognormal_utility", x=x)
    gain, loss = _terms("lognormal_utility", x, alpha, beta, 1.0, None, None)
    return gain - loss


def _terms(
    where: str,
    x: Array,
    alpha: ArrayLike | None,
    beta: ArrayLike | None,
    gamma: ArrayLike,
    benefit: Term | None,
    cost: Term | None,
) -> tuple[Array, Array]:
    """Benefit and cost at each x; NaN where a traced x turns out not to be positive, and nowhere else."""
    for name, value, other in (("alpha", alpha, benefit), ("beta", beta, cost)):
        if value is None and other is None:
            term = "benefit" if name == "alpha" else "cost"
            raise UsageError(where, found=f"no {name}", needed=f"{name} or {term}=", remedy=f"Pass {name}.")
    positive(where, x=x, gamma=gamma)
    if cost is None and beta is not None:
        positive(where, beta=beta)
    y = jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), jnp.nan)
    gain = benefit(x) if benefit is not None else real(0.0 if alpha is None else alpha) * y
    loss = cost(x) if cost is not None else real(0.0 if beta is None else beta) * y * y
    return jnp.broadcast_to(gain, x.shape), jnp.broadcast_to(loss, x.shape)
