"""Delete-a-group jackknife: standard errors that hold where neighbouring weights depend on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from teleojax.families import Family
from teleojax.fits._mle import FamilyFit, as_number, maximum_likelihood
from teleojax.stats import TensorStats


def with_jackknife(
    fits: Sequence[dict[str, FamilyFit]],
    families: Sequence[Family],
    stats: Sequence[TensorStats],
    *,
    interval: bool = False,
    xmin: float | None = None,
) -> list[dict[str, FamilyFit]]:
    """The fits with `jackknife_se` where the statistics hold groups, contiguous blocks of the tensor.

    Every family is fitted again to the G sets of all groups but one; the standard error of a parameter is
    √((G − 1)/G · Σ (estimate_g − mean)²). NaN where one of those fits has no maximum. A tail keeps its xmin.

    Reference: Kott (2001), The delete-a-group jackknife, J. Official Statistics 17.
    """
    where = [(i, g) for i, s in enumerate(stats) for g in range(len(s.groups))]
    if not where:
        return list(fits)
    again: dict[tuple[int, str], list[FamilyFit]] = {}
    for found, (i, _) in zip(
        maximum_likelihood(families, [stats[i].without(g) for i, g in where], interval=interval, xmin=xmin),
        where,
        strict=True,
    ):
        for name, fit in found.items():
            again.setdefault((i, name), []).append(fit)
    return [
        {
            name: replace(fit, jackknife_se=_standard_errors(fit, again[i, name])) if (i, name) in again else fit
            for name, fit in mine.items()
        }
        for i, mine in enumerate(fits)
    ]


def _standard_errors(fit: FamilyFit, deleted: Sequence[FamilyFit]) -> dict[str, Any]:
    if not fit.maximised:
        return {}
    if not all(d.maximised for d in deleted):
        return {name: as_number(np.full(np.shape(fit.params[name]), math.nan)) for name in fit.se}
    n_groups, errors = len(deleted), {}
    for name in fit.se:
        estimates = np.asarray([d.params[name] for d in deleted])
        square = np.sum((estimates - estimates.mean(axis=0)) ** 2, axis=0)
        errors[name] = as_number(np.sqrt((n_groups - 1) / n_groups * square))
    return errors
