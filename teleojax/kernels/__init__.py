"""Pure functions from one block of weights to partial statistics; `engine` jits and runs them."""

from teleojax.kernels._bithist import pattern_counts as pattern_counts
from teleojax.kernels._bithist import pattern_counts_one_hot as pattern_counts_one_hot
from teleojax.kernels._bithist import pattern_counts_scattered as pattern_counts_scattered
from teleojax.kernels._bithist import pattern_counts_sorted as pattern_counts_sorted
from teleojax.kernels._bithist import pattern_counts_whole as pattern_counts_whole
from teleojax.kernels._bithist_pallas import pattern_counts_pallas as pattern_counts_pallas
from teleojax.kernels._logmoments import LAYOUTS as LAYOUTS
from teleojax.kernels._logmoments import RowSums as RowSums
from teleojax.kernels._logmoments import row_sums as row_sums
from teleojax.kernels._rowfits import RowFits as RowFits
from teleojax.kernels._rowfits import row_fits as row_fits
from teleojax.kernels._utility import CELL_BITS as CELL_BITS
from teleojax.kernels._utility import WRT as WRT
from teleojax.kernels._utility import ValueTable as ValueTable
from teleojax.kernels._utility import bits_dropped as bits_dropped
from teleojax.kernels._utility import lognormal_gradient as lognormal_gradient
from teleojax.kernels._utility import tabulated as tabulated
