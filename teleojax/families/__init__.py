"""Distribution families of |w|, by name in FAMILIES."""

from teleojax._errors import UsageError
from teleojax.families._exponential import EXPONENTIAL
from teleojax.families._family import ClosedForm as ClosedForm
from teleojax.families._family import Family as Family
from teleojax.families._family import Shape as Shape
from teleojax.families._gamma import GAMMA
from teleojax.families._gengamma import GENGAMMA
from teleojax.families._half_t import HALF_T
from teleojax.families._halfgennorm import HALFGENNORM
from teleojax.families._halfnormal import HALFNORMAL
from teleojax.families._invgauss import INVGAUSS
from teleojax.families._loglogistic import LOGLOGISTIC
from teleojax.families._lognormal import LOGNORMAL
from teleojax.families._lognormal_mixture import LOGNORMAL_MIXTURE
from teleojax.families._pareto import PARETO
from teleojax.families._truncated_lognormal import TRUNCATED_LOGNORMAL
from teleojax.families._weibull import WEIBULL

FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Let fits know one more family by its name. Raises UsageError where the name is taken."""
    if family.name in FAMILIES:
        raise UsageError(
            "families",
            found=f"a second family named {family.name!r}",
            needed=f"a name other than {', '.join(FAMILIES)}",
            remedy="Rename it.",
        )
    FAMILIES[family.name] = family


for _family in (
    LOGNORMAL, HALFNORMAL, WEIBULL, EXPONENTIAL, GAMMA, GENGAMMA, HALF_T, HALFGENNORM, LOGLOGISTIC, INVGAUSS,
    TRUNCATED_LOGNORMAL, PARETO, LOGNORMAL_MIXTURE,
):  # fmt: skip
    register(_family)
