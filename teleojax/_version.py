"""The version, read by the build and by `teleojax --version`."""

__version__ = "0.1.0"
