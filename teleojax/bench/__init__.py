"""Speed beside the memory limit and beside what people use today, measured in turn in one process."""

from teleojax.bench._contestants import SUBJECT as SUBJECT
from teleojax.bench._data import log_moments as log_moments
from teleojax.bench._data import weights as weights
from teleojax.bench._environment import environment as environment
from teleojax.bench._limits import Limits as Limits
from teleojax.bench._limits import measure_limits as measure_limits
from teleojax.bench._record import Record as Record
from teleojax.bench._record import absent_record as absent_record
from teleojax.bench._record import records_of as records_of
from teleojax.bench._suite import Results as Results
from teleojax.bench._suite import run_suite as run_suite
from teleojax.bench._table import limits_line as limits_line
from teleojax.bench._table import results_json as results_json
from teleojax.bench._table import results_table as results_table
from teleojax.bench._timing import Contestant as Contestant
from teleojax.bench._timing import Race as Race
from teleojax.bench._timing import Timing as Timing
from teleojax.bench._timing import WrongAnswerError as WrongAnswerError
from teleojax.bench._timing import interleaved as interleaved
