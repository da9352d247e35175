"""Two dynamics on m categories that climb the potential φ(p) = Σ p u − γ Σ p ln p to p* = softmax(u/γ).

* replicator: ṗ_i = p_i (h_i − h̄), h_i = u_i − γ ln p_i, h̄ = Σ p_i h_i. A share grows by its effective utility above
  the mean. It is linear in ln p, so with u fixed p_i(t) ∝ p_i(0)^a exp((1 − a) u_i/γ), a = e^{−γt}.
* logit: ṗ = softmax(u/γ) − p. At rate 1 a connection chooses anew: the category whose u_i + γ ε_i is largest, ε_i
  independent Gumbel shocks. The perturbed best response has the entropy term as its perturbation (Hofbauer & Sandholm
  2002, Econometrica 70, 2265): competition is in the choice, not in u. p(t) = p* + e^{−t} (p(0) − p*).

Along either φ never falls. A share that is zero stays zero under the replicator, and grows under logit. All of it is
computed in ln p; u carries the measure, with the α of the measure in which the categories have equal width.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import known, not_negative, one_of, positive, real, vectors
from teleojax.teleo._equilibrium import shares_potential, softmax_equilibrium

METHODS = ("exact", "runge-kutta")
Utility = Callable[[Array], Array]  # of the shares


class Trajectory(eqx.Module):
    """Shares along a path: `t`, `p` and its logarithm with categories last, the potential φ in nats per connection."""

    t: Float[Array, "*t"]
    p: Float[Array, "*t m"]
    log_p: Float[Array, "*t m"]
    potential: Float[Array, "*t"]


def replicator(
    p0: ArrayLike,
    u: ArrayLike | Utility,
    t: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    method: str = "exact",
    n_steps: int = 64,
) -> Trajectory:
    """Replicator dynamics ṗ_i = p_i (h_i − h̄) from shares p0 [m], at a time or at times t.

    Args:
        p0: shares; normalised here.
        u: utilities [m] before competition; or a function of the shares, for a game in which they depend on them.
        t: ≥ 0; one time, or several in ascending order.
        gamma: competition.
        method: "exact", the closed form, for fixed u; "runge-kutta", fourth order in ln p, for either.
        n_steps: of "runge-kutta", from one of the times to the next.

    `potential` is Σ p u(p) − γ Σ p ln p; that it never falls holds for fixed u. Raises UsageError for shapes that do
    not fit, a negative share or time, γ not positive, "exact" with a function.
    """
    where = "replicator"
    one_of(where, METHODS, method=method)
    if callable(u) and method == "exact":
        raise UsageError(
            where,
            found="u as a function of the shares",
            needed="fixed utilities for method 'exact'",
            remedy="Pass method='runge-kutta'.",
        )
    if n_steps < 1:
        raise UsageError(where, found=f"n_steps = {n_steps}", needed="1 or more", remedy="Correct n_steps.")
    log_p0, utilities, t, gamma = _start(where, p0, p0 if callable(u) else u, t, gamma)
    if callable(u):  # it may hold traced values, so its path is compiled with whatever calls this
        return _integrated(log_p0, utilities, t, gamma, n_steps=n_steps, utility=u)
    if method == "exact":
        return compiled(_exact)(log_p0, utilities, t, gamma)
    return compiled(_integrated, "n_steps")(log_p0, utilities, t, gamma, n_steps=n_steps)


def logit_dynamics(p0: ArrayLike, u: ArrayLike, t: ArrayLike, *, gamma: ArrayLike = 1.0) -> Trajectory:
    """Logit dynamics ṗ = softmax(u/γ) − p from shares p0 [m] at utilities u [m], at a time or at times t ≥ 0; exact.

    ln p(t) = ln(e^{−t} p(0) + (1 − e^{−t}) p*), by logaddexp. p0 is normalised here. Raises as `replicator`.
    """
    log_p0, u, t, gamma = _start("logit_dynamics", p0, u, t, gamma)
    return compiled(_logit)(log_p0, u, t, gamma)


def _start(where: str, p0: ArrayLike, u: ArrayLike, t: ArrayLike, gamma: ArrayLike) -> tuple[Array, ...]:
    positive(where, gamma=gamma)
    not_negative(where, p0=p0, t=t)
    seen = known(p0)
    p0, u = vectors(where, p0=p0, u=u)
    if seen is not None and not seen.any():
        raise UsageError(where, found="p0 all zero", needed="some share above 0", remedy="Correct p0.")
    if jnp.ndim(t) > 1:
        found = f"t of shape {jnp.shape(t)}"
        raise UsageError(where, found=found, needed="one time, or a row of times", remedy="Flatten t.")
    held = p0 > 0
    log_p0 = jnp.where(held, jnp.log(jnp.where(held, p0, 1)) - jnp.log(jnp.sum(p0)), -jnp.inf)
    dtype = jnp.promote_types(p0.dtype, u.dtype)
    return log_p0.astype(dtype), u.astype(dtype), real(t).astype(dtype), real(gamma).astype(dtype)


def _exact(log_p0: Array, u: Array, t: Array, gamma: Array) -> Trajectory:
    held = log_p0 > -jnp.inf
    start = jnp.where(held, log_p0, 0)

    def after(time: Array) -> Array:
        pull = -jnp.expm1(-gamma * time)
        return _normalised((1 - pull) * start + pull * u / gamma, held)

    return _trajectory(lambda _: u, jax.vmap(after)(t.reshape(-1)), t, gamma)


def _logit(log_p0: Array, u: Array, t: Array, gamma: Array) -> Trajectory:
    held = log_p0 > -jnp.inf
    start, rest = jnp.where(held, log_p0, 0), softmax_equilibrium(u, gamma).log_p

    def after(time: Array) -> Array:
        later = time > 0
        come = jnp.log(jnp.where(later, -jnp.expm1(-time), 1)) + rest
        mixed = jnp.where(held, jnp.logaddexp(start - time, come), come)
        return jnp.where(later, mixed, log_p0)

    return _trajectory(lambda _: u, jax.vmap(after)(t.reshape(-1)), t, gamma)


def _integrated(
    log_p0: Array, u: Array, t: Array, gamma: Array, *, n_steps: int, utility: Utility | None = None
) -> Trajectory:
    """Runge–Kutta in ln p, whose normalisation takes the place of h̄; `utility` of the shares in place of u."""
    held = log_p0 > -jnp.inf
    of_shares = utility or (lambda _: u)

    def slope(log_p: Array) -> Array:
        whole = _normalised(log_p, held)
        return jnp.where(held, of_shares(jnp.exp(whole)) - gamma * jnp.where(held, whole, 0), 0)

    def advance(log_p: Array, duration: Array) -> tuple[Array, Array]:
        step = duration / n_steps

        def once(log_p: Array, _: None) -> tuple[Array, None]:
            k1 = slope(log_p)
            k2 = slope(log_p + 0.5 * step * k1)
            k3 = slope(log_p + 0.5 * step * k2)
            k4 = slope(log_p + step * k3)
            moved = _normalised(log_p + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), held)
            return jnp.where(held, moved, 0), None

        log_p, _ = lax.scan(once, log_p, None, length=n_steps)
        return log_p, _normalised(log_p, held)

    durations = jnp.diff(t.reshape(-1), prepend=jnp.zeros(1, t.dtype))
    return _trajectory(of_shares, lax.scan(advance, jnp.where(held, log_p0, 0), durations)[1], t, gamma)


def _normalised(log_p: Array, held: Array) -> Array:
    return jax.nn.log_softmax(jnp.where(held, log_p, -jnp.inf))


def _trajectory(utility: Utility, log_p: Array, t: Array, gamma: Array) -> Trajectory:
    p = jnp.exp(log_p)
    potential = jax.vmap(lambda each: shares_potential(each, utility(each), gamma))(p)
    shape = (*t.shape, p.shape[-1])
    return Trajectory(t, p.reshape(shape), log_p.reshape(shape), potential.reshape(t.shape))
