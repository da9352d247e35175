"""Cubic B-splines with free knots, as cubics in each interval: knots, basis, penalty and evaluation.

Everything is ragged and flat: the intervals of many tensors lie end to end, so that one NumPy call serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

ORDER = 4  # a cubic has four B-splines on each interval
TAIL_SHARE = 1e-3  # knots are uniform between this quantile and its mirror image, stretched outside
CROWDED = 0.3  # knots nearer than this share of the central gap are thinned: the penalty's entries go as gap⁻⁵
STRETCH = 1.5  # ratio of successive knot gaps in the stretched tails


def choose_knots(
    z: Float64[np.ndarray, " edges"], counts: Float64[np.ndarray, " bins"], n_knots: int
) -> Int64[np.ndarray, " knots"]:
    """Indices of the bin edges that serve as knots: uniform in the centre, geometric gaps in the tails.

    A knot is always a bin edge. So a bin lies inside one interval, its expected count depends on four coefficients
    only, and no knot is closer to its neighbour than the bins can resolve: coarse bins thin the knots by themselves.

    `n_knots` gaps are laid between the 0.1% and 99.9% points; outside, each gap is 1.5 times the one before, until the
    last occupied bin, so that one value 80 standard deviations away costs the centre no resolution.
    """
    cumulative = np.append(0.0, np.cumsum(counts))
    low, high = np.interp([TAIL_SHARE, 1 - TAIL_SHARE], cumulative / cumulative[-1], z)
    gap = (high - low) / n_knots
    left, right = low - z[0], z[-1] - high
    steps = int(np.ceil(np.log1p(max(left, right) / gap * (STRETCH - 1)) / np.log(STRETCH)))
    reach = gap * (STRETCH ** np.arange(1, steps + 1) - 1) / (STRETCH - 1)
    wanted = np.concatenate(
        (low - reach[reach < left], np.linspace(low, high, n_knots + 1), high + reach[reach < right])
    )
    after = np.clip(np.searchsorted(z, wanted), 1, z.size - 1)
    nearest = after - (wanted - z[after - 1] < z[after] - wanted)
    chosen = np.unique(np.concatenate((nearest, [0, z.size - 1])))
    spaced = np.append(np.diff(z[chosen]) > CROWDED * gap, True)  # a knot makes way for its right neighbour
    spaced[0] = True
    chosen = chosen[spaced]
    if chosen.size > 2 and z[chosen[1]] - z[0] <= CROWDED * gap:
        chosen = np.delete(chosen, 1)
    return chosen


def extend_knots(knots: Float64[np.ndarray, " knots"]) -> Float64[np.ndarray, " extended"]:
    """The knots with three more on each side, at the spacing of the first and of the last interval."""
    beyond = np.arange(1, ORDER)
    first, last = knots[1] - knots[0], knots[-1] - knots[-2]
    return np.concatenate((knots[0] - first * beyond[::-1], knots, knots[-1] + last * beyond))


def basis_powers(windows: Float64[np.ndarray, "6 intervals"]) -> Float64[np.ndarray, "4 4 intervals"]:
    """Power coefficients of the four cubic B-splines alive on each interval.

    `windows[:, s]` are the knots t_{k-2} … t_{k+3} around interval [t_k, t_{k+1}]; the answer `c[j, d, s]` means
    B_j(t_k + u) = Σ_d c[j, d, s] u^d (the Cox–de Boor recursion, run on polynomials in place of numbers).
    """
    t = windows - windows[2]
    basis = np.zeros((ORDER, ORDER, t.shape[1]))
    basis[0, 0] = 1.0
    for degree in range(1, ORDER):
        saved = np.zeros((ORDER, t.shape[1]))
        for r in range(degree):
            right, left = t[3 + r], t[3 + r - degree]
            part = basis[r] / (right - left)
            shifted = np.concatenate((np.zeros((1, t.shape[1])), part[:-1]))
            basis[r] = saved + right * part - shifted
            saved = shifted - left * part
        basis[degree] = saved
    return basis


def quadratic_coefficients(
    extended: Float64[np.ndarray, " extended"], constant: float, linear: float, square: float
) -> Float64[np.ndarray, " coefs"]:
    """B-spline coefficients of `constant + linear·z + square·z²`, exact (Marsden's identity)."""
    a, b, c = extended[1:-3], extended[2:-2], extended[3:-1]
    return constant + linear * (a + b + c) / 3 + square * (a * b + a * c + b * c) / 3


def powers_of(u: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u, u² and the cubic's third power, for a cubic that goes on as its own quadratic outside [0, width].

    Inside it is u³. Outside the third derivative is 0 and value, slope and curvature join: 0 on the left,
    u³ − (u − width)³ on the right.
    """
    inside = np.minimum(np.maximum(u, 0.0), width)
    over = np.maximum(u - width, 0.0)
    return u, u * u, inside * (inside * inside + 3 * over * (inside + over))


@dataclass(frozen=True)
class PiecewiseCubic:
    """A C² cubic spline between its first and last knot, a quadratic out to `reach`, a straight line beyond.

    The line falls away from the data with the slope found at `reach`, or is flat where that slope would rise, so the
    value never explodes.
    """

    knots: Float64[np.ndarray, " knots"]
    powers: Float64[np.ndarray, "4 intervals"]
    reach: tuple[float, float]

    def value(self, z: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """f(z)."""
        inner = np.clip(z, *self.reach)
        (u, u2, u3), p, _ = self._local(inner)
        return p[0] + p[1] * u + p[2] * u2 + p[3] * u3 + (z - inner) * self.slope(z)

    def slope(self, z: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """f′(z)."""
        inner = np.clip(z, *self.reach)
        (u, _, _), p, width = self._local(inner)
        inside = np.clip(u, 0.0, width)
        slope = p[1] + 2 * p[2] * u + 3 * p[3] * inside * (2 * u - inside)
        return np.where(z < inner, np.maximum(slope, 0.0), np.where(z > inner, np.minimum(slope, 0.0), slope))

    def _local(self, z: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
        interval = np.clip(np.searchsorted(self.knots, z, side="right") - 1, 0, self.knots.size - 2)
        width = (self.knots[1:] - self.knots[:-1])[interval]
        return powers_of(z - self.knots[interval], width), self.powers[:, interval], width
