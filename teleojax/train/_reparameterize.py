"""A first phase of training in which each layer has three parameters: amplitude, μ and σ of a fixed lognormal draw.

    w = amplitude · sign · exp(μ + σ z)

`sign` and z are drawn once, or taken from weights that are there, and stay; gradients flow to the three numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from teleojax._errors import UsageError
from teleojax.engine import compiled
from teleojax.train._score import standardised

SMALLEST = 2  # axes of an array that is a layer; biases and gains have one


class LognormalTheta(NamedTuple):
    """The three numbers of a layer, float32. `amplitude` and exp(mu) scale alike; a negative amplitude turns signs."""

    amplitude: Array
    mu: Array
    sigma: Array


class LognormalDraw(NamedTuple):
    """What stays fixed of a layer: ±1, or 0 for a zero weight, and the standard deviations from the mean of ln|w|."""

    sign: Array
    z: Array


def lognormal_reparameterize(params: Any, *, key: Array | None = None) -> tuple[Any, Any]:
    """(theta, draws) of parameters: per layer the three numbers to be trained, and what stays fixed.

    Layers are real floating-point arrays of two axes or more with at least 64 finite non-zero values; everything else
    is in `theta` as it is, to be trained as before, and None in `draws`. amplitude is 1, μ and σ are those of the
    layer's ln|w|. Without a `key`, z and signs are those of the weights: `lognormal_apply` gives the parameters back,
    up to rounding. With one, z is drawn from N(0, 1) and the signs at random: the layer's best lognormal in
    their place.

        theta, draws = lognormal_reparameterize(params, key=key)
        loss = lambda theta: loss_of(lognormal_apply(theta, draws))      # phase 1: train theta, with any optimiser
        params = lognormal_apply(theta, draws)                           # phase 2: train params as usual

    Both are pytrees. Whether a layer has values enough is asked of the values: call it outside jit.
    Raises UsageError where a layer is traced.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = [None] * len(leaves) if key is None else list(jax.random.split(key, max(1, len(leaves))))
    pairs = [_split(w, k) for w, k in zip(leaves, keys, strict=False)]
    return structure.unflatten([t for t, _ in pairs]), structure.unflatten([d for _, d in pairs])


def lognormal_apply(theta: Any, draws: Any) -> Any:
    """The parameters that theta and the draws stand for, in the draws' types; differentiable in theta."""

    def one(t: Any, d: Any) -> Any:
        if not isinstance(t, LognormalTheta):
            return t
        w = t.amplitude * d.sign.astype(jnp.float32) * jnp.exp(t.mu + t.sigma * d.z.astype(jnp.float32))
        return w.astype(d.sign.dtype)

    leaves, structure = jax.tree.flatten(theta, is_leaf=lambda x: isinstance(x, LognormalTheta))
    return structure.unflatten([one(t, d) for t, d in zip(leaves, structure.flatten_up_to(draws), strict=True)])


def _split(w: Any, key: Array | None) -> tuple[Any, Any]:
    layer = hasattr(w, "dtype") and jnp.issubdtype(w.dtype, jnp.floating) and w.ndim >= SMALLEST
    if not layer:
        return w, None
    w = jnp.asarray(w)
    if isinstance(w, Tracer):
        raise UsageError(
            "lognormal_reparameterize",
            found="a traced array",
            needed="an array with values",
            remedy="Call it outside jit; lognormal_apply may be inside.",
        )
    x = compiled(standardised)(w)
    if not bool(x.usable):
        return w, None
    sign, z = jnp.sign(w), x.t
    if key is not None:
        of_sign, of_size = jax.random.split(key)
        sign = jax.random.rademacher(of_sign, w.shape, w.dtype)
        z = jax.random.normal(of_size, w.shape, jnp.float32)
    return LognormalTheta(jnp.ones(()), x.mu, x.sigma), LognormalDraw(sign, z)
