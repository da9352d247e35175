"""Maximum likelihood from statistics; the parameters themselves are not read again."""

from teleojax.fits._mle import FamilyFit as FamilyFit
from teleojax.fits._mle import families_by_name as families_by_name
from teleojax.fits._mle import maximum_likelihood as maximum_likelihood
