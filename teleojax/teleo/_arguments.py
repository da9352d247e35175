"""What callers hand to the theory: made real arrays, and refused early where it cannot be computed with.

Values are looked at only where they are known; inside a trace the shapes alone are.
"""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from teleojax._errors import UsageError


def real(value: ArrayLike) -> Array:
    """The value as an array of float32, or of float64 where it comes so and JAX may hold it."""
    if isinstance(value, int):
        value = float(value)
    elif isinstance(value, np.ndarray | np.integer) and value.dtype.kind in "iub":
        value = value.astype(np.float64)  # counts may pass 2³¹, where JAX's own conversion wraps
    array = jnp.asarray(value)
    if array.weak_type:  # a Python number takes the type of what it meets
        return array
    real = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32) if real else jnp.result_type(float))


def known(value: ArrayLike) -> np.ndarray | None:
    """The value on the host, or None while it is being traced."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def positive(where: str, **values: ArrayLike) -> None:
    """Refuse what is not above zero; NaN is not."""
    for name, value in values.items():
        seen = known(value)
        if seen is not None and not (seen > 0).all():
            worst = seen if seen.ndim == 0 else f"{seen[~(seen > 0)].size} of {seen.size} not above 0"
            raise UsageError(where, found=f"{name} = {worst}", needed=f"{name} > 0", remedy=f"Correct {name}.")


def not_negative(where: str, **values: ArrayLike) -> None:
    """Refuse what is below zero or NaN."""
    for name, value in values.items():
        seen = known(value)
        if seen is not None and not (seen >= 0).all():
            worst = seen if seen.ndim == 0 else f"{seen[~(seen >= 0)].size} of {seen.size} below 0"
            raise UsageError(where, found=f"{name} = {worst}", needed=f"{name} ≥ 0", remedy=f"Correct {name}.")


def vectors(where: str, **values: ArrayLike) -> tuple[Array, ...]:
    """The values as one-dimensional real arrays of one length, at least 1; `jax.vmap` is for batches of them."""
    arrays = {name: real(value) for name, value in values.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes):
        raise UsageError(
            where,
            found=", ".join(f"{name} of shape {array.shape}" for name, array in arrays.items()),
            needed=f"{' and '.join(arrays)} one-dimensional, of equal length, not empty",
            remedy="Reshape, or map over further axes with jax.vmap.",
        )
    return tuple(arrays.values())


def increasing(where: str, **values: ArrayLike) -> None:
    """Refuse a grid or edges that do not increase."""
    for name, value in values.items():
        seen = known(value)
        if seen is not None and not (np.diff(seen) > 0).all():
            raise UsageError(
                where,
                found=f"{name} with {int((~(np.diff(seen) > 0)).sum())} steps that do not increase",
                needed=f"{name} strictly increasing",
                remedy=f"Sort {name} and drop repeats.",
            )


def one_of(where: str, choices: Collection[str], **values: str) -> None:
    """Refuse a word that is not among the choices."""
    for name, value in values.items():
        if value not in choices:
            raise UsageError(
                where,
                found=f"{name} = {value!r}",
                needed=f"one of {', '.join(map(repr, choices))}",
                remedy=f"Correct {name}.",
            )
