"""Databases that are migrated and not opened as a store: a copy gets an identity when it is opened.

Migrating takes a tenth of a second and more, opening a copy a hundredth.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import create_engine

from activities.storage.migrate import migrate


def migrated_file(path: Path) -> Path:
    """Make a migrated SQLite file. Nothing is left beside it, so that copying it alone is enough."""
    _migrate(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return path


def migrate_postgres(uri: str) -> None:
    """Migrate an empty database of a PostgreSQL server."""
    _migrate("postgresql+psycopg://" + uri.split("://", 1)[1])


def _migrate(url: str) -> None:
    engine = create_engine(url)
    try:
        migrate(engine)
    finally:
        engine.dispose()
