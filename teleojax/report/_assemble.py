"""`fit`: statistics -> maximum likelihood, theory and diagnostics for every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from teleojax._errors import UsageError
from teleojax.diagnose import density_bins, lognormal_distances, penalised_log_density
from teleojax.engine import Measured, Selection, is_statistics, load_statistics, measure, measure_axis
from teleojax.fits import FamilyFit, curve_fit, families_by_name, line_fit, maximum_likelihood, with_jackknife
from teleojax.report._axis import AxisReport
from teleojax.report._check import check_families
from teleojax.report._options import DEFAULT_FAMILIES, PUBLISHED, FitOptions
from teleojax.report._report import Report
from teleojax.report._result import LognormalFit, TensorFit
from teleojax.sources._index import TensorSpec
from teleojax.sources._roles import classify
from teleojax.stats import TensorStats
from teleojax.teleo import utility_parameters


@overload
def fit(target: Any, *, families: str | Iterable[str] = ..., axis: None = None, **options: Any) -> Report: ...
@overload
def fit(target: Any, *, axis: int | tuple[int, ...], **options: Any) -> AxisReport: ...
def fit(
    target: Any,
    *,
    families: str | Iterable[str] = DEFAULT_FAMILIES,
    method: str = "mle",
    axis: int | tuple[int, ...] | None = None,
    bins: int = 100,
    grid: str | None = None,
    xmin: float | None = None,
    bootstrap: int = 0,
    vuong: bool = False,
    level: float = 0.95,
    **measure_options: Any,
) -> Report | AxisReport:
    """Fit every tensor: the lognormal by maximum likelihood, its distance from equilibrium, the other families.

    `target` is what `measure` returned, a mapping of names to TensorStats, a statistics file (of which tensors may be
    selected), or anything that `measure` reads; then `measure_options` are those of `measure` (include, exclude,
    min_size, histogram, groups, budget_bytes, progress).
    `families` are names in FAMILIES, or "all"; the lognormal is always among them. A tensor without values, or without
    spread, has status "degenerate" and NaN where nothing exists; integer, empty and filtered tensors are listed as
    "skipped", unreadable ones as "failed".

    `method` says how the families are fitted: "mle", maximum likelihood of the stored values; "interval", that of the
    rounding cells they were stored in, zeros of fp8, int8 and int4 included; "histogram", least squares of a lognormal
    curve to a histogram of `bins` equal bins (arXiv 2405.10955); "probability-plot", a Weibull line through the middle
    80% (arXiv 2605.18898; `grid` "npm-weibull" uses its bins). The lognormal record, with the distance from
    equilibrium, is by maximum likelihood whatever the method, of the rounding cells with "interval".
    `xmin` is where tail families begin (default: searched for); `bootstrap` replicates give a calibrated p of each
    family; `vuong` tests each against the lognormal; `level` is that of intervals in tables.

    With `axis` every tensor is fitted once per index along that axis or those axes (0: per output neuron of a matrix
    stored as (out, in)), lognormal only, and an AxisReport of arrays comes back; of the options it takes include,
    exclude and min_size.

    Raises UsageError for an unknown family or method, a family that needs histograms without them, or options given
    with statistics already measured; else as `measure`.
    """
    asked = [families] if isinstance(families, str) else families
    names = tuple(f.name for f in families_by_name(["lognormal", *asked]))
    options = FitOptions(names, method, bins, grid, xmin, bootstrap, vuong, level)
    if axis is not None:
        return AxisReport(*measure_axis(target, axis, Selection(**measure_options)), axis)
    measured = statistics_of(target, cells=method == "interval", **measure_options)
    if any(s.histogram is None for s in measured.stats.values()):
        _refuse_without_histograms(options)
    described = {name: _describe(spec) for name, spec in measured.specs.items()}
    fitted = fit_statistics({name: (described[name], stats) for name, stats in measured.stats.items()}, options)
    results = {}
    for name in measured.specs:
        if name in fitted:
            results[name] = fitted[name]
            continue
        skipped = measured.skipped.get(name)
        status, reason = ("skipped", skipped) if skipped is not None else ("failed", measured.failed.get(name))
        results[name] = TensorFit(**described[name], status=status, reason=reason)
    return Report(results, measured, options)


def statistics_of(target: Any, *, cells: bool = False, split: bool = True, **measure_options: Any) -> Measured:
    """The statistics that `target` is, holds, or names a file of; else measured anew, with rounding cells if asked."""
    if isinstance(target, (str, Path)) and str(target) != "-" and is_statistics(Path(target)):
        chosen = {o: measure_options[o] for o in ("include", "exclude", "min_size") if o in measure_options}
        return load_statistics(target).select(Selection(**chosen))
    if not isinstance(target, Measured):
        if not (isinstance(target, Mapping) and target and all(isinstance(s, TensorStats) for s in target.values())):
            return measure(target, cells=cells, split=split, **measure_options)
        target = Measured.of(dict(target))
    if measure_options:
        raise TypeError(f"{', '.join(measure_options)}: the statistics are measured already")
    return target


def _describe(spec: TensorSpec) -> dict[str, Any]:
    place = classify(spec.name, spec.shape)
    return {
        "name": spec.name,
        "role": spec.role or place.role,
        "depth": place.depth if spec.depth is None else spec.depth,
        "shape": spec.shape,
        "dtype": spec.stored_as or spec.dtype,
        "size": spec.size,
    }


def _refuse_without_histograms(options: FitOptions) -> None:
    needing = [f.name for f in families_by_name(options.families) if f.closed_form is None]
    if needing or options.method != "mle":
        raise UsageError(
            "histogram",
            found="statistics without histograms",
            needed=f"histograms for {', '.join(needing) or 'method ' + options.method}",
            remedy="Measure with histograms, or ask for lognormal, halfnormal and exponential alone.",
        )


def fit_statistics(
    statistics: Mapping[str, tuple[dict[str, Any], TensorStats]], options: FitOptions
) -> dict[str, TensorFit]:
    """Fit many sets of statistics side by side; each comes with the fields that describe it."""
    usable = {name: stats for name, (_, stats) in statistics.items() if stats.moments.n > 1 and stats.moments.m2 > 0}
    likeliest = _maximum_likelihood([stats for _, stats in statistics.values()], options)
    lognormals = {name: fits["lognormal"] for name, fits in zip(statistics, likeliest, strict=True)}
    lognormal = _describe_lognormals(usable, lognormals)
    results = {}
    for (name, (described, stats)), found in zip(statistics.items(), likeliest, strict=True):
        fits = _published(stats, found, options)
        if name in usable:
            record, reason = lognormal[name]
            checks = check_families(name, stats, fits, record.kl_nats, options)
            results[name] = TensorFit(
                **described, status="ok", reason=reason, stats=stats, lognormal=record, families=fits, checks=checks
            )
            continue
        n = stats.moments.n
        mean = LognormalFit(stats.moments.mean, 0.0, 0.0, 0.0) if n else None
        reason = "no finite non-zero value" if n == 0 else "one value only" if n == 1 else "all |values| are equal"
        results[name] = TensorFit(
            **described, status="degenerate", reason=reason, stats=stats, lognormal=mean, families=fits
        )
    return results


def _maximum_likelihood(stats: Sequence[TensorStats], options: FitOptions) -> list[dict[str, FamilyFit]]:
    """Every family of every set of statistics at its maximum of likelihood, with jackknife errors where there are
    groups; for a published method the lognormal alone.
    """
    families = families_by_name(["lognormal"] if options.method in PUBLISHED else options.families)
    interval = options.method == "interval"
    fits = maximum_likelihood(families, stats, interval=interval, xmin=options.xmin)
    return with_jackknife(fits, families, stats, interval=interval, xmin=options.xmin)


def _published(stats: TensorStats, fits: dict[str, FamilyFit], options: FitOptions) -> dict[str, FamilyFit]:
    """The fits, with that of a published method in its place."""
    if options.method == "histogram":
        return {**fits, "lognormal": curve_fit(stats, bins=options.bins)}
    if options.method == "probability-plot":
        return {**fits, "weibull": line_fit(stats, grid=options.grid)}
    return fits


def _describe_lognormals(
    usable: Mapping[str, TensorStats], fits: Mapping[str, FamilyFit]
) -> dict[str, tuple[LognormalFit, str | None]]:
    """The lognormal records, and a reason where the density, and so the potential gap, could not be had."""
    counted = {name: s.histogram for name, s in usable.items() if s.histogram is not None}
    moments = [usable[name].moments for name in counted]
    means, sigmas = np.asarray([m.mean for m in moments]), np.asarray([m.sigma for m in moments])
    bins = [density_bins(h, m.mean, m.sigma) for h, m in zip(counted.values(), moments, strict=True)]
    estimates = penalised_log_density([b.edges for b in bins], [b.counts for b in bins], means, sigmas)
    densities = dict(zip(counted, estimates, strict=True))
    records = {}
    for name, stats in usable.items():
        fit = fits[name]
        mu, sigma = fit.params["mu"], fit.params["sigma"]
        utility = utility_parameters(mu, sigma)
        record = LognormalFit(
            mu, sigma, fit.se["mu"], fit.se["sigma"], utility.alpha, utility.beta, utility.h_star(stats.moments.n)
        )
        reason = "no density estimate: only moments were taken"
        if name in counted:
            density = densities[name]
            distances = lognormal_distances(counted[name], mu, sigma)
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
