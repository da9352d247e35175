"""`fit`: statistics -> maximum likelihood, theory and diagnostics for every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from teleojax.diagnose import density_bins, lognormal_distances, penalised_log_density
from teleojax.engine import Measured, Selection, measure, measure_axis
from teleojax.fits import families_by_name, maximum_likelihood
from teleojax.report._axis import AxisReport
from teleojax.report._report import Report
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.sources._index import TensorSpec
from teleojax.sources._roles import classify
from teleojax.stats import TensorStats
from teleojax.teleo import utility_parameters

DEFAULT_FAMILIES = ("lognormal", "halfnormal")


@overload
def fit(target: Any, *, families: Iterable[str] = ..., axis: None = None, **measure_options: Any) -> Report: ...
@overload
def fit(target: Any, *, axis: int | tuple[int, ...], **measure_options: Any) -> AxisReport: ...
def fit(
    target: Any,
    *,
    families: Iterable[str] = DEFAULT_FAMILIES,
    axis: int | tuple[int, ...] | None = None,
    **measure_options: Any,
) -> Report | AxisReport:
    """Fit every tensor: the lognormal by maximum likelihood, its distance from equilibrium, the other families.

    `target` is what `measure` returned or anything that `measure` reads; then `measure_options` are those of
    `measure` (include, exclude, min_size, histogram, budget_bytes, progress). `families` are names in FAMILIES; the
    lognormal is always among them. A tensor without values, or without spread, has status "degenerate" and NaN where
    nothing exists; integer, empty and filtered tensors are listed as "skipped", unreadable ones as "failed".

    With `axis` every tensor is fitted once per index along that axis or those axes (0: per output neuron of a matrix
    stored as (out, in)), lognormal only, and an AxisReport of arrays comes back; of the options it takes include,
    exclude and min_size.

    Raises UsageError for an unknown family, or options given with statistics already measured; else as `measure`.
    """
    names = list(dict.fromkeys(["lognormal", *families]))
    families_by_name(names)
    if axis is not None:
        return AxisReport(*measure_axis(target, axis, Selection(**measure_options)), axis)
    if isinstance(target, Measured):
        if measure_options:
            raise TypeError(f"{', '.join(measure_options)}: the statistics are measured already")
        measured = target
    else:
        measured = measure(target, **measure_options)
    described = {name: _describe(spec) for name, spec in measured.specs.items()}
    fitted = fit_statistics({name: (described[name], stats) for name, stats in measured.stats.items()}, names)
    results = {}
    for name in measured.specs:
        if name in fitted:
            results[name] = fitted[name]
            continue
        skipped = measured.skipped.get(name)
        status, reason = ("skipped", skipped) if skipped is not None else ("failed", measured.failed.get(name))
        results[name] = TensorFit(**described[name], status=status, reason=reason)
    return Report(results, measured, tuple(names))


def _describe(spec: TensorSpec) -> dict[str, Any]:
    place = classify(spec.name, spec.shape)
    return {
        "name": spec.name,
        "role": place.role,
        "depth": place.depth,
        "shape": spec.shape,
        "dtype": spec.dtype,
        "size": spec.size,
    }


def fit_statistics(
    statistics: Mapping[str, tuple[dict[str, Any], TensorStats]], families: Sequence[str]
) -> dict[str, TensorFit]:
    """Fit many sets of statistics side by side; each comes with the fields that describe it."""
    usable = {name: stats for name, (_, stats) in statistics.items() if stats.moments.n > 1 and stats.moments.m2 > 0}
    lognormal = _fit_lognormals(usable)
    results = {}
    for name, (described, stats) in statistics.items():
        fits = {f.name: maximum_likelihood(f, stats.moments) for f in families_by_name(families)}
        if name in usable:
            record, reason = lognormal[name]
            results[name] = TensorFit(
                **described, status="ok", reason=reason, stats=stats, lognormal=record, families=fits
            )
            continue
        n = stats.moments.n
        mean = LognormalFit(stats.moments.mean, 0.0, 0.0, 0.0) if n else None
        reason = "no finite non-zero value" if n == 0 else "one value only" if n == 1 else "all |values| are equal"
        results[name] = TensorFit(
            **described, status="degenerate", reason=reason, stats=stats, lognormal=mean, families=fits
        )
    return results


def _fit_lognormals(usable: Mapping[str, TensorStats]) -> dict[str, tuple[LognormalFit, str | None]]:
    """The lognormal records, and a reason where the density, and so the potential gap, could not be had."""
    counted = {name: s.histogram for name, s in usable.items() if s.histogram is not None}
    moments = [usable[name].moments for name in counted]
    mu, sigma = np.asarray([m.mean for m in moments]), np.asarray([m.sigma for m in moments])
    bins = [density_bins(h, m.mean, m.sigma) for h, m in zip(counted.values(), moments, strict=True)]
    estimates = penalised_log_density([b.edges for b in bins], [b.counts for b in bins], mu, sigma)
    densities = dict(zip(counted, estimates, strict=True))
    records = {}
    for name, stats in usable.items():
        m = stats.moments
        utility = utility_parameters(m.mean, m.sigma)
        record = LognormalFit(
            mu=m.mean,
            sigma=m.sigma,
            mu_se=m.sigma / math.sqrt(m.n),
            sigma_se=m.sigma / math.sqrt(2 * m.n),
            alpha=utility.alpha,
            beta=utility.beta,
            h_star=utility.h_star(m.n),
        )
        reason = "no density estimate: only moments were taken"
        if name in counted:
            density = densities[name]
            distances = lognormal_distances(counted[name], m.mean, m.sigma)
            record = replace(
                record,
                kl_nats=density.kl_nats,
                kl_se=density.kl_se,
                dispersion=density.dispersion,
                utility_low=density.utility_low,
                utility_high=density.utility_high,
                fisher=density.fisher,
                ks=distances.ks,
                w1_log=distances.w1_log,
                r2=distances.r2,
            )
            reason = None if density.status == "ok" else f"no density estimate: {density.reason}"
        records[name] = (record, reason)
    return records
