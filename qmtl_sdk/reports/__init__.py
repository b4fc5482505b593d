"""Returns, metrics and tearsheets."""
