"""Nodes and strategies: the classes that an author uses, and their identity."""
