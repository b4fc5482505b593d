"""Principals and issued tokens."""
