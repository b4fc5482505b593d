"""Nodes that convert one kind of output into another: signals into orders."""
