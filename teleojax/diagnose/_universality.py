"""Are mu and sigma the same across layers? Meta-analysis of estimates with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import chdtrc

from teleojax._errors import UsageError


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """How far one parameter's estimates t_i with standard errors s_i, i = 1…n, differ beyond sampling error.

    n: layers used. n_left_out: layers without a finite estimate and a finite, positive standard error.
    mean, mean_se: Σ w t / Σ w with w = 1/s², and (Σ w)^−½, which holds where all layers are the same.
    plain_mean: Σ t / n. spread: the standard deviation of t between layers (n − 1 in the denominator).
    sampling_se: the mean of s.
    q, dof, p_value: Cochran's Q = Σ w (t − mean)², its n − 1 degrees of freedom, and P(χ² ≥ Q): of so much spread in
        layers that are the same. Large networks reject always; tau then says by how much.
    i2: the share of the spread that sampling error does not explain, max(0, 1 − dof/Q).
    tau: standard deviation of the true values between layers by DerSimonian and Laird's moments,
        tau² = max(0, Q − dof) / (Σ w − Σ w² / Σ w), in units of t.

    NaN: the means and sampling_se where n = 0; spread, q, p_value, i2 and tau where n < 2.
    """

    n: int
    n_left_out: int
    mean: float
    mean_se: float
    plain_mean: float
    spread: float
    sampling_se: float
    q: float
    dof: int
    p_value: float
    i2: float
    tau: float


@dataclass(frozen=True, slots=True)
class Universality:
    """Heterogeneity across layers of `mu`, of `sigma`, and of `scaled_mu` = mu + ½ ln fan_in (None without fan_in).

    Layers that all start as N(0, c²/fan_in) differ in mu, and agree in scaled_mu.
    """

    mu: Heterogeneity
    sigma: Heterogeneity
    scaled_mu: Heterogeneity | None


def universality(
    mu: Float[np.ndarray, " _"],
    mu_se: Float[np.ndarray, " _"],
    sigma: Float[np.ndarray, " _"],
    sigma_se: Float[np.ndarray, " _"],
    *,
    fan_in: np.ndarray | None = None,
) -> Universality:
    """Are mu and sigma of ln|w| the same across layers?

    Standard errors decide: those of a lognormal fit (σ/√n, σ/√2n) are too small for values that depend on each other,
    and that of sigma for values that are not lognormal. A layer whose fan_in is not positive is left out of scaled_mu.

    Raises UsageError where lengths differ.

    Reference: Cochran (1954), The combination of estimates from different experiments, Biometrics 10; DerSimonian &
    Laird (1986), Meta-analysis in clinical trials, Control. Clin. Trials 7; Higgins & Thompson (2002), Quantifying
    heterogeneity in a meta-analysis, Stat. Med. 21.
    """
    given = {"mu": mu, "mu_se": mu_se, "sigma": sigma, "sigma_se": sigma_se}
    if fan_in is not None:
        given["fan_in"] = fan_in
    if len({len(values) for values in given.values()}) > 1:
        raise UsageError(
            "universality",
            found=", ".join(f"{len(values)} {name}" for name, values in given.items()),
            needed="one of each per layer",
            remedy="Pass arrays of equal length.",
        )
    scaled = None
    if fan_in is not None:
        fan_in = np.asarray(fan_in, np.float64)
        usable = fan_in > 0
        scaled = _heterogeneity(np.where(usable, mu + 0.5 * np.log(np.where(usable, fan_in, 1)), np.nan), mu_se)
    return Universality(_heterogeneity(mu, mu_se), _heterogeneity(sigma, sigma_se), scaled)


def _heterogeneity(estimate: np.ndarray, se: np.ndarray) -> Heterogeneity:
    estimate, se = np.asarray(estimate, np.float64), np.asarray(se, np.float64)
    usable = np.isfinite(estimate) & np.isfinite(se) & (se > 0)
    t, s = estimate[usable], se[usable]
    n, left_out, nan = len(t), int(np.sum(~usable)), math.nan
    if n == 0:
        return Heterogeneity(0, left_out, nan, nan, nan, nan, nan, nan, 0, nan, nan, nan)
    unit = s.min()
    d, w = (t - t[0]) / unit, (unit / s) ** 2
    total = w.sum()
    centre = w @ d / total
    mean, mean_se = float(t[0] + unit * centre), float(unit / math.sqrt(total))
    plain, sampling = float(t.mean()), float(s.mean())
    if n == 1:
        return Heterogeneity(1, left_out, mean, mean_se, plain, nan, sampling, nan, 0, nan, nan, nan)
    q, dof = float(w @ (d - centre) ** 2), n - 1
    excess = max(q - dof, 0.0)
    return Heterogeneity(
        n=n,
        n_left_out=left_out,
        mean=mean,
        mean_se=mean_se,
        plain_mean=plain,
        spread=float(unit * d.std(ddof=1)),
        sampling_se=sampling,
        q=q,
        dof=dof,
        p_value=float(chdtrc(dof, q)),
        i2=excess / q if q > 0 else 0.0,
        tau=float(unit * math.sqrt(excess / (total - w @ w / total))),
    )
