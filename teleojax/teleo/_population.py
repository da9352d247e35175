"""A finite population that plays the game: M connections in m categories, moving for effective utility.

With M_i in category i, h_i = u_i − γ ln M_i. A move from i to j changes M φ by h_j(M_j + 1) − h_i(M_i), exactly, where
φ is counted with ln(M!/ΠM_i!) in place of its Stirling limit. Two kinds of move, each reversible for the same law

    π(M_1 … M_m) ∝ M!/ΠM_i! · exp(Σ M_i u_i/γ),      the multinomial with shares p* = softmax(u/γ):

* "single": one connection, drawn at random, looks at where another is, or at one of the vacant places of which every
  category has one, again at random; so category j with probability proportional to M_j + 1, itself left out. It moves
  with probability min(1, exp((h_j(M_j + 1) − h_i(M_i))/γ)): always to higher effective utility, sometimes to lower.
* "pairs": all categories are paired at random, and each pair settles: what many single moves between its two categories
  come to is drawn at once. Given their total N, that law is binomial, M_i ~ Bin(N, 1/(1 + exp((u_j − u_i)/γ))), under
  which h_i = h_j up to the fluctuation of N connections. About half of the population moves in a step.

At rest shares fluctuate: E[φ* − φ] = γ (m − 1)/(2M) with SD γ √((m − 1)/2)/M, to first order in 1/M, and the utility
dispersion is near γ √((m − 1)/M), all for categories that hold more than a few. u carries the measure.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int32, PRNGKeyArray

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import known, not_negative, one_of, positive, real, vectors
from teleojax.teleo._equilibrium import shares_gap, softmax_equilibrium

MOST_AGENTS = 1 << 30  # counts, and agents and vacancies together, are int32
BATCHES = 16
PARCEL = 1 << 20  # draws of more are biased in float32: a binomial is drawn in parcels of at most this many


class Population(eqx.Module):
    """What a simulation leaves: `counts` after the last step, and over all steps a record.

    mean_shares: M_i/M averaged over the steps after `burn_in`.  mean_shares_se: its standard error from the means of 16
    batches of steps, each of which should be long beside the time that shares take to forget; NaN for fewer steps than
    batches.  potential: φ after each step, and gap: φ* − φ, both with Σ p ln p for the entropy, nats per connection.
    dispersion: share-weighted SD of effective utility, nats.
    """

    counts: Int32[Array, " m"]
    mean_shares: Float[Array, " m"]
    mean_shares_se: Float[Array, " m"]
    potential: Float[Array, " t"]
    gap: Float[Array, " t"]
    dispersion: Float[Array, " t"]


def simulate_population(
    key: PRNGKeyArray,
    u: ArrayLike,
    n_agents: int,
    n_steps: int,
    *,
    gamma: ArrayLike = 1.0,
    start: ArrayLike | None = None,
    burn_in: ArrayLike = 0,
    move: str = "pairs",
) -> Population:
    """Play the game of utilities u [m] with `n_agents` connections for `n_steps`, exactly right at rest for any number.

    Args:
        key: PRNG key. Replicas are `jax.vmap` over keys.
        u: utilities before competition; differences are in nats at γ = 1.
        n_agents: M, at most 2³⁰.
        n_steps: of the chosen `move`; its number is compiled in.
        gamma: competition.
        start: counts [m] to begin with, of sum M; spread evenly unless given.
        burn_in: steps left out of `mean_shares`.
        move: "pairs" or "single".

    Raises UsageError for u that is not one-dimensional, γ not positive, counts that do not sum to M, numbers of agents
    or steps out of range, all steps burnt in.
    """
    where = "simulate_population"
    one_of(where, tuple(MOVES), move=move)
    positive(where, gamma=gamma)
    (u,) = vectors(where, u=u)
    n_agents, n_steps = operator.index(n_agents), operator.index(n_steps)
    if not 1 <= n_agents <= MOST_AGENTS:
        raise UsageError(where, found=f"n_agents = {n_agents}", needed=f"1 to {MOST_AGENTS}", remedy="Correct it.")
    if n_steps < 1:
        raise UsageError(where, found=f"n_steps = {n_steps}", needed="1 or more", remedy="Correct n_steps.")
    not_negative(where, burn_in=burn_in)
    skipped = known(burn_in)
    if skipped is not None and not skipped < n_steps:
        needed = f"burn_in under n_steps = {n_steps}"
        raise UsageError(where, found=f"burn_in = {skipped}", needed=needed, remedy="Play longer.")
    counts = _even(n_agents, u.size) if start is None else jnp.asarray(start, jnp.int32)
    vectors(where, u=u, start=counts)
    seen = None if start is None else known(start)
    if seen is not None and (seen.min() < 0 or seen.sum(dtype="int64") != n_agents):
        raise UsageError(
            where,
            found=f"start with sum {seen.sum(dtype='int64')}, least {seen.min()}",
            needed=f"counts ≥ 0 of sum n_agents = {n_agents}",
            remedy="Correct start or n_agents.",
        )
    parcels = -(-n_agents // PARCEL) if u.dtype == jnp.float32 else 1
    run = compiled(_play, "n_steps", "move", "parcels")
    numbers = jnp.asarray(n_agents, jnp.int32), jnp.asarray(burn_in, jnp.int32)
    return run(key, u, real(gamma).astype(u.dtype), counts, *numbers, n_steps=n_steps, move=move, parcels=parcels)


def _even(n_agents: int, m: int) -> Array:
    return n_agents // m + (jnp.arange(m) < n_agents % m).astype(jnp.int32)


def _play(
    key: PRNGKeyArray,
    u: Float[Array, " m"],
    gamma: Array,
    counts: Int32[Array, " m"],
    n_agents: Array,
    burn_in: Array,
    *,
    n_steps: int,
    move: str,
    parcels: int,
) -> Population:
    at = softmax_equilibrium(u, gamma)
    scaled = u / gamma
    kept = n_steps - burn_in

    def batches(number: Array) -> tuple[Array, Array]:
        """The batch of a step, and how many steps of that batch came before it."""
        place = jnp.maximum(number - burn_in, 0)
        batch = place * BATCHES // kept
        return batch, place - (batch * kept + BATCHES - 1) // BATCHES

    def step(state: tuple[Array, Array], each: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        counts, means = state
        number, step_key = each
        counts = MOVES[move](step_key, counts, scaled, n_agents, parcels)
        p = (counts / n_agents).astype(u.dtype)
        batch, earlier = batches(number)
        update = jnp.where(number >= burn_in, (p - means[batch]) / (earlier + 1).astype(u.dtype), 0)
        return (counts, means.at[batch].add(update)), (shares_gap(p, at), _dispersion(p, at.log_p, gamma))

    each = jnp.arange(n_steps), jax.random.split(key, n_steps)
    (counts, means), (gap, dispersion) = lax.scan(step, (counts, jnp.zeros((BATCHES, u.size), u.dtype)), each)
    ends = (jnp.arange(BATCHES + 1) * kept + BATCHES - 1) // BATCHES
    weights = (jnp.diff(ends) / kept).astype(u.dtype)[:, None]
    mean = jnp.sum(weights * means, axis=0)
    se = jnp.sqrt(jnp.sum(weights * (means - mean) ** 2, axis=0) / (BATCHES - 1))
    se = jnp.where(kept >= BATCHES, se, jnp.nan)
    return Population(counts, mean, se, at.potential - gap, gap, dispersion)


def _dispersion(p: Array, log_rest: Array, gamma: Array) -> Array:
    """SD over connections of h − h* = γ ln(p*/p)."""
    held = p > 0
    h = jnp.where(held, log_rest - jnp.log(jnp.where(held, p, 1)), 0)
    return gamma * jnp.sqrt(jnp.sum(p * (h - jnp.sum(p * h)) ** 2))


def _pairs(key: Array, counts: Array, scaled: Array, n_agents: Array, parcels: int) -> Array:
    """Pair the categories at random; split the connections of each pair as its equilibrium law does."""
    del n_agents
    pairing, splitting = jax.random.split(key)
    m = counts.size
    order = jax.random.permutation(pairing, m)
    i, j = order[: m // 2], order[m // 2 : 2 * (m // 2)]
    low = scaled[i] <= scaled[j]
    i, j = jnp.where(low, i, j), jnp.where(low, j, i)  # the less likely category, whose probability float32 resolves
    total = counts[i] + counts[j]
    parcel = total[None] // parcels + (jnp.arange(parcels)[:, None] < total % parcels)
    drawn = jax.random.binomial(splitting, parcel, jax.nn.sigmoid(scaled[i] - scaled[j]), dtype=scaled.dtype)
    gone = jnp.sum(drawn.astype(jnp.int32), axis=0, dtype=jnp.int32)
    return counts.at[i].set(gone).at[j].set(total - gone)


def _single(key: Array, counts: Array, scaled: Array, n_agents: Array, parcels: int) -> Array:
    """One connection considers one place."""
    del parcels
    who, place, chance = jax.random.split(key, 3)
    m = counts.size
    i = _holder(counts, jax.random.randint(who, (), 0, n_agents))
    others = counts.at[i].add(-1)
    # of the n_agents − 1 others and the m vacancies
    which = jax.random.randint(place, (), 0, n_agents - 1 + m)
    vacant = which - (n_agents - 1)
    j = jnp.where(vacant >= 0, vacant, _holder(others, which))
    before = scaled[i] - jnp.log(counts[i].astype(scaled.dtype))
    after = scaled[j] - jnp.log((others[j] + 1).astype(scaled.dtype))
    moves = jnp.log(jax.random.uniform(chance, dtype=scaled.dtype)) < after - before
    return jnp.where(moves, others.at[j].add(1), counts)


def _holder(counts: Array, number: Array) -> Array:
    """The category that holds the connection of that number."""
    return jnp.searchsorted(jnp.cumsum(counts, dtype=jnp.int32), number, side="right")


MOVES: dict[str, Callable[[Array, Array, Array, Array, int], Array]] = {"pairs": _pairs, "single": _single}
