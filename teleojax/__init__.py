"""teleojax."""
