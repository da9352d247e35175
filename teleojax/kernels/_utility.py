"""The utility gradient of every value: a look-up in a table over the leading bits of the number, or the closed form.

A gradient is a function of the value alone. On types of at most 16 bits the table has an entry for every bit pattern
and is exact; on wider ones the leading bits choose a cell and a straight line over the remaining bits does the rest.
What zeros, NaN and infinities give stands in the table too: the kernel asks nothing, which on a CPU is half its speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Shaped, UInt

from teleojax._errors import UsageError

WRT = ("log", "value")
CELL_BITS = 7  # of the mantissa that choose a cell: 1/128 of an octave, 0.54% of |w|


@dataclass(frozen=True, slots=True, eq=False)
class ValueTable:
    """A function of one value of `dtype`, as entries by the leading bits of its pattern, the sign included.

    One-dimensional `entries`, of the unsigned type that holds `out_dtype`, are the results themselves, one for every
    pattern. Two columns of `out_dtype` are the result at a cell's smallest pattern, and its growth per pattern.
    """

    dtype: str
    out_dtype: str
    entries: Shaped[np.ndarray, ...]


def tabulated(bits: UInt[Array, "*shape"], entries: Shaped[Array, ...]) -> Shaped[Array, "*shape"]:
    """Bit patterns -> the results that a table's `entries` hold for them; all of them are in bounds by construction."""
    if entries.ndim == 1:
        return entries.at[bits.astype(jnp.int32)].get(mode="promise_in_bounds")
    drop = bits_dropped(bits.dtype.itemsize, len(entries))
    low = bits & ((1 << drop) - 1)
    # both columns in one gather: one cache line, and a third faster than two gathers
    line = entries.at[(bits >> drop).astype(jnp.int32)].get(mode="promise_in_bounds")
    # a signed integer becomes a float in one instruction, an unsigned one does not
    return line[..., 0] + line[..., 1] * low.astype(jnp.int32 if drop < 31 else jnp.int64).astype(entries.dtype)


def bits_dropped(itemsize: int, n_cells: int) -> int:
    """How many low bits of a pattern do not choose the cell, where `n_cells`, a power of two, are all cells."""
    return 8 * itemsize - (n_cells - 1).bit_length()


def lognormal_gradient(
    w: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike,
    target: tuple[ArrayLike, ArrayLike],
    *,
    wrt: str = "log",
) -> Array:
    """Utility gradient of each value of a lognormal layer (α, β) towards a target (α₀, β₀), in closed form.

    ∂ĥ/∂y = (α₀ − α) − 2(β₀ − β) y with y = ln|w|; with wrt="value" ∂ĥ/∂w = sign(w)/|w| · ∂ĥ/∂y. Both pairs are of the
    measure dx, and all four may be traced: jit, vmap and grad pass through, with zero derivatives where the gradient
    is set to 0. That is at zeros, NaN and infinities, and at subnormal values where the device takes them for zeros.
    Computed in float32 for narrower types; shape and type are those of `w`, and what is past the type's range is its
    largest number. Towards the layer's own (α, β) it is 0.

    Raises UsageError for another `wrt`, and unless `w` is of a floating-point type.
    """
    if wrt not in WRT:
        raise UsageError("wrt", found=repr(wrt), needed="'log' or 'value'", remedy="Choose one of them.")
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise UsageError("w", found=f"values of {w.dtype}", needed="floating-point values", remedy="Convert them.")
    alpha0, beta0 = target
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    seen = jnp.isfinite(wide) & (wide != 0)
    x = jnp.where(seen, wide, 1)
    gradient = (jnp.asarray(alpha0) - alpha) - 2 * (jnp.asarray(beta0) - beta) * jnp.log(jnp.abs(x))
    if wrt == "value":
        gradient = gradient / x
    most = float(jnp.finfo(w.dtype).max)
    return jnp.where(seen, jnp.clip(gradient, -most, most), 0).astype(w.dtype)
