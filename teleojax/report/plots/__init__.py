"""Figures. Each takes `ax=None` and style "light" or "dark", and returns the matplotlib Axes; extra "plots"."""

from teleojax.report.plots._layer import plot_density as plot_density
from teleojax.report.plots._layer import plot_probability as plot_probability
from teleojax.report.plots._layer import plot_utility as plot_utility
from teleojax.report.plots._network import plot_depth as plot_depth
from teleojax.report.plots._network import plot_heatmap as plot_heatmap
from teleojax.report.plots._roofline import plot_roofline as plot_roofline
from teleojax.report.plots._trajectory import plot_changes as plot_changes
from teleojax.report.plots._trajectory import plot_trajectory as plot_trajectory
from teleojax.report.plots._trajectory import refuse_figure as refuse_figure
from teleojax.report.plots._trajectory import save_figure as save_figure
from teleojax.report.plots._wins import plot_wins as plot_wins
