"""Texts of the specification, word for word but for their imports."""
