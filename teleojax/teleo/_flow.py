"""The flow of connections along their utility gradient, dy/dt = ∂ĥ/∂y, in y = ln x and measure d ln x.

With the equilibrium LN(μ, σ) and the score s = d ln p/dy of the ensemble as it is at the time,

    dy/dt = −(y − μ)/σ² − s(y),

whose density obeys the Ornstein–Uhlenbeck Fokker–Planck equation (McKean–Vlasov; with competition γ ≠ 1 time runs γ
times as fast). Its law at t is therefore known without a step in time: with a = exp(−t/σ²), Y_t has the law of
μ + a (Y_0 − μ) + σ √(1 − a²) Z, Z ~ N(0, 1). Two motions have this law:

* deterministic: the gradient flow itself. On a line it cannot change the order of values, so it takes each to the same
  quantile of the later law, y(t) = F_t⁻¹(F_0(y)), exactly; no score is estimated.
* Langevin: dy = −(y − μ)/σ² dt + √2 dW, whose transition is the formula above, drawn afresh for each value.

The potential gap falls at least as fast as exp(−2t/σ²).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.teleo._arguments import known, not_negative, one_of, positive, real, vectors

METHODS = ("deterministic", "langevin")
DENSITIES = ("empirical", "lognormal")
SETTLED = 1e-4  # of a kernel's width: quantiles are solved to this before the last step, which squares it
MAX_STEPS = 60  # of safeguarded Newton; halving alone settles in 25
REACH = 9.0  # kernel widths beyond the outermost kernel: no quantile of 1 in 10¹⁸ lies outside


def utility_flow(
    y: ArrayLike,
    mu: ArrayLike,
    sigma: ArrayLike,
    t: ArrayLike,
    *,
    method: str = "deterministic",
    density: str = "empirical",
    key: PRNGKeyArray | None = None,
    n_bins: int = 1024,
) -> Float[Array, " n"]:
    """Where the values y = ln x [n] are after time t of the flow to LN(μ, σ); measure d ln x, t in units of y².

    Args:
        y: logarithms of connection strengths, finite.
        mu, sigma: of the equilibrium, mean and standard deviation of y there.
        t: time, ≥ 0; the slowest mode falls by e in σ².
        method: "deterministic", the gradient flow of the ensemble; or "langevin", the noise-driven motion with the same
            law, which needs a `key`.
        density: for the deterministic flow, the ensemble's law at t = 0. "empirical": that of the values themselves,
            each smoothed by one of `n_bins` equal bins over their range. "lognormal": the normal law of y with their
            mean and variance, for which the flow is the affine map to N(μ + a (m − μ), σ² + a² (v − σ²)).
        key: PRNG key.
        n_bins: quantiles are solved for the centres of this many bins, and interpolated between. Work and memory grow
            as their square. More are needed where a few values lie hundreds of standard deviations out.

    The deterministic flow may be differentiated: for y it gives the slope of the map with the ensemble's law held.

    Raises UsageError for y that is not one-dimensional or not finite, σ not positive, t negative, a missing key.
    """
    where = "utility_flow"
    one_of(where, METHODS, method=method)
    one_of(where, DENSITIES, density=density)
    positive(where, sigma=sigma)
    not_negative(where, t=t)
    seen = known(y)
    (y,) = vectors(where, y=y)
    if seen is not None and not np.isfinite(seen).all():
        found = f"{int((~np.isfinite(seen)).sum())} of {y.size} values of y not finite"
        raise UsageError(where, found=found, needed="finite ln x", remedy="Leave out zeros, infinities and NaN.")
    if n_bins < 8:
        raise UsageError(where, found=f"n_bins = {n_bins}", needed="8 or more", remedy="Use more bins.")
    mu, sigma, t = (real(v).astype(y.dtype) for v in (mu, sigma, t))
    if method == "langevin":
        if key is None:
            raise UsageError(where, found="no key", needed="a PRNG key", remedy="Pass key=jax.random.key(seed).")
        return compiled(_langevin)(key, y, mu, sigma, t)
    if density == "lognormal":
        return compiled(_affine)(y, mu, sigma, t)
    return compiled(_transport, "n_bins")(y, mu, sigma, t, n_bins=n_bins)


def _memory(sigma: Array, t: Array) -> tuple[Array, Array]:
    """a = exp(−t/σ²), and the variance σ² (1 − a²) that has come in."""
    rate = t / sigma**2
    return jnp.exp(-rate), -(sigma**2) * jnp.expm1(-2 * rate)


def _langevin(key: PRNGKeyArray, y: Array, mu: Array, sigma: Array, t: Array) -> Array:
    a, variance = _memory(sigma, t)
    return mu + a * (y - mu) + jnp.sqrt(variance) * jax.random.normal(key, y.shape, y.dtype)


def _affine(y: Array, mu: Array, sigma: Array, t: Array) -> Array:
    a, variance = _memory(sigma, t)
    mean = jnp.mean(y)
    v = jnp.mean((y - mean) ** 2)
    stretch = jnp.where(v > 0, jnp.sqrt(a**2 + variance / jnp.where(v > 0, v, 1)), 1)
    return mu + a * (mean - mu) + stretch * (y - mean)


def _transport(y: Array, mu: Array, sigma: Array, t: Array, *, n_bins: int) -> Array:
    """y + (F_t⁻¹(F_0(c)) − c), the displacement interpolated between centres c of occupied bins.

    F_0 is a mixture of normal kernels at the centres, one bin in width; so F_t is one at their images, wider by what
    has come in.
    """
    ensemble = lax.stop_gradient(y)
    low, high = jnp.min(ensemble), jnp.max(ensemble)
    width = jnp.maximum((high - low) / (n_bins - 1), jnp.finfo(y.dtype).eps * jnp.maximum(jnp.abs(low), sigma))
    centres = low + width * jnp.arange(n_bins, dtype=y.dtype)
    nearest = jnp.clip(jnp.round((ensemble - low) / width).astype(jnp.int32), 0, n_bins - 1)
    counts = jnp.zeros(n_bins, jnp.int32).at[nearest].add(1)
    displacement = _displacement(centres, counts, width, mu, sigma, t)
    place = (y - low) / width
    left = jnp.clip(lax.stop_gradient(place).astype(jnp.int32), 0, n_bins - 2)
    share = place - left
    return y + (1 - share) * displacement[left] + share * displacement[left + 1]


def _displacement(
    centres: Float[Array, " k"], counts: Array, width: Array, mu: Array, sigma: Array, t: Array
) -> Float[Array, " k"]:
    """How far the flow takes each centre; empty bins lie on the straight line between their occupied neighbours."""
    weights = counts / jnp.sum(counts)
    a, variance = _memory(sigma, t)
    images, spread = mu + a * (centres - mu), jnp.sqrt(variance + (a * width) ** 2)
    # from the nearer end, where the probability is small and float32 resolves it
    side = jnp.where(2 * jnp.cumsum(counts) <= jnp.sum(counts), 1, -1).astype(centres.dtype)

    def tail(at: Array, of: Array, scale: Array) -> Array:
        """Probability of the mixture on each point's side."""
        return jnp.sum(weights * norm.cdf(side[:, None] * (at[:, None] - of) / scale), axis=1)

    def density(at: Array, of: Array, scale: Array) -> Array:
        return jnp.sum(weights * norm.pdf((at[:, None] - of) / scale), axis=1) / scale

    wanted = tail(centres, centres, width)

    def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Newton on the logarithm of the tail probability, or halving where that leaves the bracket."""
        at, below, above, _, step = state
        got = tail(at, fixed, scale)
        too_low = side * (got - wanted) < 0
        below, above = jnp.where(too_low, at, below), jnp.where(too_low, above, at)
        slope = density(at, fixed, scale)
        safe = (got > 0) & (slope > 0)
        ratio = jnp.where(safe, wanted / jnp.where(safe, got, 1), 1)
        newton = at + side * jnp.log(ratio) * got / jnp.where(safe, slope, 1)
        inside = safe & (newton > below) & (newton < above)
        moved = jnp.where(inside, newton, 0.5 * (below + above))
        return moved, below, above, jnp.abs(moved - at), step + 1

    def unsettled(state: tuple[Array, ...]) -> Array:
        return (state[-1] < MAX_STEPS) & jnp.any((counts > 0) & (state[3] > SETTLED * scale))

    fixed, scale, wanted = lax.stop_gradient((images, spread, wanted))
    reach = REACH * scale
    lowest, highest = jnp.full_like(fixed, fixed[0] - reach), jnp.full_like(fixed, fixed[-1] + reach)
    start = (fixed, lowest, highest, highest - lowest, jnp.int32(0))
    root = lax.while_loop(unsettled, advance, start)[0]
    # one more step of Newton, through which derivatives with respect to mu, sigma and t flow
    slope = lax.stop_gradient(density(root, images, spread))
    missing = jnp.where(slope > 0, (wanted - tail(root, images, spread)) / jnp.where(slope > 0, slope, 1), 0)
    moved = root + side * jnp.clip(missing, -SETTLED * scale, SETTLED * scale) - centres
    return _bridge(moved, counts > 0)


def _bridge(values: Float[Array, " k"], occupied: Array) -> Float[Array, " k"]:
    index = jnp.arange(values.size)
    before = lax.cummax(jnp.where(occupied, index, -1))
    after = lax.cummin(jnp.where(occupied, index, values.size), reverse=True)
    before, after = jnp.maximum(before, 0), jnp.minimum(after, values.size - 1)
    share = (index - before) / jnp.maximum(after - before, 1)
    return (1 - share) * values[before] + share * values[after]
