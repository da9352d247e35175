"""Training towards equilibrium, and watching it: initializers, optax transformations, activations."""

from teleojax.train._accumulator import Accumulator as Accumulator
from teleojax.train._capture import capture_activations as capture_activations
from teleojax.train._initializers import Initializer as Initializer
from teleojax.train._initializers import jaynes as jaynes
from teleojax.train._initializers import lognormal as lognormal
from teleojax.train._initializers import lognormal_glorot as lognormal_glorot
from teleojax.train._initializers import lognormal_he as lognormal_he
from teleojax.train._initializers import lognormal_lecun as lognormal_lecun
from teleojax.train._initializers import lognormal_scaling as lognormal_scaling
from teleojax.train._initializers import truncated_lognormal as truncated_lognormal
from teleojax.train._reparameterize import LognormalDraw as LognormalDraw
from teleojax.train._reparameterize import LognormalTheta as LognormalTheta
from teleojax.train._reparameterize import lognormal_apply as lognormal_apply
from teleojax.train._reparameterize import lognormal_reparameterize as lognormal_reparameterize
from teleojax.train._tag import tag_activation as tag_activation
from teleojax.train._track import LogMomentsState as LogMomentsState
from teleojax.train._track import read as read
from teleojax.train._track import track_log_moments as track_log_moments
from teleojax.train._utility import UtilityGradientState as UtilityGradientState
from teleojax.train._utility import add_utility_gradient as add_utility_gradient
