"""Every store test runs against each database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from activities.storage.database import Database
from activities.storage.opening import open_database


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'qmtl.db'}"
        return
    server: str = request.getfixturevalue("postgres")
    name = "t_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name.lower())[:50]
    engine = create_engine("postgresql+psycopg://" + server.split("://", 1)[1], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    yield server.replace("/postgres?", f"/{name}?")
    with engine.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    engine.dispose()


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    found = open_database(dsn)
    yield found
    found.close()
