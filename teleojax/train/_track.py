"""`track_log_moments`: where each layer is on its way to equilibrium, followed inside the optimiser's state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float32

from teleojax._errors import UsageError
from teleojax.sources._pytree import _key_name, number_repeats
from teleojax.train._score import BINS_PER_UNIT, HIGH, LOW, bin_counts, standardised
from teleojax.train._sharding import automatic

COARSE = 4  # bins of the score in one of the entropy: 1/16 of a standard unit
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
TRACKED = ("n", "mu", "sigma", "alpha", "beta", "kl_nats", "dispersion")


class LogMomentsState(NamedTuple):
    """Steps taken, the step of the last update, and for each parameter array the numbers TRACKED.

    A number that does not exist is NaN. A layer's numbers are one array, since a jitted step pays for every array that
    it is given and returns.
    """

    steps: Array
    step: Array
    layers: Any


def track_log_moments(every: int = 100) -> Any:
    """An optax transformation that leaves the updates alone and keeps statistics of |w| by layer in its state.

    At step 0 and each `every` steps, of the parameters before the step: μ and σ of ln|w| (maximum likelihood), α and β
    of the measure dx, the potential gap `kl_nats` and the utility dispersion. Those two are cheap estimates from a
    histogram of the standardised ln|w| in bins of 1/16: the plug-in entropy with the Miller–Madow term and Sheppard's
    1/24 of a squared bin, and the spread of ln p̂ − ln LN over the bins less what counting noise adds. At 10⁵ values
    they are within 0.003 and 0.02 of `tj.fit`, which is to be asked for the last word; below 64 values they are NaN.

    Nothing leaves the device before `read`; between updates a step costs one comparison. Under jit with sharded
    parameters the numbers are those of the whole layer. The state goes into checkpoints with the rest.

        optimiser = optax.chain(optax.adam(1e-3), tj.train.track_log_moments(every=100))

    Raises UsageError for every < 1, and on update without parameters.
    """
    import optax

    if every < 1:
        raise UsageError("every", found=f"{every}", needed="1 or more", remedy="Use 100, say.")

    def init(params: Any) -> LogMomentsState:
        def nothing(w: Any) -> Array | None:
            return jnp.full(len(TRACKED), math.nan, jnp.float32) if _floating(w) else None

        return LogMomentsState(jnp.zeros((), jnp.int32), jnp.full((), -1), jax.tree.map(nothing, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LogMomentsState]:
        if params is None:
            raise UsageError(
                "track_log_moments",
                found="no parameters",
                needed="the parameters in update",
                remedy="Call optimiser.update(gradients, state, params).",
            )
        due = state.steps % every == 0
        layers = lax.cond(due, lambda p, _: _each(p), lambda _, old: old, params, state.layers)
        return updates, LogMomentsState(state.steps + 1, jnp.where(due, state.steps, state.step), layers)

    return optax.GradientTransformation(init, update)


def read(state: Any) -> dict[str, dict[str, float | int | None]]:
    """What `track_log_moments` knows, from its state or any tree that has it within: plain numbers by parameter name.

    Names are those of `tj.measure`. Every layer has `step`, that of the last update, and n (finite non-zero values),
    mu, sigma, alpha, beta, kl_nats and dispersion as they were then; a number that does not exist is None. This is
    where the host waits for the device.

        for name, layer in tj.train.read(opt_state).items():
            for key, value in layer.items():
                if value is not None and key != "step":
                    writer.add_scalar(f"{name}/{key}", value, layer["step"])               # TensorBoard
            print(json.dumps({"name": name, **layer}), file=log)                           # JSON lines

    Raises UsageError where there is no such state, or several.
    """
    found = [s for s in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(s)]
    if len(found) != 1:
        raise UsageError(
            "read",
            found=f"{len(found)} states of track_log_moments",
            needed="one",
            remedy="Give the optimiser's state, or the part of it that is meant.",
        )
    held = jax.device_get(found[0])
    layers = jax.tree_util.tree_flatten_with_path(held.layers)[0]
    names = number_repeats(".".join(map(_key_name, path)) if path else "array" for path, _ in layers)
    return {name: _numbers(int(held.step), layer) for name, (_, layer) in zip(names, layers, strict=True)}


def _each(params: Any) -> Any:
    return jax.tree.map(lambda w: automatic(_track, w) if _floating(w) else None, params)


def _track(w: Array) -> Float32[Array, " fields"]:
    z = standardised(w)
    some, spread = z.n > 0, z.variance > 0
    variance = jnp.where(spread, z.variance, math.nan)
    mu = jnp.where(some, z.mu, math.nan)
    counts = bin_counts(z).reshape(-1, COARSE).sum(axis=1).astype(jnp.float32)
    n = jnp.maximum(z.n, 1)
    held = counts > 0
    width = COARSE / BINS_PER_UNIT
    middles = np.arange(LOW + width / 2, HIGH, width, dtype=np.float32)
    share = counts / n
    occupied = jnp.sum(held) / n
    # ln p̂ − ln φ in each bin: the effective utility less h*, with the sign turned
    log_ratio = jnp.where(held, jnp.log(jnp.where(held, share, 1) / width), 0) + HALF_LOG_2PI + 0.5 * middles**2
    gap = jnp.sum(share * log_ratio)
    second = jnp.sum(share * jnp.where(held, log_ratio - gap, 0) ** 2)
    numbers = (
        z.n,
        mu,
        jnp.where(some, jnp.sqrt(z.variance), math.nan),
        mu / variance - 1,
        0.5 / variance,
        jnp.where(z.usable, gap - 0.5 * (occupied - 1 / n), math.nan),
        jnp.where(z.usable, jnp.sqrt(jnp.maximum(second - occupied, 0)), math.nan),
    )
    return jnp.stack(numbers).astype(jnp.float32)


def _numbers(step: int, layer: np.ndarray) -> dict[str, float | int | None]:
    values = dict(zip(TRACKED, layer.tolist(), strict=True))
    numbers = {k: v if math.isfinite(v) else None for k, v in values.items()}
    return {"step": step, **numbers, "n": None if numbers["n"] is None else int(numbers["n"])}


def _is_state(x: Any) -> bool:
    return isinstance(x, LogMomentsState)


def _floating(w: Any) -> bool:
    return hasattr(w, "dtype") and jnp.issubdtype(w.dtype, jnp.floating) and w.size > 0
