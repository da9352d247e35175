"""Every start to its maximum, natural parameters and standard errors beside: pure JAX."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float, Int

from teleojax.families import Family
from teleojax.fits._newton import maximise

Values = Any  # NumPy from the host, or JAX within a program


class Points(eqx.Module):
    """Values of y = ln x less the centre and their shares, which sum to 1; padding has weight 0."""

    y: Float[Values, "*lanes nodes"]
    weight: Float[Values, "*lanes nodes"]

    def loglik(self, family: Family, theta: Float[Array, " p"]) -> Array:
        """Mean log-density of y."""
        return jnp.sum(jnp.where(self.weight != 0, self.weight * family.log_density(self.y, theta), 0))


class Cells(eqx.Module):
    """Cells of y with quadrature points: a cell has log-probability logsumexp(log-density + log_volume)."""

    y: Float[Values, "*lanes cells points"]
    log_volume: Float[Values, "*lanes cells points"]
    weight: Float[Values, "*lanes cells"]

    def loglik(self, family: Family, theta: Float[Array, " p"]) -> Array:
        """Mean log-probability of the cells."""
        each = logsumexp(family.log_density(self.y, theta) + self.log_volume, axis=-1)
        return jnp.sum(jnp.where(self.weight != 0, self.weight * each, 0))


class Intervals(eqx.Module):
    """Cells between positive edges, and those that begin at x = 0; all weights together sum to 1."""

    inside: Cells
    at_zero: Cells

    def loglik(self, family: Family, theta: Float[Array, " p"]) -> Array:
        """Mean log-probability of the cells."""
        return self.inside.loglik(family, theta) + self.at_zero.loglik(family, theta)


class Solved(eqx.Module):
    """The maximum of each lane: `value` in nats a value, natural parameters and their standard errors.

    `theta_se` are standard errors of the unconstrained parameters; NaN, like `se`, where the information is not
    positive definite.
    """

    theta: Float[Values, "*lanes p"]
    value: Float[Values, "*lanes"]
    converged: Bool[Values, "*lanes"]
    steps: Int[Values, "*lanes"]
    theta_se: Float[Values, "*lanes p"]
    params: dict[str, Values]
    se: dict[str, Values]


def solve(
    data: Points | Intervals,
    start: Float[Values, "lanes p"],
    centre: Float[Values, " lanes"],
    n: Float[Values, " lanes"],
    max_steps: Int[Values, ""],
    *,
    family: Family,
) -> Solved:
    """Solve every lane from its start; n values stand behind the mean likelihood of each."""
    low, high = (jnp.asarray(bound) for bound in zip(*family.bounds, strict=True))

    def one(data: Points | Intervals, start: Array, centre: Array, n: Array) -> Solved:
        end = maximise(lambda theta: data.loglik(family, theta), start, low, high, max_steps)
        root = jnp.linalg.cholesky(end.information)
        half = jax.scipy.linalg.solve_triangular(root, jnp.eye(start.size), lower=True)
        covariance = half.T @ half / n
        slopes = jax.jacfwd(family.constrain)(end.theta, centre)
        se = {k: jnp.sqrt(jnp.einsum("...i,ij,...j->...", j, covariance, j)) for k, j in slopes.items()}
        params, theta_se = family.constrain(end.theta, centre), jnp.sqrt(jnp.diagonal(covariance))
        return Solved(end.theta, end.value, end.converged, end.steps, theta_se, params, se)

    return jax.vmap(one)(data, start, centre, n)
