"""teleojax: exact statistics of every parameter of a trained network, and its distance from arbitrage equilibrium."""

from teleojax import teleo as teleo
from teleojax._errors import CorruptInputError as CorruptInputError
from teleojax._errors import InputError as InputError
from teleojax._errors import MissingExtraError as MissingExtraError
from teleojax._errors import TeleojaxError as TeleojaxError
from teleojax._errors import UsageError as UsageError
from teleojax._version import __version__ as __version__
from teleojax.engine import Measured as Measured
from teleojax.engine import measure as measure
from teleojax.families import FAMILIES as FAMILIES
from teleojax.families import Family as Family
from teleojax.fits import FamilyFit as FamilyFit
from teleojax.report import AxisReport as AxisReport
from teleojax.report import LognormalFit as LognormalFit
from teleojax.report import Report as Report
from teleojax.report import TensorFit as TensorFit
from teleojax.report import fit as fit
from teleojax.sources import Source as Source
from teleojax.sources import TensorSpec as TensorSpec
from teleojax.sources import open_source as open_source
from teleojax.stats import AxisFit as AxisFit
from teleojax.stats import BitHistogram as BitHistogram
from teleojax.stats import CellCounts as CellCounts
from teleojax.stats import LogMoments as LogMoments
from teleojax.stats import TensorStats as TensorStats
from teleojax.stats import merge as merge
