"""Which of two fitted families is closer to the truth: Vuong's test, and the likelihood-ratio test of nested ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import chdtrc, chdtri, ndtr

from teleojax.families import Family
from teleojax.stats import BitHistogram

Fitted = tuple[Family, Mapping[str, Any]]

ON_THE_BOUNDARY = frozenset(
    {
        ("half_t", "halfnormal"),  # 1/df = 0
        ("truncated_lognormal", "pareto"),  # 1/sigma² = 0: in ln x the log-density is a line, and may not bend upwards
    }
)
NO_LIMIT_LAW = {"lognormal_mixture": "with a component too many, the weights and the places of a mixture are not told"}
ROUNDING = 1e-10  # relative to a log-density
SLACK_NATS, SLACK = 1e-3, 1e-9  # a fit may miss its maximum by so many nats: in all, and a value
LEVEL = 0.05  # of the first step: can the two be told apart at all?


@dataclass(frozen=True, slots=True)
class VuongTest:
    """Two families compared on `n` values, each at its maximum of likelihood.

    mean_difference: mean of ln f₁(x) − ln f₂(x), nats per value; positive where the first is closer to the truth.
    omega: standard deviation of that difference over the values, nats.
    likelihood_ratio: 2n · mean_difference.
    z: √n · mean_difference / omega; NaN for nested families, for which it is not normal.
    p_value: two-sided, of equally good families differing so much; for nested ones, of the smaller falling so far
        behind while it is the truth. Where n is large any difference is significant: read the nats first.
    nested: whether one family contains the other.
    law: what gave p_value: "normal"; "chi2", with as many degrees of freedom as the larger family has parameters more;
        "half chi2", ½ at 0 and ½ chi2, where the smaller lies on the boundary of the larger; or "".
    status: "ok"; "indistinguishable", p_value = 1: the log-densities are equal up to rounding, or n·omega² is no larger
        than chance makes it for coinciding densities; with p_value NaN, "no limit law", "not maximised" (the larger
        family has the lower likelihood, not for being at its limit), "outside support" (a value has no density) and
        "empty". `reason` in words.
    """

    first: str
    second: str
    nested: bool
    n: int = 0
    mean_difference: float = math.nan
    omega: float = math.nan
    likelihood_ratio: float = math.nan
    z: float = math.nan
    p_value: float = math.nan
    law: str = ""
    status: str = "ok"
    reason: str = ""


def vuong(histogram: BitHistogram, first: Fitted, second: Fitted) -> VuongTest:
    """Compare two families, each with its maximum-likelihood parameters, on the values (middles of coarse cells).

    Families that do not contain each other: z is standard normal where both are equally far from the truth and their
    densities differ. So n·omega² is tested first: where the two coincide it is a sum of terms w·χ²₁, one a parameter,
    w ≤ 1 for families that hold the truth, and the 95% point with every w = 1 is the limit here.
    With a tail family only the values ≥ xmin (the larger of two) count, and densities are conditional on that.
    Without a value, or with empty parameters (a fit that has no maximum): status "empty", numbers NaN.

    Reference: Vuong (1989), Likelihood ratio tests for model selection and non-nested hypotheses, Econometrica 57;
    Self & Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood ratio tests under
    nonstandard conditions, J. Am. Stat. Assoc. 82.
    """
    one, two = first[0], second[0]
    test = VuongTest(one.name, two.name, nested=two.name in one.contains or one.name in two.contains)
    if not (first[1] and second[1]):
        return replace(test, status="empty", reason="a fit without parameters")
    xmin = max((float(params["xmin"]) for family, params in (first, second) if family.tail), default=0.0)
    values = histogram.values()
    inside = values >= xmin
    x, counts = values[inside], histogram.counts[inside]
    test = replace(test, n=int(counts.sum()))
    if test.n == 0:
        return replace(test, status="empty", reason="no values")
    log_first, log_second = (_log_density(fitted, x, xmin) for fitted in (first, second))
    with np.errstate(invalid="ignore", over="ignore"):
        difference, weight = log_first - log_second, counts / test.n
        mean = float(weight @ difference)
        omega = math.sqrt(float(weight @ (difference - mean) ** 2))
    test = replace(test, mean_difference=mean, omega=omega, likelihood_ratio=2 * test.n * mean)
    if not math.isfinite(mean):
        return replace(test, status="outside support", reason="a value has no density in one of the two")
    if np.all(np.abs(difference) <= ROUNDING * (1 + np.abs(log_first))):
        return replace(test, p_value=1.0, status="indistinguishable", reason="the densities are equal up to rounding")
    return _nested(test, first, second) if test.nested else _separate(test, one.n_free + two.n_free)


def _log_density(fitted: Fitted, x: np.ndarray, xmin: float) -> Float[np.ndarray, " k"]:
    """ln p(x | X ≥ xmin)."""
    family, params = fitted
    padded = np.resize(x, 1 << (len(x) - 1).bit_length())  # JAX compiles for each length: let there be few
    log_density = family.logpdf(padded, params)[: len(x)]
    if xmin > 0 and not (family.tail and params["xmin"] == xmin):
        log_density = log_density - family.logsf(np.asarray([xmin]), params)[0]
    return log_density


def _separate(test: VuongTest, n_parameters: int) -> VuongTest:
    """Neither contains the other."""
    z = math.sqrt(test.n) * test.mean_difference / test.omega if test.omega > 0 else math.inf
    if test.n * test.omega**2 <= chdtri(n_parameters, LEVEL):
        reason = f"n·omega² = {test.n * test.omega**2:.3g} is what chance makes of coinciding densities"
        return replace(test, z=z, p_value=1.0, status="indistinguishable", reason=reason)
    return replace(test, z=z, p_value=float(2 * ndtr(-abs(z))), law="normal")


def _nested(test: VuongTest, first: Fitted, second: Fitted) -> VuongTest:
    """One contains the other: the likelihood ratio cannot be negative, and is χ² where the smaller is the truth."""
    one_is_larger = second[0].name in first[0].contains
    (larger, params), (smaller, _) = (first, second) if one_is_larger else (second, first)
    ratio = test.likelihood_ratio if one_is_larger else -test.likelihood_ratio
    # parameters that stop just short of a limit leave a little of its likelihood behind
    if ratio < -2 * (SLACK_NATS + SLACK * test.n) and larger.limit(params) != smaller.name:
        reason = f"{larger.name} contains {smaller.name} and has the lower likelihood: it is not at its maximum"
        return replace(test, status="not maximised", reason=reason)
    more = larger.n_free - smaller.n_free
    if larger.name in NO_LIMIT_LAW or more < 1:
        reason = NO_LIMIT_LAW.get(larger.name, f"{larger.name} has no more parameters than {smaller.name}")
        return replace(test, status="no limit law", reason=reason)
    ratio = max(ratio, 0.0)
    if (larger.name, smaller.name) in ON_THE_BOUNDARY:
        return replace(test, p_value=float(chdtrc(1, ratio)) / 2 if ratio > 0 else 1.0, law="half chi2")
    return replace(test, p_value=float(chdtrc(more, ratio)), law="chi2")
