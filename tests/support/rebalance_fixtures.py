"""Fixtures of tests of runs: a world with two strategies, and its runs. Test modules name it as a plugin."""

import pytest

from activities.storage.database import Database
from tests.support.rebalance_runs import Runs
from tests.support.target_book import Book


@pytest.fixture
def book(database: Database) -> Book:
    """Two strategies, each with half of a capital of 10,000."""
    return Book(database, strategies=2)


@pytest.fixture
def runs(book: Book) -> Runs:
    """Runs of a world that has a share of 0.3."""
    found = Runs(book.database)
    found.share(w="0.3")
    return found
