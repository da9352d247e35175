"""The theory: what a fitted layer says of utility and equilibrium."""

from teleojax.teleo._utility import LognormalParameters as LognormalParameters
from teleojax.teleo._utility import UtilityParameters as UtilityParameters
from teleojax.teleo._utility import lognormal_parameters as lognormal_parameters
from teleojax.teleo._utility import utility_parameters as utility_parameters
