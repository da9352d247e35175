"""Initializers that begin at arbitrage equilibrium: |w| lognormal, in the convention of `jax.nn.initializers`.

Each returns init(key, shape, dtype=..., out_sharding=None). With `signed` the sign is + or − with probability ½, so the
mean is 0 and the variance E w² = exp(2μ + 2σ²). One key gives one array, whatever its sharding; it is drawn in float32
(float64 for float64) and rounded to `dtype` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from scipy.special import log_ndtr

from teleojax._errors import UsageError
from teleojax.teleo import lognormal_parameters

Axes = int | Sequence[int]
FANS: dict[str, Callable[[float, float], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,  # noqa: ARG005
    "fan_out": lambda fan_in, fan_out: fan_out,  # noqa: ARG005
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
}


@runtime_checkable
class Initializer(Protocol):
    """What `jax.nn.initializers` and every layer library call an initializer."""

    def __call__(self, key: Array, shape: Sequence[int], dtype: DTypeLike = ..., out_sharding: Any = None) -> Array: ...


def lognormal(mu: float, sigma: float, *, signed: bool = True, dtype: DTypeLike = jnp.float32) -> Initializer:
    """|w| ~ LN(μ, σ): ln|w| normal with mean μ and standard deviation σ.

    E|w|^k = exp(kμ + k²σ²/2). Signed: mean 0, variance exp(2μ + 2σ²), kurtosis exp(4σ²). Not signed: mean
    exp(μ + σ²/2), variance (exp(σ²) − 1) exp(2μ + σ²). Raises UsageError unless σ ≥ 0 and both are finite, and on use
    for a type that is not real floating-point.
    """
    _check("lognormal", mu, sigma)
    return _initializer(lambda shape: mu, sigma, None, signed, dtype)  # noqa: ARG005


def truncated_lognormal(
    mu: float, sigma: float, lower: float, upper: float, *, signed: bool = True, dtype: DTypeLike = jnp.float32
) -> Initializer:
    """|w| ~ LN(μ, σ) given lower ≤ |w| ≤ upper; lower may be 0 and upper infinite.

    With a = (ln lower − μ)/σ, b = (ln upper − μ)/σ: E|w|^k = exp(kμ + k²σ²/2) (Φ(b − kσ) − Φ(a − kσ))/(Φ(b) − Φ(a)).
    Signed: mean 0, variance E|w|². In narrow types rounding may carry a value to the number next to a bound. Raises
    UsageError as `lognormal`, for σ = 0, and unless 0 ≤ lower < upper.
    """
    _check("truncated_lognormal", mu, sigma)
    if not (0 <= lower < upper and sigma > 0):
        found = f"lower = {lower}, upper = {upper}, sigma = {sigma}"
        needed = "0 <= lower < upper and sigma > 0"
        raise UsageError("truncated_lognormal", found=found, needed=needed, remedy="Correct them.")
    bounds = tuple((math.log(x) - mu) / sigma if x > 0 else -math.inf for x in (lower, upper))
    return _initializer(lambda shape: mu, sigma, (bounds[0], bounds[1]), signed, dtype)  # noqa: ARG005


def jaynes(alpha: float, beta: float, *, signed: bool = True, dtype: DTypeLike = jnp.float32) -> Initializer:
    """The arbitrage equilibrium of utility parameters (α, β) of the measure dx: μ = (α + 1)/(2β), σ = 1/√(2β).

    E|w|^k = exp(k (α + 1)/(2β) + k²/(4β)). Raises UsageError unless β > 0.
    """
    law = lognormal_parameters(alpha, beta)
    return lognormal(law.mu, law.sigma, signed=signed, dtype=dtype)


def lognormal_scaling(
    scale: float,
    mode: str,
    *,
    sigma: float = 1.0,
    truncate: float | None = None,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DTypeLike = jnp.float32,
) -> Initializer:
    """Signed lognormal weights of the variance that `jax.nn.initializers.variance_scaling` gives: scale/fan.

    μ = ½ ln(scale/fan) − σ², so that E w = 0 and E w² = exp(2μ + 2σ²) = scale/fan exactly. `mode` is "fan_in",
    "fan_out", "fan_avg" or "fan_geo_avg"; axes that are none of in, out and batch are the receptive field. Kurtosis is
    exp(4σ²), 55 for σ = 1: rare weights are large. `truncate` = t keeps ln|w| within t standard deviations of μ, and μ
    is moved so that the variance stays: by −½ ln((Φ(t − 2σ) − Φ(−t − 2σ))/(Φ(t) − Φ(−t))).
    σ = 1.11 is the spread of ln|w| of Gaussian weights; σ = 0 gives all weights one magnitude.

    Raises UsageError for another mode, scale ≤ 0, σ < 0, truncate ≤ 0, and on use for a shape without the axes.
    """
    _check("lognormal_scaling", 0.0, sigma)
    if mode not in FANS:
        raise UsageError("mode", found=repr(mode), needed=f"one of {', '.join(FANS)}", remedy="Choose one of them.")
    for name, value in (("scale", scale), ("truncate", truncate)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(name, found=f"{value}", needed="a positive number", remedy="Correct it.")
    lost = 0.0 if truncate is None else _log_share(truncate, 2 * sigma) - _log_share(truncate, 0.0)
    bounds = None if truncate is None else (-truncate, truncate)

    def mu(shape: tuple[int, ...]) -> float:
        fan = FANS[mode](*_fans(shape, in_axis, out_axis, batch_axis))
        return 0.5 * (math.log(scale / fan) - lost) - sigma**2 if fan > 0 else 0.0  # of an empty array

    return _initializer(mu, sigma, bounds, True, dtype)


def lognormal_he(**options: Any) -> Initializer:
    """Variance 2/fan_in, for layers before a ReLU: `lognormal_scaling(2, "fan_in", **options)`, as `he_normal`."""
    return lognormal_scaling(2.0, "fan_in", **options)


def lognormal_glorot(**options: Any) -> Initializer:
    """Variance 2/(fan_in + fan_out): `lognormal_scaling(1, "fan_avg", **options)`, as `glorot_normal`."""
    return lognormal_scaling(1.0, "fan_avg", **options)


def lognormal_lecun(**options: Any) -> Initializer:
    """Variance 1/fan_in: `lognormal_scaling(1, "fan_in", **options)`, as `lecun_normal`."""
    return lognormal_scaling(1.0, "fan_in", **options)


def _initializer(
    mu: Callable[[tuple[int, ...]], float],
    sigma: float,
    bounds: tuple[float, float] | None,
    signed: bool,
    default: DTypeLike,
) -> Initializer:
    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = default, out_sharding: Any = None) -> Array:
        kept = jax.dtypes.canonicalize_dtype(dtype)
        if not jnp.issubdtype(kept, jnp.floating):
            raise UsageError("dtype", found=f"{kept}", needed="a real floating-point type", remedy="Use float32.")
        shape = tuple(shape)
        wide = jnp.promote_types(kept, jnp.float32)
        of_size, of_sign = jax.random.split(key)
        if bounds is None:
            z = jax.random.normal(of_size, shape, wide, out_sharding=out_sharding)
        else:
            z = jax.random.truncated_normal(of_size, *bounds, shape, wide, out_sharding=out_sharding)
        w = jnp.exp(mu(shape) + sigma * z)
        if signed:
            side = jax.random.bits(of_sign, shape, jnp.uint8, out_sharding=out_sharding)
            w = jnp.where(side & 1, w, -w)
        return w.astype(kept)

    return init


def _check(where: str, mu: float, sigma: float) -> None:
    if not (math.isfinite(mu) and 0 <= sigma < math.inf):
        found, needed = f"mu = {mu}, sigma = {sigma}", "finite numbers, sigma >= 0"
        raise UsageError(where, found=found, needed=needed, remedy="Correct them.")


def _fans(shape: tuple[int, ...], in_axis: Axes, out_axis: Axes, batch_axis: Axes) -> tuple[float, float]:
    """Numbers of inputs and of outputs, each times the receptive field: all axes that are none of the three."""

    def size(axes: Axes) -> int:
        return math.prod(shape[a] for a in ((axes,) if isinstance(axes, int) else axes))

    try:
        n_in, n_out, n_batch = size(in_axis), size(out_axis), size(batch_axis)
    except IndexError as e:
        raise UsageError(
            "shape",
            found=f"{shape}",
            needed=f"axes in {in_axis}, out {out_axis}, batch {batch_axis}",
            remedy="Name the axes with in_axis and out_axis.",
        ) from e
    field = math.prod(shape) / max(1, n_in * n_out * n_batch)
    return n_in * field, n_out * field


def _log_share(t: float, shift: float) -> float:
    """ln(Φ(t − shift) − Φ(−t − shift)), accurate in the tail."""
    upper, lower = (float(log_ndtr(side * t - shift)) for side in (1, -1))
    return upper + math.log1p(-math.exp(lower - upper))
