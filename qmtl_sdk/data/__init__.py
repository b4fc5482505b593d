"""Market data: sources, their checks and fingerprints, and the binding of a world's streams."""
