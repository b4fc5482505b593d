"""Tokens that were given out, and whether they were taken back."""
