"""Maximum likelihood of a family from the statistics of a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from teleojax._errors import UsageError
from teleojax.families import FAMILIES, Family
from teleojax.stats import LogMoments


@dataclass(frozen=True, slots=True)
class FamilyFit:
    """One family at its maximum of likelihood. `loglik_per_value` is the mean of ln p(x), density in x, in nats;
    `aic` = 2k − 2 ln L and `bic` = k ln n − 2 ln L for k parameters. `status` is "ok", or "degenerate" where no maximum
    exists: then the parameters are empty and the numbers NaN.
    """

    family: str
    params: dict[str, float]
    loglik_per_value: float
    aic: float
    bic: float
    status: str

    def __getattr__(self, name: str) -> float:
        """A parameter by its name: `fit.scale`."""
        try:
            return self.params[name]
        except KeyError:
            raise AttributeError(
                f"{self.family} has no {name!r}; it has {', '.join(self.params) or 'no fit'}"
            ) from None


def families_by_name(names: Iterable[str]) -> list[Family]:
    """The families of those names, each once, in that order. Raises UsageError for a name that is not known."""
    names = list(dict.fromkeys(names))
    unknown = [n for n in names if n not in FAMILIES]
    if unknown:
        raise UsageError(
            "families",
            found=", ".join(map(repr, unknown)),
            needed=f"names among {', '.join(FAMILIES)}",
            remedy="Correct the name.",
        )
    return [FAMILIES[n] for n in names]


def maximum_likelihood(family: Family, moments: LogMoments) -> FamilyFit:
    """The family's maximum-likelihood fit to everything the moments count."""
    params = family.estimate(moments) if moments.n > 1 else None
    if params is None:
        return FamilyFit(family.name, {}, math.nan, math.nan, math.nan, "degenerate")
    loglik = family.loglik_per_value(moments, params)
    k, total = len(family.parameters), moments.n * loglik
    return FamilyFit(family.name, params, loglik, 2 * k - 2 * total, k * math.log(moments.n) - 2 * total, "ok")
