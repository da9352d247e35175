"""One plain sentence or two on what a network's layers show, with the numbers; for the theory or against it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from teleojax._errors import printable
from teleojax.report._options import FitOptions
from teleojax.report._report import Report
from teleojax.report._result import TensorFit

GAUSSIAN_KL = 0.162975  # nats per connection: an untrained Gaussian layer (half-normal |w|) from its lognormal
NEAR = 0.01  # nats per connection: closer than this, a layer of any realistic size looks lognormal
LARGE = 1000  # values a tensor needs for its distance to mean something


class Gap(NamedTuple):
    """A tensor's result with the two numbers that the finding weighs."""

    result: TensorFit
    n: int
    kl_nats: float


def _gap(result: TensorFit) -> Gap | None:
    moments, fit = result.moments, result.lognormal
    if moments is None or fit is None or moments.n < LARGE or not math.isfinite(fit.kl_nats):
        return None
    return Gap(result, moments.n, fit.kl_nats)


def _verdict(mean: float) -> str:
    gaussian = f"an untrained Gaussian layer ({GAUSSIAN_KL:.3f})"
    if mean < NEAR:
        return "as the theory of arbitrage equilibrium predicts"
    if mean < GAUSSIAN_KL - NEAR:
        return f"nearer than {gaussian}, yet not lognormal"
    if mean <= GAUSSIAN_KL + NEAR:
        return f"about where {gaussian} lies: not what the theory predicts"
    return f"farther than {gaussian}: not what the theory predicts"


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def finding(report: Report) -> str:
    """The finding over all weight tensors of LARGE values or more that have a distance from equilibrium."""
    large = [g for r in report.values() if (g := _gap(r)) is not None]
    source = report.measured.source
    if not large:
        return f"{source}: no tensor of {LARGE:,} values or more has a distance from equilibrium."
    n = sum(g.n for g in large)
    mean = sum(g.n * g.kl_nats for g in large) / n
    near = sum(g.kl_nats < NEAR for g in large)
    nearest, farthest = min(large, key=lambda g: g.kl_nats), max(large, key=lambda g: g.kl_nats)
    text = (
        f"{source}: over {n:,} weights in {_tensors(len(large))} the mean distance from arbitrage equilibrium is "
        f"{mean:.4f} nats per connection, {_verdict(mean)}. {near} of {len(large)} lie within {NEAR} nats; "
        f"nearest {nearest.kl_nats:.4f} ({printable(nearest.result.name)}), "
        f"farthest {farthest.kl_nats:.4f} ({printable(farthest.result.name)})."
    )
    if report.written is None:  # results read from a file cannot be pooled
        (pooled,) = replace(report, options=FitOptions()).group_by("model").values()
        if pooled.lognormal is not None and math.isfinite(pooled.lognormal.kl_nats):
            text += f" Pooled, the weights of all tensors together lie at {pooled.lognormal.kl_nats:.4f}."
    rivals = [g for g in large if g.result.best_bic not in (None, "lognormal")]
    if rivals:
        gain = sum(g.n * g.result.gain(g.result.best_bic) for g in rivals) / sum(g.n for g in rivals)
        counts = Counter(str(g.result.best_bic) for g in rivals).most_common()
        names = counts[0][0] if len(counts) == 1 else "another family"
        text += f" {len(rivals)} of {len(large)} fit {names} better than lognormal, by a mean {gain:.4f} nats a weight"
        text += f" ({', '.join(f'{name} {count}' for name, count in counts)})." if len(counts) > 1 else "."
    return text
