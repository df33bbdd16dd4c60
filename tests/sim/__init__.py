"""A whole cloud in one process, in virtual time, from a seed: `python -m tests.sim --seed N`."""
