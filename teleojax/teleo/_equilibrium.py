"""Arbitrage equilibrium of any finite game: its potential, how far shares are from it, how unequal utilities are.

m categories with utility u_i before competition and shares p_i: effective utility h_i = u_i − γ ln p_i (less γ ln M for
M connections), potential φ(p) = Σ p_i u_i − γ Σ p_i ln p_i, concave since ∂²φ/∂p_i² = −γ/p_i. It is largest where all
h_i are equal: p* = softmax(u/γ), φ* = γ ln Σ exp(u_i/γ) (Venkatasubramanian et al., arXiv 2405.10955; there γ = 1).

Nothing here knows a measure: u carries it, with the α of the measure in which the categories have equal width. All of
it is one-dimensional, safe where p_i = 0, and made for jit, vmap and grad.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from teleojax.engine import compiled
from teleojax.teleo._arguments import not_negative, positive, real, vectors

TAIL = 0.05  # of the connections lie below `low`, as many above `high`


class Equilibrium(eqx.Module):
    """Arbitrage equilibrium: shares p*, their logarithm, the potential φ* in nats per connection, and γ."""

    p: Float[Array, " m"]
    log_p: Float[Array, " m"]
    potential: Float[Array, ""]
    gamma: Float[Array, ""]

    def h_star(self, n: ArrayLike) -> Float[Array, ""]:
        """Effective utility that all n connections have at equilibrium, h* = φ* − γ ln n, in nats."""
        return self.potential - self.gamma * jnp.log(real(n))


class UtilitySpread(eqx.Module):
    """How unequal the effective utilities of connections are, in nats; 0, and one number, at equilibrium.

    mean: E_p[h].  sd: the utility dispersion SD_p[h].  low, high: 5% and 95% points of h over connections.
    """

    mean: Float[Array, ""]
    sd: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


def equilibrium(u: ArrayLike, gamma: ArrayLike = 1.0) -> Equilibrium:
    """Equilibrium of utilities u_i [m]: p* = softmax(u/γ), φ* = γ logsumexp(u/γ).

    A category with u = −∞ stays empty. Raises UsageError unless u is one-dimensional and γ > 0.
    """
    positive("equilibrium", gamma=gamma)
    (u,) = vectors("equilibrium", u=u)
    return compiled(softmax_equilibrium)(u, real(gamma))


def softmax_equilibrium(u: Float[Array, " m"], gamma: Array) -> Equilibrium:
    """`equilibrium` without its checks."""
    log_p = jax.nn.log_softmax(u / gamma)
    return Equilibrium(jnp.exp(log_p), log_p, gamma * jax.nn.logsumexp(u / gamma), gamma.astype(log_p.dtype))


def potential(p: ArrayLike, u: ArrayLike, gamma: ArrayLike = 1.0) -> Float[Array, ""]:
    """Potential φ(p) = Σ p_i u_i − γ Σ p_i ln p_i of shares p [m] at utilities u [m], nats per connection.

    0 ln 0 = 0, and an empty category's u does not matter. Shares are taken as they come, not normalised. Raises
    UsageError for shapes that differ, a negative share, γ that is not positive.
    """
    positive("potential", gamma=gamma)
    not_negative("potential", p=p)
    p, u = vectors("potential", p=p, u=u)
    return compiled(shares_potential)(p, u, real(gamma))


def shares_potential(p: Float[Array, " m"], u: Float[Array, " m"], gamma: Array) -> Float[Array, ""]:
    """`potential` without its checks."""
    held = p > 0
    each = jnp.where(held, u, 0) - gamma * jnp.log(jnp.where(held, p, 1))
    return jnp.sum(jnp.where(held, p * each, 0))


def potential_gap(p: ArrayLike, u: ArrayLike, gamma: ArrayLike = 1.0) -> Float[Array, ""]:
    """Potential gap φ* − φ(p) = γ KL(p ‖ p*) ≥ 0, in nats per connection; 0 at equilibrium only.

    Computed as γ Σ (p ln(p/p*) − p + p*), which does not subtract two large numbers. +∞ where p holds a category whose
    u is −∞. p must sum to 1. Raises as `potential`.
    """
    positive("potential_gap", gamma=gamma)
    not_negative("potential_gap", p=p)
    p, u = vectors("potential_gap", p=p, u=u)
    return compiled(_gap)(p, u, real(gamma))


def shares_gap(p: Float[Array, " m"], at: Equilibrium) -> Float[Array, ""]:
    """`potential_gap` from a known equilibrium, without checks."""
    held = p > 0
    log_ratio = jnp.log(jnp.where(held, p, 1)) - jnp.where(held, at.log_p, 0)
    return at.gamma * jnp.sum(jnp.where(held, p * log_ratio, 0) - p + at.p)


def _gap(p: Array, u: Array, gamma: Array) -> Array:
    return shares_gap(p, softmax_equilibrium(u, gamma))


def utility_spread(h: ArrayLike, p: ArrayLike) -> UtilitySpread:
    """Mean, SD and 5%–95% range of effective utilities h [m] over connections, p [m] of which have each.

    p are shares or counts, normalised here; where p = 0, h does not matter. The points of the range are interpolated
    between the middles of the shares. Raises UsageError for shapes that differ or a negative share.
    """
    not_negative("utility_spread", p=p)
    h, p = vectors("utility_spread", h=h, p=p)
    return compiled(weighted_spread)(h, p)


def weighted_spread(h: Float[Array, " m"], p: Float[Array, " m"]) -> UtilitySpread:
    """`utility_spread` without its checks."""
    held = p > 0
    p = p / jnp.sum(p)
    h = jnp.where(held, h, jnp.max(jnp.where(held, h, -jnp.inf)))
    mean = jnp.sum(p * h)
    by_utility = jnp.argsort(jnp.where(held, h, jnp.inf))
    share = p[by_utility]
    low, high = jnp.interp(jnp.asarray([TAIL, 1 - TAIL], h.dtype), jnp.cumsum(share) - 0.5 * share, h[by_utility])
    variance = jnp.sum(p * (h - mean) ** 2)
    spread = variance > 0  # √ has no slope at 0
    return UtilitySpread(mean, jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0), low, high)
