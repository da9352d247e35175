"""How far a fit is from the values: densities, divergences, distances."""

from teleojax.diagnose._bins import Bins as Bins
from teleojax.diagnose._bins import density_bins as density_bins
from teleojax.diagnose._bootstrap import LARGE as LARGE
from teleojax.diagnose._bootstrap import BootstrapTest as BootstrapTest
from teleojax.diagnose._bootstrap import bootstrap_test as bootstrap_test
from teleojax.diagnose._changes import ChangePoint as ChangePoint
from teleojax.diagnose._changes import change_points as change_points
from teleojax.diagnose._density import LogDensity as LogDensity
from teleojax.diagnose._density import penalised_log_density as penalised_log_density
from teleojax.diagnose._distances import LognormalDistances as LognormalDistances
from teleojax.diagnose._distances import lognormal_distances as lognormal_distances
from teleojax.diagnose._goodness import Goodness as Goodness
from teleojax.diagnose._goodness import goodness_of_fit as goodness_of_fit
from teleojax.diagnose._gradient import DENSITIES as DENSITIES
from teleojax.diagnose._gradient import GradientSummary as GradientSummary
from teleojax.diagnose._gradient import Target as Target
from teleojax.diagnose._gradient import UtilityGradient as UtilityGradient
from teleojax.diagnose._gradient import check_choices as check_choices
from teleojax.diagnose._gradient import gradients as gradients
from teleojax.diagnose._universality import Heterogeneity as Heterogeneity
from teleojax.diagnose._universality import Universality as Universality
from teleojax.diagnose._universality import universality as universality
from teleojax.diagnose._vuong import VuongTest as VuongTest
from teleojax.diagnose._vuong import vuong as vuong
from teleojax.diagnose._wasserstein import log_wasserstein as log_wasserstein
