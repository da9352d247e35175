"""A density given on a grid: its potential, and how far it is from the lognormal of arbitrage equilibrium.

Integrals are by the trapezoidal rule, which on an even grid converges faster than any power of the step for smooth
densities that fade before the grid ends; the grid may be uneven. Where the density is zero its logarithm may be −∞.
One-dimensional and made for jit, vmap and grad.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import increasing, positive, real, vectors
from teleojax.teleo._equilibrium import UtilitySpread, weighted_spread

HALF_LOG_2PI = 0.9189385332046727


class DensityDistance(eqx.Module):
    """Distance of a density of y = ln x from the equilibrium LN(μ, σ), per connection.

    gap_nats: γ KL(p̂ ‖ LN), the potential gap φ* − φ.  utility: mean, dispersion and 5%–95% range of the effective
    utility ĥ less its equilibrium value h*, so that its mean is −gap_nats.  fisher: relative Fisher information
    E_p̂[(∂ĥ/∂y)²], the mean square utility gradient; gap_nats ≤ ½ σ² · fisher/γ.  mass: ∫p̂ over the grid, 1 for a
    density that fits the grid; expectations are divided by it, ln p̂ itself is taken as it comes.
    """

    gap_nats: Float[Array, ""]
    utility: UtilitySpread
    fisher: Float[Array, ""]
    mass: Float[Array, ""]


def density_potential(y: ArrayLike, log_density: ArrayLike, u: ArrayLike, gamma: ArrayLike = 1.0) -> Float[Array, ""]:
    """Potential of a density on a grid, φ = ∫ p u − γ p ln p, in nats per connection.

    The grid y [n], the density and the α inside u [n] are of one measure: y = x with p per unit of x, or y = ln x with
    p per unit of ln x; both give the same φ. With u = 0 and γ = 1 it is the entropy of p. The density is taken as it
    comes, not normalised. Raises UsageError for shapes that differ, a grid that does not increase, γ not positive.
    """
    positive("density_potential", gamma=gamma)
    return compiled(_potential)(*_on_grid("density_potential", y, log_density, u), real(gamma))


def _potential(y: Array, log_p: Array, u: Array, gamma: Array) -> Array:
    held = log_p > -jnp.inf
    log_p, u = jnp.where(held, log_p, 0), jnp.where(held, u, 0)
    return jnp.sum(jnp.where(held, _weights(y) * jnp.exp(log_p) * (u - gamma * log_p), 0))


def relative_fisher(
    y: ArrayLike,
    log_density: ArrayLike,
    mu: ArrayLike,
    sigma: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    score: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Relative Fisher information of a density of y = ln x, I = E_p̂[(∂ĥ/∂y)²], ∂ĥ/∂y = −γ (s(y) + (y − μ)/σ²).

    It is the mean square utility gradient, in nats² per unit of ln x squared, and 0 only for LN(μ, σ). `score` is
    s = d ln p̂/dy on the grid where it is known; otherwise ln p̂ is differentiated through three points, exactly where it
    is quadratic. Measure d ln x. Raises as `density_distance`.
    """
    return density_distance(y, log_density, mu, sigma, gamma=gamma, score=score).fisher


def density_distance(
    y: ArrayLike,
    log_density: ArrayLike,
    mu: ArrayLike,
    sigma: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    score: ArrayLike | None = None,
) -> DensityDistance:
    """How far a density of y = ln x, given by its logarithm on a grid y [n], is from the equilibrium LN(μ, σ).

    Measure d ln x. ĥ − h* = −γ ln(p̂/q), q the normal density N(μ, σ²) of y; it is the same in measure dx. `score` as
    in `relative_fisher`. Raises UsageError for shapes that differ, fewer than 3 points, a grid that does not increase,
    σ or γ not positive.
    """
    positive("density_distance", sigma=sigma, gamma=gamma)
    grid = _on_grid("density_distance", y, log_density, log_density if score is None else score)
    run = compiled(_distance, "differentiate")
    return run(*grid, real(mu), real(sigma), real(gamma), differentiate=score is None)


def _distance(
    y: Array, log_p: Array, s: Array, mu: Array, sigma: Array, gamma: Array, *, differentiate: bool
) -> DensityDistance:
    held = log_p > -jnp.inf
    log_p = jnp.where(held, log_p, 0)
    p = jnp.where(held, _weights(y) * jnp.exp(log_p), 0)
    mass = jnp.sum(p)
    p = p / mass
    z = (y - mu) / sigma
    log_ratio = log_p + 0.5 * z * z + jnp.log(sigma) + HALF_LOG_2PI
    slope, seen = jnp.where(held, s, 0) + z / sigma, held
    if differentiate:  # a stencil must not reach where there is no density
        ends = jnp.concatenate([held[2:3], held, held[-3:-2]])
        slope, seen = _slope(y, log_ratio), ends[:-2] & held & ends[2:]
    return DensityDistance(
        gap_nats=gamma * jnp.sum(p * log_ratio),
        utility=weighted_spread(-gamma * log_ratio, p),
        fisher=gamma**2 * jnp.sum(jnp.where(seen, p * slope**2, 0)),
        mass=mass,
    )


def _on_grid(where: str, y: ArrayLike, log_density: ArrayLike, other: ArrayLike) -> tuple[Array, ...]:
    increasing(where, y=y)
    arrays = vectors(where, y=y, log_density=log_density, other=other)
    if arrays[0].size < 3:
        raise UsageError(where, found=f"{arrays[0].size} points", needed="3 or more", remedy="Use a finer grid.")
    return arrays


def _weights(y: Float[Array, " n"]) -> Float[Array, " n"]:
    half = 0.5 * jnp.diff(y)
    return jnp.pad(half, (0, 1)) + jnp.pad(half, (1, 0))


def _slope(y: Float[Array, " n"], f: Float[Array, " n"]) -> Float[Array, " n"]:
    """Slope at each point of the parabola through it and its neighbours; at an end, through the next two."""
    step = jnp.diff(y)
    secant = jnp.diff(f) / step
    before, after = step[:-1], step[1:]
    bend = (secant[1:] - secant[:-1]) / (before + after)
    inner = secant[:-1] + bend * before
    return jnp.concatenate([secant[:1] - bend[:1] * before[:1], inner, secant[-1:] + bend[-1:] * after[-1:]])
