"""One whole machine a worker process of the tests, and machines of their own for tests that kill."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Person
from tests.support.machine import Machine
from tests.support.worlds import POLICY, world


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Shared by tests that leave it running, with the world `equities`."""
    found = Machine(tmp_path_factory.mktemp("machine"))
    try:
        found.up()
        with found.client() as client:
            client.create_world(world(), POLICY)
        yield found
    finally:
        found.close()


@pytest.fixture
def own_machine(tmp_path: Path) -> Iterator[Machine]:
    """Not started: the test says what starts, and in which form."""
    found = Machine(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Person]:
    """A person with nothing up, in an empty folder."""
    found = Person(tmp_path, QMTL_HOME=str(tmp_path / "home"))
    yield found
    found.types("down")
