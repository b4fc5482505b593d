"""Strategies of the demo, which also serve as examples."""
