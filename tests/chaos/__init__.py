"""Runs in which processes are killed at random moments: `python -m tests.chaos SUITE [RUNS] [SEED]`."""
