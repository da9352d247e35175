"""Distribution families of |w|, by name in FAMILIES."""

from teleojax.families._family import Family as Family
from teleojax.families._halfnormal import HALFNORMAL
from teleojax.families._lognormal import LOGNORMAL

FAMILIES: dict[str, Family] = {f.name: f for f in (LOGNORMAL, HALFNORMAL)}
