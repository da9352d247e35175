"""`python -m teleojax`."""

from teleojax.cli import main

main()
