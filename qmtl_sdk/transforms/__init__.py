"""Nodes that turn one thing into another: signals into orders."""
