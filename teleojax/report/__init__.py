"""Results: what is said of each tensor, groups, tables, files."""

from teleojax.report._assemble import fit as fit
from teleojax.report._assemble import statistics_of as statistics_of
from teleojax.report._axis import AxisReport as AxisReport
from teleojax.report._finding import finding as finding
from teleojax.report._gradient import GradientFiles as GradientFiles
from teleojax.report._gradient import GradientReport as GradientReport
from teleojax.report._gradient import gradient_summary as gradient_summary
from teleojax.report._gradient import utility_gradient as utility_gradient
from teleojax.report._gradient import write_gradient as write_gradient
from teleojax.report._groups import GROUPINGS as GROUPINGS
from teleojax.report._options import DEFAULT_FAMILIES as DEFAULT_FAMILIES
from teleojax.report._options import METHODS as METHODS
from teleojax.report._report import Report as Report
from teleojax.report._result import LognormalFit as LognormalFit
from teleojax.report._result import TensorFit as TensorFit
from teleojax.report._shards import SHARD_BYTES as SHARD_BYTES
from teleojax.report._table import report_table as report_table
from teleojax.report._table import universality_table as universality_table
from teleojax.report._table import wins_table as wins_table
from teleojax.report._wins import FamilyWins as FamilyWins
from teleojax.report._write import save_statistics as save_statistics
from teleojax.report._write import write_atomically as write_atomically
