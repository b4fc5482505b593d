"""Every store test runs against each database."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from activities.storage.database import Database
from activities.storage.opening import open_database
from tests.support.migrated import migrated_file
from tests.support.postgres import postgres_database
from tests.support.reused import ReusedDatabase


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file that nothing has opened as a store yet: each copy gets an identity of its own."""
    return migrated_file(tmp_path_factory.mktemp("template") / "qmtl.db")


@pytest.fixture(scope="session")
def reused_database(postgres: str) -> Iterator[ReusedDatabase]:
    with ExitStack() as stack:
        yield ReusedDatabase(postgres, stack)


@pytest.fixture(params=["sqlite", "postgres"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own: migrated where the test takes it opened (`database`), otherwise empty."""
    is_migrated = "database" in request.fixturenames
    if request.param == "sqlite":
        if is_migrated:
            shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "qmtl.db")
        yield f"sqlite:///{tmp_path / 'qmtl.db'}"
    elif is_migrated:
        yield request.getfixturevalue("reused_database").empty()
    else:
        with postgres_database(request.getfixturevalue("postgres"), f"t_{uuid.uuid4().hex}") as found:
            yield found


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    found = open_database(dsn)
    yield found
    found.close()
