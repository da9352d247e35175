"""Distribution families of |w|, by name in FAMILIES."""

from teleojax.families._family import ClosedForm as ClosedForm
from teleojax.families._family import Family as Family
from teleojax.families._family import Shape as Shape
from teleojax.families._halfnormal import HALFNORMAL
from teleojax.families._lognormal import LOGNORMAL
from teleojax.families._weibull import WEIBULL

FAMILIES: dict[str, Family] = {f.name: f for f in (LOGNORMAL, HALFNORMAL, WEIBULL)}
