"""What a page keeps of a tensor for its figures: few bins, few points, small whole numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from teleojax.diagnose import Bins, LogDensity
from teleojax.fits import FamilyFit
from teleojax.report._curves import Layer, densities_of, drawn_families, layer, log_scale_densities, utility_curve
from teleojax.report._result import TensorFit

MOST_BINS, FEWEST_BINS = 120, 24
ALL_BINS = 120_000  # of a page: with more tensors than fill it at MOST_BINS, each gets fewer
POINTS = 61  # of a curve
STEPS = 10_000  # of a range of ln|w|: finer than any screen
PER_NAT = 1000  # logarithms of densities and utilities are kept in thousandths of a nat
OF_CURVE = 100  # parts of a nat in which curves of families are kept: finer than a line is wide
BELOW = 3.0  # nats under the least occupied bin where a family is no longer drawn
REACH = 5.0  # standard deviations of ln|w| that are drawn where there is no histogram


@dataclass(frozen=True, slots=True)
class Drawn:
    """A tensor that can be drawn: over which range of y = ln|w|, and from which ln p on families are drawn."""

    result: TensorFit
    low: float
    high: float
    floor: float


def displays(results: Sequence[TensorFit]) -> list[dict[str, Any] | None]:
    """One dict a tensor, ready for JSON; None where nothing can be drawn.

    `range` is that of y = ln|w|; `edges` of bins in STEPS of it and `density` ln p̂(y) of each bin, absent without a
    histogram; `families`, by name, the first of POINTS even points of the range where ln p(y) is drawn, and the values
    from there on; `utility` has its own `range`, the `line` at POINTS even points of it, `at` and `points` for the
    categories, `star` h*. Those of families are in 1/OF_CURVE nats, other logarithms and utilities in 1/PER_NAT
    nats, null where there is nothing.
    """
    drawable = {i: r for i, r in enumerate(results) if r.status == "ok" and r.lognormal is not None}
    counted = {i: layer(r, "a page") for i, r in drawable.items() if r.stats is not None and r.stats.histogram}
    estimates = dict(zip(counted, densities_of(list(counted.values())), strict=True)) if counted else {}
    most = max(FEWEST_BINS, min(MOST_BINS, ALL_BINS // max(1, len(counted))))
    found: list[dict[str, Any] | None] = [None] * len(results)
    drawn: dict[int, Drawn] = {}
    for i, r in drawable.items():
        if i in counted:
            shown, drawn[i] = _counted(r, counted[i], estimates[i], most)
        else:
            shown, drawn[i] = {}, _uncounted(r)
        found[i] = {**shown, "range": [drawn[i].low, drawn[i].high], "families": {}}
    for (i, family), curve in _families(drawn).items():
        shown = found[i]
        if shown is not None:
            shown["families"][family] = curve
    return found


def _counted(result: TensorFit, la: Layer, estimate: LogDensity, most: int) -> tuple[dict[str, Any], Drawn]:
    bins = display_bins(la.bins, most)
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    with np.errstate(divide="ignore"):
        log_p = np.log(bins.counts / bins.counts.sum() / np.diff(bins.edges))
    shown: dict[str, Any] = {"edges": _steps(bins.edges, low, high), "density": _thousandths(log_p)}
    if estimate.status == "ok":
        shown["utility"] = _utility(la, estimate, bins)
    return shown, Drawn(result, low, high, float(log_p[np.isfinite(log_p)].min()) - BELOW)


def _uncounted(result: TensorFit) -> Drawn:
    fit = result.lognormal
    mu, reach = (fit.mu, REACH * fit.sigma) if fit is not None else (0.0, 1.0)
    return Drawn(result, mu - reach, mu + reach, -math.inf)


def display_bins(bins: Bins, most: int) -> Bins:
    """Neighbouring bins taken together until there are at most `most`; the total is that of all."""
    kept = np.unique(np.linspace(0, len(bins.counts), most + 1).round().astype(int))
    below = np.append(0, np.cumsum(bins.counts))
    return Bins(bins.edges[kept], np.diff(below[kept]))


def _families(drawn: Mapping[int, Drawn]) -> dict[tuple[int, str], tuple[int, list[int | None]]]:
    """ln p(y) by tensor and family, in the order of each tensor's families; those of one family all at once."""
    kinds: dict[Any, list[tuple[int, FamilyFit]]] = {}
    for i, tensor in drawn.items():
        for fit in drawn_families(tensor.result):
            lengths = tuple(len(v) if isinstance(v, tuple) else 0 for v in fit.params.values())
            kinds.setdefault((fit.family, lengths), []).append((i, fit))
    curves = {(i, f.family): (0, []) for i, tensor in drawn.items() for f in drawn_families(tensor.result)}
    for members in kinds.values():
        y = np.stack([np.linspace(drawn[i].low, drawn[i].high, POINTS) for i, _ in members])
        log_p = log_scale_densities([fit for _, fit in members], y)
        for (i, fit), row in zip(members, log_p, strict=True):
            moments = drawn[i].result.moments
            share = math.log(fit.n / moments.n) if fit.n and moments is not None and moments.n else 0.0
            curves[i, fit.family] = _inside(np.where(row + share > drawn[i].floor, row + share, np.nan))
    return curves


def _utility(la: Layer, estimate: LogDensity, bins: Bins) -> dict[str, Any]:
    curve = utility_curve(la, estimate, POINTS, bins)
    low, high = float(curve.y[0]), float(curve.y[-1])
    return {
        "range": [low, high],
        "line": _thousandths(curve.utility),
        "at": _steps(curve.at, low, high),
        "points": _thousandths(curve.of_category),
        "star": la.fit.h_star,
    }


def _inside(curve: np.ndarray) -> tuple[int, list[int | None]]:
    """Where the curve begins, and its values from there to where it ends."""
    there = np.flatnonzero(np.isfinite(curve))
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, -1)
    return first, [None if math.isnan(v) else round(v * OF_CURVE) for v in curve[first : last + 1].tolist()]


def _steps(y: np.ndarray, low: float, high: float) -> list[int]:
    return np.round((y - low) / (high - low) * STEPS).astype(int).tolist()


def _thousandths(nats: np.ndarray) -> list[int | None]:
    return [round(v * PER_NAT) if ok else None for v, ok in zip(nats.tolist(), np.isfinite(nats), strict=True)]
