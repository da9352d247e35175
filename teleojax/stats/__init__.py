"""The statistics of |w|: mergeable, exact in their counts, float64 on the host."""

from teleojax.stats._axis import AxisFit as AxisFit
from teleojax.stats._bithist import BitHistogram as BitHistogram
from teleojax.stats._careful import careful_moments as careful_moments
from teleojax.stats._careful import careful_rows as careful_rows
from teleojax.stats._cells import CellCounts as CellCounts
from teleojax.stats._logmoments import LogMoments as LogMoments
from teleojax.stats._logmoments import Partials as Partials
from teleojax.stats._rounded import RoundedCells as RoundedCells
from teleojax.stats._rows import RowMoments as RowMoments
from teleojax.stats._rows import row_moments as row_moments
from teleojax.stats._tensor import TensorStats as TensorStats
from teleojax.stats._tensor import merge as merge
