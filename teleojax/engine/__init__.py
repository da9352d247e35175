"""The only room that jits, shards and folds."""

from teleojax.engine._apply import apply_to_leaves as apply_to_leaves
from teleojax.engine._apply import apply_to_source as apply_to_source
from teleojax.engine._axis import measure_axis as measure_axis
from teleojax.engine._functions import compiled as compiled
from teleojax.engine._functions import compiled_float64 as compiled_float64
from teleojax.engine._measure import Measured as Measured
from teleojax.engine._measure import Selection as Selection
from teleojax.engine._measure import measure as measure
from teleojax.engine._processes import gather as gather
from teleojax.engine._processes import initialize as initialize
from teleojax.engine._statsfile import dump_statistics as dump_statistics
from teleojax.engine._statsfile import is_statistics as is_statistics
from teleojax.engine._statsfile import load_statistics as load_statistics
from teleojax.engine._statsfile import merge_measured as merge_measured
