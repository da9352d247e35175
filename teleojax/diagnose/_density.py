"""Penalised log-density of y = ln|w| from binned counts, and the distance from arbitrage equilibrium it gives.

The logarithm of the density is a cubic spline f(z) of z = (y − mu)/sigma that maximises

    Σ_b [n_b ln μ_b − μ_b] − (λ/2) ∫ f‴(z)² dz,      μ_b = n ∫_{bin b} e^{f(z)} dz,

over the whole line: the bins, and the empty stretches either side of them, where f goes on as a quadratic. A quadratic
f costs no penalty and is a lognormal law of |w|, so at λ → ∞ the estimate is the maximum-likelihood lognormal of the
binned data, and a layer at equilibrium is shown at equilibrium. λ minimises an AIC that counts 1.4 for each effective
degree of freedom.

References: Silverman (1982), On the estimation of a probability density function by the maximum penalized likelihood
method, Ann. Statist. 10; Eilers & Marx (1996), Flexible smoothing with B-splines and penalties, Statist. Sci. 11;
Kim & Gu (2004), Smoothing spline Gaussian regression, J. R. Statist. Soc. B 66; Hurvich & Tsai (1989), Biometrika 76;
Venkatasubramanian et al., arXiv 2405.10955, for the effective utility whose spread is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from teleojax.diagnose._bspline import ORDER, PiecewiseCubic
from teleojax.diagnose._design import NODES, Batch, Prepared, prepare
from teleojax.diagnose._penalised import Fit, fit_batch

CHUNK = 32  # tensors solved side by side: their design matrices together stay inside a second-level cache
MISSED_MASS = 1e-6  # share of the mass that may hide between quadrature nodes
TOO_STEEP = "the density is too steep for its bins"


@dataclass(frozen=True)
class LogDensity:
    """The density of y = ln|w| of one tensor and its distance from arbitrage equilibrium.

    `h` below is the effective utility of a connection up to a constant, h(y) = −ln(p̂/q)(y), where p̂ is the estimate
    and q the lognormal with p̂'s own mean and variance of y. Every number is NaN where `status` is "failed".

    kl_nats: KL(p̂ ‖ q), the potential gap φ* − φ, in nats per connection; never negative.
    kl_se: standard error of `kl_nats`: its sampling error SD_p̂[h]/√n, the χ² error √((edf − 2)/2)/n that is left at
        equilibrium where the first vanishes, and the bias λ∫f‴²/n of smoothing. Under some 300 values a departure may
        stay unseen and the interval kl ± 1.96·se be too short.
    dispersion: SD_p̂[h] over connections, nats; 0 at equilibrium.
    utility_low, utility_high: 5% and 95% points of h − E[h] over connections, nats.
    fisher: E_p̂[(∂h/∂y)²], the mean square utility gradient, in 1/(ln|w|)². The Gaussian log-Sobolev inequality holds:
        kl_nats ≤ ½·log_sd²·fisher.
    edf: effective degrees of freedom, 3 for a lognormal.
    log_lambda: natural logarithm of λ in the units of z.
    log_mean, log_sd: mean and standard deviation of y under p̂.
    status: "ok" or "failed", with the `reason` in words.
    """

    kl_nats: float
    kl_se: float
    dispersion: float
    utility_low: float
    utility_high: float
    fisher: float
    edf: float
    log_lambda: float
    log_mean: float
    log_sd: float
    status: str
    reason: str
    mu: float
    sigma: float
    curve: PiecewiseCubic | None = field(repr=False)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """ln p̂(y), per unit of y, at any y: quadratic beyond the data, linear far beyond; NaN after a failure."""
        y = np.asarray(y, np.float64)
        if self.curve is None:
            return np.full(y.shape, np.nan)
        return self.curve.value((y - self.mu) / self.sigma) - np.log(self.sigma)

    def score(self, y: np.ndarray) -> np.ndarray:
        """The score s(y) = d ln p̂/dy, in 1/ln|w|, at any y; constant far beyond the data; NaN after a failure."""
        y = np.asarray(y, np.float64)
        if self.curve is None:
            return np.full(y.shape, np.nan)
        return self.curve.slope((y - self.mu) / self.sigma) / self.sigma


def penalised_log_density(
    edges: list[np.ndarray], counts: list[np.ndarray], mu: np.ndarray, sigma: np.ndarray, n_knots: int = 60
) -> list[LogDensity]:
    """Estimate the density of y = ln|w| of each tensor from its binned counts.

    Args:
        edges: per tensor, increasing bin edges in y, float64, one more than bins; any widths.
        counts: per tensor, how many values fell in each bin; fractions are welcome.
        mu, sigma: per tensor, mean and standard deviation of y from exact moments. They set the unit of length only.
        n_knots: knot gaps over the central 99.8% of each tensor.

    Returns:
        One `LogDensity` a tensor, in order. Too few values (8) or occupied bins (4), or a sigma that is not a positive
        number, give status "failed"; no numeric outcome raises.

    Raises:
        ValueError: lengths disagree, edges do not increase, a count is negative.
    """
    if not len(edges) == len(counts) == len(mu) == len(sigma):
        found = f"{len(edges)} edges, {len(counts)} counts, {len(mu)} mu, {len(sigma)} sigma"
        raise ValueError(f"found {found}; needed one of each per tensor. Pass lists of equal length.")
    results: dict[int, LogDensity] = {}
    waiting: list[tuple[int, Prepared]] = []
    for i in range(len(edges)):
        ready = prepare(f"tensor {i} of {len(edges)}", edges[i], counts[i], float(mu[i]), float(sigma[i]), n_knots)
        if isinstance(ready, str):
            results[i] = _failed(float(mu[i]), float(sigma[i]), ready)
        else:
            waiting.append((i, ready))
    while waiting:
        order = min(ready.order for _, ready in waiting)
        chunk = sorted((item for item in waiting if item[1].order == order), key=lambda item: item[1].total)[:CHUNK]
        taken = {i for i, _ in chunk}
        waiting = [item for item in waiting if item[0] not in taken]
        batch = Batch.of([ready for _, ready in chunk])
        records = _summarise(batch, fit_batch(batch), order, [(float(mu[i]), float(sigma[i])) for i, _ in chunk])
        for (i, ready), record in zip(chunk, records, strict=True):
            finer = NODES[NODES.index(order) + 1 :]
            if record.reason == TOO_STEEP and finer:
                waiting.append((i, replace(ready, order=finer[0])))
            else:
                results[i] = record
    return [results[i] for i in range(len(edges))]


def _failed(mu: float, sigma: float, reason: str) -> LogDensity:
    nan = float("nan")
    return LogDensity(nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, "failed", reason, mu, sigma, None)


def _summarise(batch: Batch, fit: Fit, order: int, unit: list[tuple[float, float]]) -> list[LogDensity]:
    """Turn fitted coefficients into records; expectations are sums over nodes finer than those of the fit.

    A spline may hide mass between the nodes of its own fit, above all beside a lone outlier. So the total is taken
    again on the finer nodes, and a tensor where it differs is reported as too steep.
    """
    of_cell, start = batch.tensor_of_cell, batch.cell_start

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat((weight * values).sum(0), start)

    finer = [*NODES[1:], 2 * NODES[-1]][NODES.index(order)]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        powers = np.einsum("jds,js->ds", batch.powers, fit.coefs[batch.base + np.arange(ORDER)[:, None]])
        z, weight, f, slope = batch.tabulate(powers, finer)
        weight = weight * np.exp(f)
        norm = np.add.reduceat(weight.sum(0), start)
        weight /= norm[of_cell]
        f -= np.log(norm)[of_cell]
        m = mean(z)
        centred = z - m[of_cell]
        v = mean(centred**2)
        log_ratio = f + 0.5 * (centred**2 / v[of_cell] + np.log(2 * np.pi * v)[of_cell])
        plug_in = mean(log_ratio)
        variance = mean((log_ratio - plug_in[of_cell]) ** 2)
        fisher = mean((centred / v[of_cell] + slope) ** 2)
        kl = np.maximum(plug_in, 0)
        unresolved = np.maximum(fit.edf - 2, 1)
        se = np.sqrt(variance / batch.total + unresolved / (2 * batch.total**2) + (fit.penalty / batch.total) ** 2)
    share = weight.sum(0)
    utility = np.where(share > 0, -(weight * log_ratio).sum(0) / np.where(share > 0, share, 1), 0.0)
    records = []
    for t, (mu, sigma) in enumerate(unit):
        numbers = np.array([kl[t], se[t], variance[t], fisher[t], fit.edf[t], fit.lam[t], m[t], v[t]])
        if not (fit.converged[t] and np.isfinite(numbers).all()):
            records.append(_failed(mu, sigma, "the penalised likelihood did not converge"))
            continue
        if abs(norm[t] - fit.norm[t]) > MISSED_MASS:
            records.append(_failed(mu, sigma, TOO_STEEP))
            continue
        cells = slice(start[t], start[t + 1] if t + 1 < start.size else None)
        low, high = _weighted_quantiles(utility[cells] + plug_in[t], share[cells])
        of_interval = batch.intervals(t)
        p = powers[:, of_interval].copy()
        p[0] -= np.log(norm[t])
        records.append(
            LogDensity(
                kl_nats=float(kl[t]),
                kl_se=float(se[t]),
                dispersion=float(np.sqrt(variance[t])),
                utility_low=low,
                utility_high=high,
                fisher=float(fisher[t] / sigma**2),
                edf=float(fit.edf[t]),
                log_lambda=float(np.log(fit.lam[t])),
                log_mean=float(mu + sigma * m[t]),
                log_sd=float(sigma * np.sqrt(v[t])),
                status="ok",
                reason="",
                mu=mu,
                sigma=sigma,
                curve=PiecewiseCubic(batch.knots[t], p, batch.reach[t]),
            )
        )
    return records


def _weighted_quantiles(values: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """The 5% and 95% points of `values` held by connections in proportion to `share`."""
    by_value = np.argsort(values)
    upper = np.cumsum(share[by_value])
    low, high = np.interp([0.05, 0.95], upper - 0.5 * share[by_value], values[by_value])
    return float(low), float(high)
