"""Arrays of which the sharding is part of the type: their statistics are computed as GSPMD sees fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec


def automatic(fn: Callable[..., Any], x: Array, *args: Any, keep: bool = False) -> Any:
    """fn(x, *args), where x may be sharded over explicit mesh axes; these are left to the compiler within.

    The results are then replicated, or with `keep` sharded as x is. Elsewhere it is the plain call.
    """
    sharding = getattr(jax.typeof(x), "sharding", None)
    axes = tuple(getattr(getattr(sharding, "mesh", None), "explicit_axes", ()))
    if not isinstance(sharding, NamedSharding) or not axes:
        return fn(x, *args)
    out = sharding if keep else NamedSharding(sharding.mesh, PartitionSpec())
    return jax.sharding.auto_axes(fn, axes=axes, out_sharding=out)(x, *args)
