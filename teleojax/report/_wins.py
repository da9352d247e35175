"""Which family wins where: by role or depth, how many tensors each family describes best, and by how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from teleojax.report._groups import group_name, grouped
from teleojax.report._result import TensorFit


@dataclass(frozen=True, slots=True)
class FamilyWins:
    """Of the `tensors` of a group that have comparable fits, `n` values together: `wins` counts those of which a family
    has the lowest BIC, the most frequent first; `gain_nats` is the mean gain of the winner over the lognormal, in nats
    per value, weighted by values, `least_gain_nats` and `most_gain_nats` its range over tensors.
    """

    tensors: int
    n: int
    wins: dict[str, int]
    gain_nats: float
    least_gain_nats: float
    most_gain_nats: float


def family_wins(results: Mapping[str, TensorFit], by: str) -> dict[str, FamilyWins]:
    """Wins by "role", "depth" or "model", in order of the groups; "unknown" holds tensors without a role or depth."""
    compared = [r for r in results.values() if math.isfinite(r.gain(r.best_bic))]
    found = {}
    for value, members in grouped(compared, by).items():
        n = np.asarray([r.moments.n if r.moments else 0 for r in members])
        gain = np.asarray([r.gain(r.best_bic) for r in members])
        wins = dict(Counter(str(r.best_bic) for r in members).most_common())
        found[group_name(value)] = FamilyWins(
            len(members), int(n.sum()), wins, float(gain @ n / n.sum()), float(gain.min()), float(gain.max())
        )
    return found
