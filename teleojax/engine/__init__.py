"""The only room that jits, shards and folds."""

from teleojax.engine._measure import Measured as Measured
from teleojax.engine._measure import measure as measure
