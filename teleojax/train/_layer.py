"""What is known of the activations of one name: log-moments, and exact counts of the leading bits of every value."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int32, Shaped, UInt32

from teleojax._errors import UsageError
from teleojax.kernels._logmoments import LAYOUTS
from teleojax.stats import AxisFit, BitHistogram, LogMoments, TensorStats
from teleojax.stats._bithist import COARSE_DROP
from teleojax.train._moments import WHOLE, Moments
from teleojax.train._pairs import Count

CELL_BITS = 16  # the sign and, of float32, exponent and 7 bits of the mantissa: 512 KiB a name as two uint32
DTYPES = ("float32", "float64", "bfloat16", *LAYOUTS)
VIEWS = ("signed", "rectified")


class Layer(eqx.Module):
    """A monoid over arrays of one type. `seen` counts arrays, those passed over by `every` too.

    `moments` is None where `counts` hold every value of a type of at most 16 bits; `counts` is None without a
    histogram.
    """

    moments: Moments | None
    counts: Count | None
    seen: UInt32[Array, "*batch"]
    dtype: str = eqx.field(static=True)
    per_neuron: bool = eqx.field(static=True)

    @staticmethod
    def empty(name: str, h: object, *, histogram: bool, per_neuron: bool) -> Layer:
        """The layer of nothing, for arrays like `h`: anything with a dtype and, per neuron, a shape; or a dtype.

        Raises UsageError for a type that is no floating-point type of teleojax, and per neuron for no last axis.
        """
        dtype = _counted_as(name, getattr(h, "dtype", h))
        shape: tuple[int, ...] = ()
        if per_neuron:
            shape = tuple(getattr(h, "shape", ()))[-1:]
            if not shape:
                raise UsageError(
                    name,
                    found="no last axis",
                    needed="the shape of the activations, neurons last",
                    remedy="Give jax.ShapeDtypeStruct(shape, dtype), or leave per_neuron out.",
                )
        lossless = histogram and dtype != "float32" and not per_neuron
        bits = min(CELL_BITS, 8 * jnp.dtype(dtype).itemsize)
        return Layer(
            None if lossless else Moments.zeros(shape),
            Count.zeros((1 << bits,)) if histogram else None,
            jnp.zeros((), jnp.uint32),
            dtype,
            per_neuron,
        )

    def add(self, h: Array) -> Layer:
        """With the values of one array."""
        h = lax.stop_gradient(h)
        if h.dtype.itemsize > 4:
            h = h.astype(jnp.float32)
        moments, counts = self.moments, self.counts
        if moments is not None:
            moments = moments.add(h)
        if counts is not None:
            low = counts.low.at[_cells(h)].add(np.uint32(1), mode="promise_in_bounds")
            counts = Count(counts.high + (low < counts.low).astype(jnp.uint32), low)
        return Layer(moments, counts, self.seen + 1, self.dtype, self.per_neuron)

    def passed_over(self) -> Layer:
        """With one array seen and not counted."""
        return Layer(self.moments, self.counts, self.seen + 1, self.dtype, self.per_neuron)

    def merge(self, other: Layer) -> Layer:
        """Both."""
        moments = None if self.moments is None or other.moments is None else self.moments.merge(other.moments)
        counts = None if self.counts is None or other.counts is None else self.counts.merge(other.counts)
        return Layer(moments, counts, self.seen + other.seen, self.dtype, self.per_neuron)

    def check(self, name: str, h: Array) -> None:
        """Refuse an array of another type, or with another number of neurons. Raises UsageError."""
        found, needed = _counted_as(name, h.dtype), self.dtype
        if self.per_neuron and self.moments is not None:
            found, needed = f"{found} {h.shape[-1:]}", f"{needed} {self.moments.min_bits.shape}"
        if found != needed:
            remedy = "Observe under another name, or create the accumulator for this type."
            raise UsageError(name, found=f"activations of {found}", needed=needed, remedy=remedy)

    def on_host(self, view: str) -> TensorStats:
        """As TensorStats, of |h| or of max(h, 0)."""
        counts = None if self.counts is None else self.counts.on_host()
        if counts is not None and self.dtype != "float32":
            stats = TensorStats.from_pattern_counts(self.dtype, counts)
            return stats if view == "signed" or not stats.moments.n_negative else self._rectified(stats, counts)
        moments = self._totals()
        if counts is None:
            return TensorStats(moments, None)
        halves = counts.reshape(2, -1)
        if view == "rectified" and moments.n_negative:
            # zeros of either sign share the first cell with magnitudes below 2⁻¹³³, which count as zeros here
            cells = halves[0].copy()
            cells[0] = 0
            histogram = _histogram(cells)
            return TensorStats.from_lossless(
                histogram,
                n_zero=moments.size - moments.n_nonfinite - histogram.n,
                n_nonfinite=moments.n_nonfinite,
                n_negative=0,
            )
        cells = halves.sum(axis=0)
        cells[0] -= moments.n_zero
        return TensorStats(moments, _histogram(cells))

    def _rectified(self, stats: TensorStats, counts: np.ndarray) -> TensorStats:
        """Of a type whose every value is counted: the positive ones, the others as zeros."""
        kept = np.where(np.arange(len(counts)) < len(counts) // 2, counts, 0)
        positive = TensorStats.from_pattern_counts(self.dtype, kept)
        whole = stats.moments
        moments = replace(
            positive.moments, n_zero=whole.n_zero + whole.n_negative, n_nonfinite=whole.n_nonfinite, n_negative=0
        )
        return replace(positive, moments=moments)

    def neurons(self) -> AxisFit:
        """One lognormal per neuron."""
        moments = self.moments
        if moments is None or not self.per_neuron:
            raise UsageError(
                "neurons",
                found="an accumulator of whole layers",
                needed="one per neuron",
                remedy="Create it with per_neuron=True.",
            )
        return AxisFit.from_partials(moments.on_host(), moments.min_bits.shape)

    def _totals(self) -> LogMoments:
        return LogMoments.zero() if self.moments is None else self.moments.on_host().total()


def _counted_as(name: str, dtype: object) -> str:
    try:
        found = str(jnp.dtype(dtype))  # pyright: ignore[reportArgumentType, reportCallIssue]
    except TypeError:
        found = repr(dtype)
    if found not in DTYPES:
        raise UsageError(
            name, found=f"activations of {found}", needed=f"one of {', '.join(DTYPES)}", remedy="Convert them."
        )
    return "float32" if found == "float64" else found


def _cells(h: Shaped[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """The cell of each value: its leading bits, the sign first."""
    bits = lax.bitcast_convert_type(h, WHOLE[h.dtype.itemsize])
    return (bits >> max(0, 8 * h.dtype.itemsize - CELL_BITS)).astype(jnp.int32)


def _histogram(cells: np.ndarray) -> BitHistogram:
    """Of float32 magnitudes; cells of infinities and NaN are left out."""
    cells = cells.copy()
    cells[0x7F80:] = 0
    return BitHistogram.from_dense("float32", COARSE_DROP["float32"], cells)
