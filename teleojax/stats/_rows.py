"""Row sums of the fast kernel -> Partials in float64, and which rows must be done again with care."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teleojax.blocks import ROW
from teleojax.kernels import RowSums
from teleojax.kernels._logmoments import INFINITY, SMALLEST_NORMAL
from teleojax.stats._logmoments import Partials

LN2 = np.log(2.0)
NARROW = 0.01  # variance of log2|w| below which float32 sums are not good to 1e-6; such rows are rare
TINY = 1e-30  # mean of w² below which float32 squares lose what underflows
FAR = 8.0  # octaves between a row's pivot and its mean beyond which the fourth powers lose too much


@dataclass(frozen=True, slots=True)
class RowMoments:
    """`partials`, one entry a row, and `redo`: True where the entry must be replaced by `careful_moments`."""

    partials: Partials
    redo: np.ndarray


def row_moments(sums: RowSums, n_columns: int = ROW) -> RowMoments:
    """Float64 central moments of ln|w| per row of `n_columns` values.

    A row is marked for redoing when it holds a subnormal, NaN or inf (told by its extreme bits), when a sum left the
    range of float32, when ln|w| hardly varies in it, or when its pivot missed the bulk of its values.
    """
    n_zero = np.asarray(sums.n_zero).astype(np.int64)
    n = n_columns - n_zero
    weight = np.maximum(n, 1).astype(np.float64)
    pivot = np.asarray(sums.pivot).astype(np.float64)
    min_bits, max_bits = np.asarray(sums.min_bits), np.asarray(sums.max_bits)
    with np.errstate(all="ignore"):  # a row to be redone may hold anything; it is replaced
        device = (sums.s1, sums.s2, sums.s3, sums.s4, sums.u1, sums.u2)
        s1, s2, s3, s4, u1, u2 = (np.asarray(s).astype(np.float64) for s in device)
        d = s1 / weight
        m2 = np.maximum(s2 - s1 * d, 0)
        m3 = s3 - 3 * d * s2 + 2 * d * d * s1
        m4 = s4 - 4 * d * s3 + 6 * d * d * s2 - 3 * d**3 * s1
        partials = Partials(
            n=n,
            n_zero=n_zero,
            n_nonfinite=np.zeros_like(n),
            n_negative=np.asarray(sums.n_negative).astype(np.int64),
            mean=np.where(n > 0, (pivot + d) * LN2, 0.0),
            m2=m2 * LN2**2,
            m3=m3 * LN2**3,
            m4=m4 * LN2**4,
            sum_x=u1,
            sum_x2=u2,
            min=np.where(n > 0, min_bits.view(np.float32).astype(np.float64), np.inf),
            max=max_bits.view(np.float32).astype(np.float64),
        )
        in_range = np.isfinite(s4) & np.isfinite(u2) & (u2 > TINY * weight)
        strange = (min_bits < SMALLEST_NORMAL) | (max_bits >= INFINITY)
        redo = (n > 0) & (strange | ~in_range | (m2 < NARROW * weight) | (np.abs(d) > FAR))
    return RowMoments(partials, redo)
