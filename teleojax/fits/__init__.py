"""Fits from statistics; the parameters themselves are not read again."""

from teleojax.fits._histogram import HistogramFit as HistogramFit
from teleojax.fits._histogram import histogram_fit as histogram_fit
from teleojax.fits._histogram import histogram_sensitivity as histogram_sensitivity
from teleojax.fits._jackknife import with_jackknife as with_jackknife
from teleojax.fits._mle import FamilyFit as FamilyFit
from teleojax.fits._mle import families_by_name as families_by_name
from teleojax.fits._mle import maximum_likelihood as maximum_likelihood
from teleojax.fits._probability_plot import ProbabilityPlotFit as ProbabilityPlotFit
from teleojax.fits._probability_plot import probability_plot_fit as probability_plot_fit
from teleojax.fits._published import curve_fit as curve_fit
from teleojax.fits._published import line_fit as line_fit
from teleojax.fits._tail import Tail as Tail
from teleojax.fits._tail import find_tail as find_tail
