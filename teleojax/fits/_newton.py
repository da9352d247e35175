"""Damped Newton for many small maximisations side by side: pure JAX, to be compiled in float64."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

MAX_MOVE = 1.5  # of any coordinate in one step: most are logarithms, so a factor of 4.5
CONVERGED = 1e-14  # nats a value that the last step promised: parameters are then settled to 1e-8 of themselves
DAMPING_START, DAMPING_LEAST, DAMPING_MOST = 1e-3, 1e-12, 1e12
NOISE = 1e-14  # relative: a likelihood may fall by this much in rounding


class Maximum(eqx.Module):
    """Where the ascent ended: `theta`, the objective, its `information` (minus the Hessian), whether it converged."""

    theta: Float[Array, " p"]
    value: Float[Array, ""]
    information: Float[Array, "p p"]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


class _State(eqx.Module):
    theta: Array
    value: Array
    gradient: Array
    hessian: Array
    damping: Array
    promised: Array
    steps: Array


def maximise(
    objective: Callable[[Array], Array], start: Array, low: Array, high: Array, max_steps: Array | int
) -> Maximum:
    """Maximise a smooth function from `start` within a box, by Newton steps damped as Levenberg and Marquardt do.

    A coordinate that presses against its bound is held there. It has converged when the gain that a step promised,
    ½ gᵀA⁻¹g, is below CONVERGED, also where a ridge runs on for ever: there the parameters tell, not the status.
    """
    eye = jnp.eye(start.size)

    def slope(theta: Array) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(objective)(theta)
        return gradient, (value, gradient)

    measure = jax.jacfwd(slope, has_aux=True)  # Hessian, value and gradient in one evaluation

    def advance(state: _State) -> _State:
        held = ((state.theta <= low) & (state.gradient < 0)) | ((state.theta >= high) & (state.gradient > 0))
        free = jnp.where(held, 0.0, 1.0)
        gradient = state.gradient * free
        curvature = -state.hessian * free[:, None] * free[None, :]
        size = jnp.maximum(jnp.abs(jnp.diagonal(curvature)), 1e-10)
        damped = curvature + eye * (state.damping * size + (1 - free))
        step = jnp.linalg.solve(damped, gradient)
        promised = 0.5 * jnp.dot(gradient, step)
        step = step * jnp.minimum(1.0, MAX_MOVE / jnp.maximum(jnp.max(jnp.abs(step)), 1e-300))
        theta = jnp.clip(state.theta + step, low, high)
        hessian, (value, new_gradient) = measure(theta)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(new_gradient)) & jnp.all(jnp.isfinite(hessian))
        rises = (value >= state.value - NOISE * (1 + jnp.abs(value))) | (state.steps == 0)
        better = finite & rises & (promised >= 0)
        damping = jnp.where(better, state.damping / 10, jnp.maximum(state.damping, DAMPING_START) * 10)
        return _State(
            jnp.where(better, theta, state.theta),
            jnp.where(better, value, state.value),
            jnp.where(better, new_gradient, state.gradient),
            jnp.where(better, hessian, state.hessian),
            jnp.clip(damping, DAMPING_LEAST, DAMPING_MOST),
            jnp.where(better & (state.steps > 0), promised, state.promised),
            state.steps + 1,
        )

    def goes_on(state: _State) -> Array:
        return (state.promised > CONVERGED) & (state.steps < max_steps) & (state.damping < DAMPING_MOST)

    # the first step stands still: it evaluates the start, so that the program holds one copy of the likelihood
    nowhere = jnp.asarray(-jnp.inf)
    begin = _State(
        jnp.clip(start, low, high),
        nowhere,
        jnp.zeros(start.size),
        -eye,
        jnp.asarray(DAMPING_START),
        -nowhere,
        jnp.asarray(0),
    )
    end = lax.while_loop(goes_on, advance, begin)
    return Maximum(end.theta, end.value, -end.hessian, end.promised <= CONVERGED, end.steps)
