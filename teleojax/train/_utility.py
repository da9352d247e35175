"""`add_utility_gradient`: a step of every connection towards higher effective utility, for an optax chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from teleojax._errors import UsageError
from teleojax.train._score import LEAST, N_BINS, look_up, score_excess, standardised
from teleojax.train._sharding import automatic

BOUND = 10.0


class UtilityGradientState(NamedTuple):
    """Steps taken, and for each parameter the table of its score at the last refresh, in standard units."""

    steps: Array
    tables: Any


def add_utility_gradient(
    strength: ArrayLike | Callable[[Array], ArrayLike],
    target: Any = None,
    *,
    every: ArrayLike = 1,
    bound: ArrayLike = BOUND,
    mask: Any = None,
) -> Any:
    """An optax transformation that adds −strength · w · ∂ĥ/∂ln|w| to the updates of every weight matrix.

    ∂ĥ/∂y = (α + 1) − 2βy − s(y), y = ln|w|, is the force with which a connection would move to gain effective utility;
    s is the score of the layer's own density of y, estimated at each step. After `optax.sgd(lr)` with strength 1, ln|w|
    moves by lr · ∂ĥ/∂y: the natural gradient flow of the potential in ln|w|, whose rest is arbitrage equilibrium.
    Signs stay, and no weight crosses zero while lr · strength · bound < 1.

        optimiser = optax.chain(tj.train.add_utility_gradient(1e-3), optax.adam(1e-3))    # as a loss term
        optimiser = optax.chain(optax.scale_by_adam(), tj.train.add_utility_gradient(1e-2), optax.scale(-1e-3))

    the second decoupled from Adam, as `optax.add_decayed_weights` is.

    Args:
        strength: a number, traced or not, or a schedule of the step. With 0 the updates pass bit for bit.
        target: (α, β) of the measure dx towards which every layer is driven. None: the layer's own, of its mean and
            variance of y at the step; these then stay and the shape alone becomes lognormal.
        every: steps after which the score is estimated anew; in between the last one serves, in standard units.
        bound: the largest |∂ĥ/∂y|.
        mask: tree of booleans like the parameters, or a function that makes one: where the gradient is added.

    Parameters of fewer than 64 finite non-zero values, or all of one magnitude, and leaves that are not of a real
    floating-point type pass unchanged; zeros, NaN and infinities stay as they are. Under jit with sharded parameters
    the result is that of the whole layer. The state is a NamedTuple of arrays: 4.6 kB a parameter array with `every`
    above 1, else nothing. `every` and `bound` may be injected hyperparameters; a `mask` that is a function needs
    static_args="mask" there.

    Raises UsageError for a target that is none, every < 1, bound ≤ 0, and on update without parameters.
    """
    import optax

    _check(target, every, bound)
    each_step = isinstance(every, int) and every == 1

    def init(params: Any) -> UtilityGradientState:
        tables = jax.tree.map(lambda w: None if each_step or not _is_layer(w) else jnp.zeros(N_BINS + 1), params)
        return UtilityGradientState(jnp.zeros((), jnp.int32), tables)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, UtilityGradientState]:
        if params is None:
            raise UsageError(
                "add_utility_gradient",
                found="no parameters",
                needed="the parameters in update",
                remedy="Call optimiser.update(gradients, state, params).",
            )
        size = strength(state.steps) if callable(strength) else strength
        limit = jnp.asarray(bound, jnp.float32)
        anew = each_step or state.steps % jnp.asarray(every).astype(jnp.int32) == 0

        def one(u: Any, w: Any, old: Any) -> tuple[Any, Any]:
            if u is None or not _is_layer(w):
                return u, old
            if each_step:
                table, kept = automatic(_table, w), None
            else:
                table = kept = automatic(lambda w, due, old: lax.cond(due, _table, lambda _: old, w), w, anew, old)
            change = automatic(lambda w, table, bound: _change(w, table, target, bound), w, table, limit, keep=True)
            return jnp.where(jnp.equal(size, 0), u, u + (size * change).astype(u.dtype)), kept

        leaves, structure = jax.tree.flatten(updates, is_leaf=lambda u: u is None)
        held = structure.flatten_up_to(params)
        old = [None] * len(leaves) if each_step else structure.flatten_up_to(state.tables)
        done = [one(*x) for x in zip(leaves, held, old, strict=True)]
        new = UtilityGradientState(state.steps + 1, structure.unflatten([table for _, table in done]))
        return structure.unflatten([u for u, _ in done]), new

    transformation = optax.GradientTransformation(init, update)
    return transformation if mask is None else optax.masked(transformation, mask)


def _table(w: Array) -> Array:
    return score_excess(standardised(w))


def _change(w: Array, table: Array, target: tuple[float, float] | None, bound: Array) -> Array:
    """−w ∂ĥ/∂y of every value, 0 where there is no gradient."""
    z = standardised(w)
    excess = look_up(table, z.t)
    if target is None:
        gradient = -excess / z.sigma
    else:
        alpha, beta = target
        gradient = (alpha + 1) - 2 * beta * (z.mu + z.sigma * z.t) - (excess - z.t) / z.sigma
    gradient = jnp.where(z.seen & z.usable, jnp.clip(gradient, -bound, bound), 0)
    # NaN and infinities stay as they are: their change is 0, not 0 · ∞
    return -jnp.where(z.seen, w, 0) * gradient.astype(w.dtype)


def _is_layer(w: Any) -> bool:
    return hasattr(w, "dtype") and jnp.issubdtype(w.dtype, jnp.floating) and w.size >= LEAST


def _check(target: Any, every: Any, bound: Any) -> None:
    if target is not None:
        numbers = isinstance(target, tuple | list) and len(target) == 2
        if not (numbers and math.isfinite(target[0]) and 0 < target[1] < math.inf):
            raise UsageError(
                "target",
                found=repr(target),
                needed="(alpha, beta) of the measure dx, beta > 0",
                remedy="Take them from teleo.utility_parameters(mu, sigma), say.",
            )
    for name, value, least in (("every", every, 1), ("bound", bound, 0)):
        if isinstance(value, int | float) and (value < least or value <= 0):
            raise UsageError(name, found=f"{value}", needed=f"more than 0, {name} at least {least}", remedy="Raise it.")
