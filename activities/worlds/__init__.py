"""Worlds: specs, policies, bindings of strategies, and edges between domains."""
