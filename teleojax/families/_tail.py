"""Excesses of ln x over ln xmin, for the families that describe a tail."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

SLACK = 1024  # units of rounding by which an excess may be negative: ln x and ln xmin are rounded each for itself


def above(y: Array) -> tuple[Array, Array]:
    """Whether an excess is in the support, and the excess, 0 where it is not."""
    return y >= -SLACK * float(jnp.finfo(y.dtype).eps), jnp.maximum(y, 0)


def log_excess(x: np.ndarray, xmin: float) -> np.ndarray:
    """ln(ln x − ln xmin), precise also just above xmin; −inf at and below it."""
    x = np.asarray(x, np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        near = np.log1p(np.maximum(x - xmin, 0) / xmin)
        return np.log(np.where(x < 2 * xmin, near, np.log(np.maximum(x, xmin)) - np.log(xmin)))
