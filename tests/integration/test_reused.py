"""The database that many tests use gives each of them an empty one, whatever the test before has done."""

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from activities.storage.opening import open_database
from tests.support.desk import Desk
from tests.support.reused import ReusedDatabase


@pytest.fixture
def reused(postgres: str) -> Iterator[ReusedDatabase]:
    with ExitStack() as stack:
        yield ReusedDatabase(postgres, stack)


def filled(uri: str) -> tuple[str, list[tuple[int, str]]]:
    """Make a world. Returns the store's id, and the first rows of the outbox."""
    database = open_database(uri)
    try:
        Desk(database)
        with psycopg.connect(uri) as connection:
            rows = connection.execute("SELECT seq, type FROM outbox ORDER BY seq LIMIT 3").fetchall()
        return database.store_id, rows
    finally:
        database.close()


def test_the_next_test_finds_no_row_no_number_and_no_lock(reused: ReusedDatabase) -> None:
    uri = reused.empty()
    store, rows = filled(uri)
    with psycopg.connect(uri) as left_open:
        left_open.execute("LOCK TABLE outbox")
        assert reused.empty() == uri
        with pytest.raises(psycopg.OperationalError):
            left_open.execute("SELECT 1")
    again, rows_again = filled(uri)
    assert again != store
    assert rows_again == rows
    assert rows[0][0] == 1


def test_a_database_whose_schema_a_test_has_changed_is_made_anew(reused: ReusedDatabase) -> None:
    uri = reused.empty()
    with psycopg.connect(uri) as connection:
        connection.execute("DROP TRIGGER order_log_append_only ON order_log")
    assert reused.empty() != uri
