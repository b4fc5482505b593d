"""Figures of the shipped path, as JSON lines: `make bench [ONLY=suite]`."""
