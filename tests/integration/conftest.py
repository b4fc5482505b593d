"""Every store test runs against each database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.storage.database import Database
from activities.storage.opening import open_database
from tests.support.postgres import postgres_database


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'qmtl.db'}"
        return
    server: str = request.getfixturevalue("postgres")
    name = "t_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name.lower())[:50]
    with postgres_database(server, name) as found:
        yield found


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    found = open_database(dsn)
    yield found
    found.close()
