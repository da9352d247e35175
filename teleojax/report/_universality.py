"""Are layers the same? mu and sigma across the tensors of a group against their sampling error."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from teleojax.diagnose import Universality, universality
from teleojax.report._groups import group_name, grouped
from teleojax.report._result import TensorFit
from teleojax.sources import fan_in


def universality_by(results: Mapping[str, TensorFit], by: str) -> dict[str, Universality]:
    """Universality of each group, with the standard errors of the jackknife where tensors were measured in groups."""
    fitted = [r for r in results.values() if r.lognormal is not None and r.status == "ok"]
    found = {}
    for value, members in grouped(fitted, by).items():
        rows = np.asarray([_estimates(r) for r in members])
        found[group_name(value)] = universality(*rows[:, :4].T, fan_in=rows[:, 4])
    return found


def _estimates(result: TensorFit) -> tuple[float, ...]:
    """mu, its error, sigma, its error, fan_in or NaN."""
    fit, families = result.lognormal, result.families or {}
    if fit is None:
        return (math.nan,) * 5
    jackknife = families["lognormal"].jackknife_se if "lognormal" in families else {}
    errors = (jackknife.get("mu", fit.mu_se), jackknife.get("sigma", fit.sigma_se))
    width = fan_in(result.shape, result.role, result.name) if result.shape is not None else None
    return fit.mu, float(np.asarray(errors[0])), fit.sigma, float(np.asarray(errors[1])), width or math.nan
