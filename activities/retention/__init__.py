"""Retention: rows that are older than their table keeps them are archived as Parquet, and then removed."""
