"""What is said of one tensor, or of one group of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from teleojax._errors import UsageError
from teleojax.fits import FamilyFit
from teleojax.report._check import FamilyCheck
from teleojax.stats import BitHistogram, LogMoments, TensorStats


@dataclass(frozen=True, slots=True)
class LognormalFit:
    """The maximum-likelihood lognormal of |w| and the distance from arbitrage equilibrium.

    `mu`, `sigma` of ln|w| with standard errors σ/√n and σ/√(2n); `alpha`, `beta`, `h_star` the utility parameters in
    the measure dx; `kl_nats` ± `kl_se` the potential gap in nats per connection; `dispersion` the standard deviation of
    the effective utility over connections and `utility_low`, `utility_high` its 5% and 95% points less its mean, nats;
    `fisher` the mean squared utility gradient, per (ln|w|)²; `ks`, `w1_log`, `r2` distances of the fit (sup-CDF,
    Wasserstein-1 in ln|w|, probability plot). A number that does not exist is NaN here and null in JSON.
    """

    mu: float
    sigma: float
    mu_se: float
    sigma_se: float
    alpha: float = math.nan
    beta: float = math.nan
    h_star: float = math.nan
    kl_nats: float = math.nan
    kl_se: float = math.nan
    dispersion: float = math.nan
    utility_low: float = math.nan
    utility_high: float = math.nan
    fisher: float = math.nan
    ks: float = math.nan
    w1_log: float = math.nan
    r2: float = math.nan


@dataclass(frozen=True, slots=True)
class WrittenMoments:
    """What a JSON line holds of LogMoments: counts, and numbers of |w| and ln|w| that are NaN where n = 0."""

    n: int
    n_zero: int
    n_nonfinite: int
    n_negative: int
    min: float
    max: float
    rms: float
    skew: float
    excess_kurtosis: float

    @property
    def size(self) -> int:
        """Number of values, zeros and non-finite ones included."""
        return self.n + self.n_zero + self.n_nonfinite


@dataclass(frozen=True, slots=True)
class TensorFit:
    """All results for one tensor. `status` is "ok", "degenerate" (σ = 0, n < 2), "skipped" or "failed", with a reason.

    `lognormal` is None unless there is at least one finite non-zero value; `tensors` counts the tensors of a group.
    `stats` are None where there are none, and of results that were read from a file: those have `written` instead.
    """

    name: str
    role: str | None
    depth: int | None
    shape: tuple[int, ...] | None
    dtype: str
    size: int
    status: str
    reason: str | None = None
    stats: TensorStats | None = None
    lognormal: LognormalFit | None = None
    families: dict[str, FamilyFit] | None = None
    tensors: int | None = None
    checks: dict[str, FamilyCheck] | None = None
    written: WrittenMoments | None = None

    @property
    def comparable(self) -> list[FamilyFit]:
        """Fits at their maximum that describe all values, so that likelihoods may be compared: no tail of fewer."""
        fits = [f for f in (self.families or {}).values() if f.maximised]
        most = max((f.n for f in fits), default=0)
        return [f for f in fits if f.n == most]

    @property
    def best_family(self) -> str | None:
        """The family of highest likelihood per value among those asked for; the first of equals."""
        fits = self.comparable
        return max(fits, key=lambda f: f.loglik_per_value).family if fits else None

    @property
    def best_bic(self) -> str | None:
        """The family of lowest BIC among those asked for: likelihood, less ½ ln n for each parameter."""
        fits = self.comparable
        return min(fits, key=lambda f: f.bic).family if fits else None

    @property
    def delta_nats(self) -> float:
        """What the best family gains over the lognormal, in nats per value; NaN when either is missing."""
        return self.gain(self.best_family)

    def gain(self, family: str | None) -> float:
        """What a family gains over the lognormal, in nats per value; NaN where the two cannot be compared."""
        fits = {f.family: f for f in self.comparable}
        if family not in fits or "lognormal" not in fits:
            return math.nan
        return fits[family].loglik_per_value - fits["lognormal"].loglik_per_value

    def to_dict(self) -> dict[str, Any]:
        """The result as plain Python values under the documented keys; numbers that do not exist are None."""
        moments = self.moments
        fit = self.lognormal

        def of(record: object, *names: str) -> dict[str, Any]:
            return {name: _number(getattr(record, name)) if record is not None else None for name in names}

        some = moments if moments is not None and moments.n else None
        group = {} if self.tensors is None else {"tensors": self.tensors}
        return {
            "name": self.name,
            "role": self.role,
            "depth": self.depth,
            "shape": None if self.shape is None else list(self.shape),
            "dtype": self.dtype,
            "size": self.size,
            **group,
            **of(moments, "n", "n_zero", "n_nonfinite", "n_negative"),
            **of(some, "min", "max", "rms"),
            **of(fit, "mu", "sigma", "mu_se", "sigma_se"),
            **of(some, "skew", "excess_kurtosis"),
            **of(fit, "alpha", "beta", "h_star", "kl_nats", "kl_se", "dispersion", "fisher", "ks", "w1_log", "r2"),
            "families": {n: _family(f, (self.checks or {}).get(n)) for n, f in (self.families or {}).items()} or None,
            "best_family": self.best_family,
            "delta_nats": _number(self.delta_nats),
            "best_bic": self.best_bic,
            "status": self.status,
            "reason": self.reason,
        }

    @property
    def moments(self) -> LogMoments | WrittenMoments | None:
        """The log-moments, or what a file keeps of them, if the tensor was measured."""
        return self.stats.moments if self.stats else self.written

    def histogram(self, purpose: str) -> BitHistogram:
        """The histogram, for a purpose that needs one. Raises UsageError where there is none."""
        found = self.stats.histogram if self.stats else None
        if found is None or self.stats is None or self.stats.moments.n == 0:
            raise UsageError(
                self.name,
                found="no histogram of its values",
                needed=f"one, for {purpose}",
                remedy="Fit a checkpoint or a statistics file: results read back and moments alone have none.",
            )
        return found

    def plot_density(self, ax: Any = None, *, style: str = "light") -> Any:
        """The density of ln|w| on a logarithmic scale, with the fitted families; returns the matplotlib Axes.

        Extra "plots", as for every figure. Raises UsageError without a histogram of values that differ.
        """
        from teleojax.report.plots import plot_density

        return plot_density(self, ax, style=style)

    def plot_probability(self, ax: Any = None, *, style: str = "light") -> Any:
        """A lognormal probability plot of |w|, with the fitted families; returns the matplotlib Axes."""
        from teleojax.report.plots import plot_probability

        return plot_probability(self, ax, style=style)

    def plot_utility(self, ax: Any = None, *, style: str = "light") -> Any:
        """Effective utility by category, beside h*, and the utility gradient; returns the matplotlib Axes."""
        from teleojax.report.plots import plot_utility

        return plot_utility(self, ax, style=style)


def _family(fit: FamilyFit, check: FamilyCheck | None) -> dict[str, Any]:
    line: dict[str, Any] = {k: _number(v) for k, v in fit.params.items()}
    line |= {f"{k}_se": _number(v) for k, v in fit.se.items()}
    line |= {f"{k}_jackknife_se": _number(v) for k, v in fit.jackknife_se.items()}
    line |= {name: _number(getattr(fit, name)) for name in ("n", "loglik_per_value", "aic", "bic")}
    line |= {k: _number(v) for k, v in fit.extra.items()}
    if check is not None:
        line["kl_nats"] = _number(check.kl_nats)
        if check.goodness is not None:
            line |= {name: _number(getattr(check.goodness, name)) for name in ("ks", "ad", "cvm", "w1_log", "r2")}
        if check.bootstrap is not None:
            line |= {"p_value": _number(check.bootstrap.p_value), "replicates": check.bootstrap.replicates}
        if check.vuong is not None:
            line |= {"vuong_z": _number(check.vuong.z), "vuong_p": _number(check.vuong.p_value)}
    return {**line, "status": fit.status, "limit": fit.limit}


def _number(value: float | tuple[float, ...]) -> Any:
    """A JSON number, or None for what does not exist; a list of them of a vector. NumPy scalars become Python's."""
    if isinstance(value, tuple):
        return [_number(v) for v in value]
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None
