"""Opening the database that a DSN names."""

from activities.storage.database import Database
from activities.storage.dsn import sqlite_file
from activities.storage.postgres import PostgresDatabase
from activities.storage.sqlite import SqliteDatabase
from qmtl_sdk.contracts.errors import QmtlError


def open_database(dsn: str) -> Database:
    """Open `sqlite:///FILE` or `postgresql://…`, and migrate it to this version.

    Raises QmtlError: E_CONFIG where the DSN names another database, E_UNAVAILABLE, E_DATABASE_NEWER.
    """
    if file := sqlite_file(dsn):
        return SqliteDatabase(file)
    if dsn.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        return PostgresDatabase(dsn)
    raise QmtlError(
        "E_CONFIG",
        f"QMTL does not support the database {dsn.split(':')[0]!r}",
        "use sqlite:///FILE or postgresql://USER@HOST/NAME",
    )
