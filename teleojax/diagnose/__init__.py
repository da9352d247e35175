"""How far a fit is from the values: densities, divergences, distances."""

from teleojax.diagnose._bins import Bins as Bins
from teleojax.diagnose._bins import density_bins as density_bins
from teleojax.diagnose._density import LogDensity as LogDensity
from teleojax.diagnose._density import penalised_log_density as penalised_log_density
from teleojax.diagnose._distances import LognormalDistances as LognormalDistances
from teleojax.diagnose._distances import lognormal_distances as lognormal_distances
