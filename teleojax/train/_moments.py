"""The log-moments of a stream of arrays on the device: one reduction an array, added up in pairs of float32.

The logarithm comes from the bits as in `kernels`, in base 2 and less an integer pivot. Sums over short rows are
float32; everything above the row, and over arrays, is in pairs: power sums about one pivot, so that adding an array is
one addition. The central moments are made of them on the host, in float64.
"""

from __future__ import annotations

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float32, Int32, Shaped

from teleojax.kernels._logmoments import (
    INFINITY,
    MAGNITUDE,
    NONE,
    SMALLEST_NORMAL,
    STEPS,
    float32_bits,
    log2_steps,
)  # fmt: skip
from teleojax.stats import Partials
from teleojax.train._pairs import Count, Pair, pair_on_host, pair_zeros, single

ROW = 4096  # values a float32 sum runs over: longer rows lose digits
SHORT = 256  # rows shorter than this are joined with the axis before, where there is one
FOLD, MANY = 4, 64  # rows added up at once; fewer rows may be fewer than four a device
REACH = 3  # octaves
SUBNORMAL = 149  # a float32 below the smallest normal number is its bits times 2⁻¹⁴⁹
LN2 = math.log(2)
WHOLE = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Moments(eqx.Module):
    """Counts and power sums over the finite non-zero values, per neuron (`shape` (d,)) or of all (()).

    counts: n, zeros, not finite, negative.  sums: Σ l^1..4, Σ|h|, Σ|h|², where l = log2|h| − pivot.  `pivot` is the
    mean exponent of an array, near that of all; `min_bits` and `max_bits` are the extreme |h| as float32
    patterns, NONE and 0 without values.
    """

    counts: Count
    sums: Pair
    pivot: Int32[Array, "*batch"]
    min_bits: Int32[Array, "*shape"]
    max_bits: Int32[Array, "*shape"]

    @staticmethod
    def zeros(shape: tuple[int, ...]) -> Moments:
        """The moments of nothing."""
        least, most = jnp.full(shape, NONE, jnp.int32), jnp.zeros(shape, jnp.int32)
        return Moments(Count.zeros((4, *shape)), pair_zeros((6, *shape)), jnp.int32(0), least, most)

    @property
    def n(self) -> Float32[Array, "*shape"]:
        """Finite non-zero values."""
        return self.counts.high[0].astype(jnp.float32) * 2.0**32 + self.counts.low[0].astype(jnp.float32)

    def mean_and_variance(self) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
        """Of ln|h|, in float32; 0 without values."""
        n = jnp.maximum(self.n, 1)
        mean, square = self.sums.high[0] / n, self.sums.high[1] / n
        return (mean + self.pivot * (self.n > 0)) * LN2, jnp.maximum(square - mean * mean, 0) * LN2**2

    def add(self, h: Shaped[Array, ...]) -> Moments:
        """With the values of one array of a floating-point type of at most 32 bits, neurons along its last axis.

        Sums lose digits where the pivot is far from the mean: it follows where the array's is REACH octaves away.
        """
        return self._plus(h, empty=False)

    @staticmethod
    def of(h: Shaped[Array, ...]) -> Moments:
        """The moments of one array, all neurons together."""
        return Moments.zeros(())._plus(h, empty=True)

    def _plus(self, h: Array, *, empty: bool) -> Moments:
        bits = patterns(h)
        per_neuron = self.min_bits.ndim > 0
        rows = _over_rows(bits) if per_neuron else _joined(bits)
        magnitude = rows & MAGNITUDE
        counted = (magnitude > 0) & (magnitude < INFINITY)
        near = _pivot(magnitude, counted, self.pivot)
        if empty:
            pivot, held = near, self.sums
        else:
            stay = jnp.any(self.min_bits != NONE) & (jnp.abs(near - self.pivot) <= REACH)
            pivot = jnp.where(stay, self.pivot, near)
            held = lax.cond(pivot == self.pivot, lambda: self.sums, lambda: self._about(pivot))
        found = _sums(rows, counted, pivot, rows.ndim - 2 if per_neuron else rows.ndim - 1)
        over = tuple(range(1, rows.ndim - 1 if per_neuron else rows.ndim))
        n, n_zero, n_negative = (jnp.sum(c, axis=tuple(a - 1 for a in over), dtype=jnp.uint32) for c in found[6:9])
        n_values = math.prod(h.shape[:-1]) if per_neuron else h.size
        inner = tuple(a - 1 for a in over)
        return Moments(
            self.counts.plus(jnp.stack([n, n_zero, np.uint32(n_values) - n - n_zero, n_negative])),
            held + single(jnp.stack(found[:6])).sum(over),
            pivot,
            jnp.minimum(self.min_bits, jnp.min(found[9], axis=inner)),
            jnp.maximum(self.max_bits, jnp.max(found[10], axis=inner)),
        )

    def merge(self, other: Moments) -> Moments:
        """The moments of both, about the pivot of the first that has values."""
        pivot = jnp.where(jnp.any(self.min_bits != NONE), self.pivot, other.pivot)
        return Moments(
            self.counts.merge(other.counts),
            self._about(pivot) + other._about(pivot),
            pivot,
            jnp.minimum(self.min_bits, other.min_bits),
            jnp.maximum(self.max_bits, other.max_bits),
        )

    def _about(self, pivot: Array) -> Pair:
        """The sums about another pivot: with d the difference, Σ (l + d)^k, by adding d times a power less k times."""
        step = jnp.full_like(self.sums.high[:4], 1) * (self.pivot - pivot)
        n = Count(self.counts.high[:1], self.counts.low[:1]).as_pair()
        powers = Pair(*(jnp.concatenate([a, b[:4]]) for a, b in zip(n, self.sums, strict=True)))
        for k in range(1, 5):
            lower, upper = (Pair(powers.high[s], powers.low[s]) for s in (slice(k - 1, 4), slice(k, 5)))
            moved = upper + lower * single(step[k - 1 :])
            powers = Pair(*(jnp.concatenate([a[:k], b]) for a, b in zip(powers, moved, strict=True)))
        return Pair(*(jnp.concatenate([a[1:], b[4:]]) for a, b in zip(powers, self.sums, strict=True)))

    def on_host(self) -> Partials:
        """One entry per neuron, of ln|h| in float64."""
        counts = self.counts.on_host().reshape(4, -1)
        s1, s2, s3, s4, sum_x, sum_x2 = pair_on_host(self.sums).reshape(6, -1)
        low, high = (
            np.ravel(np.asarray(b)).view(np.float32).astype(np.float64) for b in (self.min_bits, self.max_bits)
        )
        n = counts[0]
        mean = s1 / np.maximum(n, 1)
        m2 = np.maximum(s2 - mean * s1, 0.0)
        m2 = np.where(low == high, 0.0, m2)  # exactly, of values that are all equal
        m3 = np.where(m2 > 0, s3 - 3 * mean * s2 + 2 * mean**2 * s1, 0.0)
        m4 = np.where(m2 > 0, s4 - 4 * mean * s3 + 6 * mean**2 * s2 - 3 * mean**3 * s1, 0.0)
        return Partials(
            n=n,
            n_zero=counts[1],
            n_nonfinite=counts[2],
            n_negative=counts[3],
            mean=np.where(n > 0, (mean + float(self.pivot)) * LN2, 0.0),
            m2=m2 * LN2**2,
            m3=m3 * LN2**3,
            m4=m4 * LN2**4,
            sum_x=sum_x,
            sum_x2=sum_x2,
            min=np.where(n > 0, low, np.inf),
            max=np.where(n > 0, high, 0.0),
        )


def patterns(h: Shaped[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """The values as bit patterns of float32; no subnormal is flushed on the way. float64 is rounded to float32."""
    if h.dtype.itemsize > 4:
        h = h.astype(jnp.float32)
    bits = lax.bitcast_convert_type(h, WHOLE[h.dtype.itemsize])
    convert = partial(float32_bits, dtype=str(h.dtype))
    for _ in range(h.ndim - 2):  # it takes rows; joining axes would move sharded arrays
        convert = jax.vmap(convert)
    return convert(bits.reshape(1, -1) if h.ndim < 2 else bits).reshape(h.shape)


def _joined(bits: Array) -> Array:
    """Of two axes or more, the last of them, along which float32 sums run, neither short nor long.

    Axes before the last are left as they are where that is possible: they may be sharded.
    """
    bits = bits.reshape(1, -1) if bits.ndim < 2 else bits
    while bits.ndim > 2 and bits.shape[-1] < SHORT:
        bits = bits.reshape(*bits.shape[:-2], -1)
    return bits.reshape(*bits.shape[:-1], -1, _divisor(bits.shape[-1])) if bits.shape[-1] > ROW else bits


def _over_rows(bits: Array) -> Array:
    """(..., rows, neurons), float32 sums running over the rows."""
    bits = jnp.atleast_2d(bits)
    rows = bits.shape[-2]
    return bits.reshape(*bits.shape[:-2], -1, _divisor(rows), bits.shape[-1]) if rows > ROW else bits


def _divisor(length: int) -> int:
    """The largest divisor of at most ROW; of a length without a useful one, the length itself."""
    best = next((d for d in range(ROW, SHORT - 1, -1) if length % d == 0), 0)
    return best or length


def _pivot(magnitude: Array, counted: Array, otherwise: Array) -> Int32[Array, ""]:
    """The mean exponent of the values that count; without any, the other."""
    exponent = jnp.where(counted, (magnitude >> 23) - 127, 0)
    zero = np.int32(0)
    last = magnitude.ndim - 1
    total, n = lax.reduce(
        (exponent, counted.astype(jnp.int32)), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (last,)
    )
    mean = jnp.sum(total.astype(jnp.float32)) / jnp.maximum(jnp.sum(n.astype(jnp.float32)), 1)
    return jnp.where(jnp.any(n > 0), jnp.clip(jnp.round(mean), -126, 126).astype(jnp.int32), otherwise)


def _sums(signed: Array, counted: Array, pivot: Array, axis: int) -> tuple[Array, ...]:
    """Along one axis: Σ l^1..4, Σx, Σx², and n, zeros, negatives, least and greatest magnitude; l = log2 x − pivot.

    Where there are many rows four of them are added up first: that loop a CPU's compiler unrolls and vectorises.
    """
    down_rows = axis == signed.ndim - 2
    if folded := _foldable(signed):
        signed, counted = _folded(signed), _folded(counted)
    magnitude = signed & MAGNITUDE
    lowered = lax.bitcast_convert_type(magnitude.astype(jnp.float32), jnp.int32) - (SUBNORMAL << 23)
    steps = log2_steps(jnp.where(magnitude < SMALLEST_NORMAL, lowered, magnitude), pivot)
    log2 = jnp.where(counted, steps * np.float32(1 / STEPS), 0)
    x = lax.bitcast_convert_type(jnp.where(counted, magnitude, 0), jnp.float32)
    square = log2 * log2
    operands = (
        log2,
        square,
        square * log2,
        square * square,
        x,
        x * x,
        counted.astype(jnp.uint32),
        (magnitude == 0).astype(jnp.uint32),
        (counted & (signed < 0)).astype(jnp.uint32),
        jnp.where(counted, magnitude, NONE),
        jnp.where(counted, magnitude, 0),
    )
    start = (*(np.float32(0),) * 6, *(np.uint32(0),) * 3, np.int32(NONE), np.int32(0))

    def add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        return (*(x + y for x, y in zip(a[:9], b[:9], strict=True)), lax.min(a[9], b[9]), lax.max(a[10], b[10]))

    if folded:
        operands = lax.reduce(operands, start, add, (signed.ndim - 2,))
        while down_rows and _foldable(operands[0]):
            operands = lax.reduce(tuple(map(_folded, operands)), start, add, (signed.ndim - 2,))
    return lax.reduce(operands, start, add, (axis,))  # pyright: ignore[reportReturnType]


def _foldable(a: Array) -> bool:
    return a.shape[-2] >= MANY and a.shape[-2] % FOLD == 0


def _folded(a: Array) -> Array:
    return a.reshape(*a.shape[:-2], -1, FOLD, a.shape[-1])
