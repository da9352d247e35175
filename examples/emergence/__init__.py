"""Does training move a network towards arbitrage equilibrium? Two small networks, from step 0, beside a null.

python -m examples.emergence            # from the repository's root; `make emergence` installs what it needs
"""
