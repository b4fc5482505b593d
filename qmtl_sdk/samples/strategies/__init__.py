"""Strategies of the demo: read them as examples of how a strategy is written."""
