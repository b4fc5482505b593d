"""One whole machine a worker process of the tests, and machines of their own for tests that kill."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Person
from tests.support.machine import Machine
from tests.support.twofold import IS_TWOFOLD, SERVER, machine_for
from tests.support.worlds import POLICY, world


@pytest.fixture(scope="session", autouse=True)
def twofold_server(request: pytest.FixtureRequest) -> None:
    """Where the tests run on twofold machines: start their PostgreSQL server."""
    if IS_TWOFOLD:
        os.environ[SERVER] = request.getfixturevalue("postgres")


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Shared by tests that leave it running, with the world `equities`."""
    found = machine_for(tmp_path_factory.mktemp("machine"))
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
    found = machine_for(tmp_path)
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


@pytest.fixture
def someone(machine: Machine, tmp_path: Path) -> Person:
    """Who types commands for the shared machine."""
    return Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))
