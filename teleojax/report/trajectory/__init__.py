"""A run's checkpoints in order: what each says of every tensor, and where that changes."""

from teleojax.report.trajectory._result import TensorTrajectory as TensorTrajectory
from teleojax.report.trajectory._result import TrackedStep as TrackedStep
from teleojax.report.trajectory._result import Trajectory as Trajectory
from teleojax.report.trajectory._table import trajectory_table as trajectory_table
from teleojax.report.trajectory._track import track as track
