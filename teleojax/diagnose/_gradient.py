"""The utility gradient of a layer as a function of |w|: from its statistics, tabulated for every value of a type.

With y = ln|w|, the force with which a connection would move to gain utility is

    ∂ĥ/∂y = −(y − μ)/σ² − s(y),      s = d ln p̂/dy      (∂ĥ/∂w = sign(w)/|w| · ∂ĥ/∂y)

and it is 0 for every connection at arbitrage equilibrium. μ and σ are those of the maximum-likelihood lognormal, s the
score of the penalised log-density. A target (α₀, β₀), of the measure dx, takes the place of the layer's own:
(α₀ + 1) − 2β₀ y − s(y). Where p̂ is the lognormal itself all is in closed form: (α₀ − α) − 2(β₀ − β) y.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float

from teleojax._errors import UsageError
from teleojax.diagnose._bins import density_bins
from teleojax.diagnose._density import LogDensity, penalised_log_density
from teleojax.kernels import CELL_BITS, WRT, ValueTable
from teleojax.stats import TensorStats
from teleojax.stats._bithist import float_dtype, magnitude_mask, pattern_dtype, pattern_values
from teleojax.teleo import UtilityParameters, utility_parameters

DENSITIES = ("empirical", "lognormal")
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MANTISSA = {"float32": 23, "float64": 52}  # bits below the exponent, of the types that are interpolated
LARGEST_LOG = 709.0  # whose exponential is a float64
Target = tuple[float, float] | UtilityParameters


@dataclass(frozen=True, slots=True)
class GradientSummary:
    """The utility gradient over the n finite non-zero values of one tensor.

    With wrt "log" of ∂ĥ/∂ln|w|, and then `mean_square` is the relative Fisher information I: the potential gap
    `kl_nats` (NaN without an empirical density) is at most ½σ²·I, up to the error of the density estimate. With wrt
    "value" of ∂ĥ/∂|w|, that is without the sign of w. `quantiles` maps levels to values. `status` is "ok", or
    "degenerate" where there is no gradient, with the `reason` in words; all numbers are NaN then.
    """

    n: int
    status: str = "ok"
    reason: str | None = None
    mean_square: float = math.nan
    rms: float = math.nan
    mean: float = math.nan
    min: float = math.nan
    max: float = math.nan
    quantiles: Mapping[float, float] | None = None
    kl_nats: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain fields for JSON, quantiles as q01 … q99; a number that does not exist is None."""
        fields = asdict(self) | {f"q{round(100 * level):02d}": (self.quantiles or {}).get(level) for level in LEVELS}
        del fields["quantiles"]
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


@dataclass(frozen=True, slots=True)
class UtilityGradient:
    """∂ĥ/∂y = `constant` + `slope` · y − s(y) of one layer, y = ln|w|; without `density` s is part of the line.

    With a `reason` there is none: no value, one value, or too few distinct ones for a density. It is 0 everywhere then.
    """

    constant: float
    slope: float
    density: LogDensity | None = None
    reason: str | None = None

    def __call__(self, y: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The gradient at any y, per unit of y."""
        if self.reason is not None:
            return np.zeros_like(y)
        line = self.constant + self.slope * y
        return line if self.density is None else line - _score(self.density, y)

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 at every value, so that nothing need be looked up."""
        return self.reason is not None or (self.constant == self.slope == 0 and self.density is None)

    def table(self, dtype: str, *, wrt: str = "log", scale: float = 1.0) -> ValueTable:
        """The gradient of every value that `dtype` holds; of "int8" as float32, with what a step stands for.

        On types of at most 16 bits rounded to nearest, exactly. On float32 and float64 a straight line in w over cells
        of at most 1/128 of w: with g = ∂ĥ/∂y off by at most 7.7e-6 (|g″| + |g′|), and with wrt "value" by
        7.7e-6 (|g″| + 3|g′| + 2|g|)/|w|. Zeros, NaN and infinities give 0, and so do values below 2⁻¹³³ in float32;
        a gradient past the range of the type is its largest number, or half of that in float32 and float64.
        """
        out = "float32" if dtype == "int8" else dtype
        most = float(ml_dtypes.finfo(float_dtype(out)).max)
        sign = -1.0 if wrt == "value" else 1.0
        if dtype not in MANTISSA:
            x, y = _magnitudes(dtype)
            g = self(y + math.log(scale)) / (x * scale if wrt == "value" else 1.0)
            g = np.where(np.isfinite(x), np.clip(g, -most, most), 0.0)
            # two's complement counts the negative half backwards, down from −128
            both = np.concatenate((g[:128], sign * g[:0:-1]) if dtype == "int8" else (g, sign * g)) + 0.0
            return ValueTable(dtype, out, both.astype(float_dtype(out)).view(pattern_dtype(out)))
        y, drop = _cell_edges(dtype)
        half = np.zeros((len(y), 2))
        with np.errstate(over="ignore"):
            at_edges = self(y) * (np.exp(np.minimum(-y, LARGEST_LOG)) if wrt == "value" else 1.0)
        at_edges = np.clip(at_edges, -most / 2, most / 2)  # so that no difference of two is past the range
        half[1:-1, 0], half[1:-1, 1] = at_edges[1:-1], np.diff(at_edges[1:]) * 0.5**drop
        # one sign holds all exponents: the last of them are infinities and NaN
        entries = np.zeros((1 << (8 * float_dtype(dtype).itemsize - drop), 2), float_dtype(dtype))
        entries[: len(half)] = half
        entries[len(entries) // 2 :][: len(half)] = sign * half + 0.0  # no −0
        return ValueTable(dtype, out, entries)

    def summarise(self, stats: TensorStats, *, wrt: str = "log") -> GradientSummary:
        """Its distribution over the values counted, each cell of the histogram taken at its middle."""
        n, histogram = stats.moments.n, stats.histogram
        if self.reason is not None or histogram is None:
            return GradientSummary(n, "degenerate", self.reason or "no histogram")
        x = np.clip(histogram.values(), stats.moments.min, stats.moments.max)
        share = histogram.counts / n
        with np.errstate(over="ignore"):  # float64 values near its smallest
            g = self(np.log(x)) / (x if wrt == "value" else 1.0)
            mean_square = float(np.add.reduce(share * (g * g)))
        order = np.argsort(g)
        upper = np.cumsum(share[order])
        points = np.interp(LEVELS, upper - 0.5 * share[order], g[order])
        return GradientSummary(
            n=n,
            mean_square=mean_square,
            rms=math.sqrt(mean_square),
            mean=float(np.add.reduce(share * g)),
            min=float(g[order[0]]),
            max=float(g[order[-1]]),
            quantiles=dict(zip(LEVELS, points.tolist(), strict=True)),
            kl_nats=math.nan if self.density is None else self.density.kl_nats,
        )


def gradients(
    stats: Mapping[str, TensorStats], *, density: str = "empirical", target: Target | None = None
) -> dict[str, UtilityGradient]:
    """The utility gradient of every tensor, all densities estimated side by side.

    `density` "empirical" is the penalised log-density, which needs histograms; "lognormal" the maximum-likelihood
    lognormal, with which the gradient is 0 unless there is a `target`, a pair (α, β) of the measure dx or
    UtilityParameters with γ = 1. Raises UsageError for another density, a target with β ≤ 0 or γ ≠ 1, and statistics
    without histograms where they are needed.
    """
    check_choices(density=density, target=target)
    goal = _target(target)
    estimates = _densities(stats) if density == "empirical" else {}
    found = {}
    for name, one in stats.items():
        m = one.moments
        if m.n < 2 or m.m2 <= 0:
            few = ("no finite non-zero value", "one value only")
            found[name] = UtilityGradient(0.0, 0.0, reason=few[m.n] if m.n < 2 else "all |values| are equal")
            continue
        own = utility_parameters(m.mean, m.sigma)
        towards = goal or own
        if density == "lognormal":
            found[name] = UtilityGradient(towards.alpha - own.alpha, -2 * (towards.beta - own.beta))
            continue
        estimate = estimates[name]
        reason = None if estimate.status == "ok" else f"no density estimate: {estimate.reason}"
        # −(y − μ)/σ² = (α + 1) − 2β y: α is of the measure dx, y wants that of d ln x
        found[name] = UtilityGradient(towards.alpha + 1, -2 * towards.beta, estimate, reason)
    return found


def check_choices(*, density: str = "empirical", wrt: str = "log", target: Target | None = None) -> None:
    """Refuse what is no choice, before anything is read. Raises UsageError."""
    for name, value, choices in (("density", density, DENSITIES), ("wrt", wrt, WRT)):
        if value not in choices:
            needed = " or ".join(map(repr, choices))
            raise UsageError(name, found=repr(value), needed=needed, remedy="Choose one of them.")
    _target(target)


def _target(target: Target | None) -> UtilityParameters | None:
    if target is None:
        return None
    if isinstance(target, UtilityParameters):
        goal = target.to_measure("dx")
    elif isinstance(target, tuple | list) and len(target) == 2:
        goal = UtilityParameters(float(target[0]), float(target[1]))
    else:
        goal = UtilityParameters(math.nan, math.nan)
    if not (math.isfinite(goal.alpha) and 0 < goal.beta < math.inf and goal.gamma == 1):
        raise UsageError(
            "target",
            found=repr(target),
            needed="(alpha, beta) of the measure dx, both finite, beta > 0, with competition 1",
            remedy="Take them from teleo.utility_parameters(mu, sigma), say.",
        )
    return goal


def _densities(stats: Mapping[str, TensorStats]) -> dict[str, LogDensity]:
    usable = {name: s for name, s in stats.items() if s.moments.n > 1 and s.moments.m2 > 0}
    bins, moments = [], [s.moments for s in usable.values()]
    for name, s in usable.items():
        if s.histogram is None:
            raise UsageError(
                f"tensor {name!r}",
                found="statistics without a histogram",
                needed="a histogram for the empirical density",
                remedy="Measure with histograms, or use density='lognormal' with a target.",
            )
        bins.append(density_bins(s.histogram, s.moments.mean, s.moments.sigma))
    means, sigmas = np.asarray([m.mean for m in moments]), np.asarray([m.sigma for m in moments])
    estimates = penalised_log_density([b.edges for b in bins], [b.counts for b in bins], means, sigmas)
    return dict(zip(usable, estimates, strict=True))


def _score(density: LogDensity, y: np.ndarray) -> np.ndarray:
    """The score at any y; evaluated where it changes, and once either side of that, where it is constant."""
    if density.curve is None:
        return density.score(y)
    low, high = (density.mu + density.sigma * end for end in density.curve.reach)
    ends = density.score(np.asarray([low - density.sigma, high + density.sigma]))
    score = np.where(y < low, ends[0], ends[1])
    inside = (y >= low) & (y <= high)
    score[inside] = density.score(y[inside])
    return score


@cache
def _magnitudes(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """|w| and ln|w| of the patterns without a sign of a type of at most 16 bits; ∞ and 0 for zero and what is not
    finite. Of "int8" those of 0 to 128.
    """
    n = 1 << (8 * pattern_dtype(dtype).itemsize - 1)
    x = np.arange(129.0) if dtype == "int8" else pattern_values(dtype, np.arange(n))
    seen = np.isfinite(x) & (x > 0)
    return np.where(seen, x, np.inf), np.log(np.where(seen, x, 1.0))


@cache
def _cell_edges(dtype: str) -> tuple[np.ndarray, int]:
    """ln|w| at the edges of all finite cells of a wide type, from 0 (there −∞ made finite) to 2^emax; bits dropped."""
    drop = MANTISSA[dtype] - CELL_BITS
    infinity = int(np.asarray(np.inf, dtype).view(pattern_dtype(dtype))) & magnitude_mask(dtype)
    keys = np.arange(infinity >> drop)
    y = np.log(np.maximum(pattern_values(dtype, keys << drop), np.finfo(np.float64).smallest_subnormal))
    return np.append(y, np.finfo(dtype).maxexp * math.log(2)), drop
