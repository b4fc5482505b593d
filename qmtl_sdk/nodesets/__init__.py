"""Sets of nodes that belong together."""
