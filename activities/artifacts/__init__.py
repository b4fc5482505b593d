"""Artifacts: immutable bytes, stored by content hash."""
