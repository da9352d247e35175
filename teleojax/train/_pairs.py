"""Numbers as unevaluated sums of two float32 (48 bits), and counts as two uint32 (64 bits): exact sums without x64.

The float32 formulas are Knuth's and Dekker's; they need a compiler that does not reorder floating-point sums, which is
XLA's default everywhere. All arrays are of one shape.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float32, UInt32

SPLITTER = np.float32(4097)  # 2¹² + 1 cuts 24 bits into two halves of 12


class Pair(NamedTuple):
    """The number high + low, |low| ≤ half a unit in the last place of high."""

    high: Float32[Array, "*shape"]
    low: Float32[Array, "*shape"]

    def __add__(self, other: Pair) -> Pair:  # pyright: ignore[reportIncompatibleMethodOverride]
        high, error = _two_sum(self.high, other.high)
        low, rest = _two_sum(self.low, other.low)
        high, error = _fast_two_sum(high, error + low)
        return Pair(*_fast_two_sum(high, error + rest))

    def __mul__(self, other: Pair) -> Pair:  # pyright: ignore[reportIncompatibleMethodOverride]
        high, error = _two_product(self.high, other.high)
        return Pair(*_fast_two_sum(high, error + (self.high * other.low + self.low * other.high)))

    def sum(self, axes: tuple[int, ...]) -> Pair:
        """The sum along axes, in pairs throughout."""
        zero = np.float32(0)
        high, low = lax.reduce(tuple(self), (zero, zero), lambda a, b: tuple(Pair(*a) + Pair(*b)), axes)
        return Pair(high, low)


def single(x: Array) -> Pair:
    """A float32 as a pair."""
    return Pair(x, jnp.zeros_like(x))


def pair_zeros(shape: tuple[int, ...]) -> Pair:
    """Zeros."""
    return Pair(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


class Count(eqx.Module):
    """The whole number high · 2³² + low; it wraps at 2⁶⁴."""

    high: UInt32[Array, "*shape"]
    low: UInt32[Array, "*shape"]

    @staticmethod
    def zeros(shape: tuple[int, ...]) -> Count:
        """Zeros."""
        return Count(jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32))

    def plus(self, number: Array) -> Count:
        """More by a number in [0, 2³²)."""
        low = self.low + number.astype(jnp.uint32)
        return Count(self.high + (low < self.low).astype(jnp.uint32), low)

    def merge(self, other: Count) -> Count:
        """The sum of both."""
        added = self.plus(other.low)
        return Count(added.high + other.high, added.low)

    def as_pair(self) -> Pair:
        """As a pair: exact up to 2⁴⁸, then to 48 bits."""
        limbs = [(x >> s) & 0xFFFF for x in (self.high, self.low) for s in (16, 0)]
        terms = [x.astype(jnp.float32) * np.float32(2.0**s) for x, s in zip(limbs, (48, 32, 16, 0), strict=True)]
        total = single(terms[0])
        for term in terms[1:]:
            total = total + single(term)
        return total

    def on_host(self) -> np.ndarray:
        """As int64 on the host."""
        high, low = (np.asarray(x).astype(np.int64) for x in (self.high, self.low))
        return np.asarray((high << 32) + low)


def pair_on_host(pair: Pair) -> np.ndarray:
    """As float64 on the host, exactly."""
    high, low = (np.asarray(x).astype(np.float64) for x in pair)
    return np.asarray(high + low)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b as a rounded sum and its error."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _fast_two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The same, where |a| ≥ |b|."""
    total = a + b
    return total, b - (total - a)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a · b as a rounded product and its error."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Array) -> tuple[Array, Array]:
    big = a * SPLITTER
    high = big - (big - a)
    return high, a - high
