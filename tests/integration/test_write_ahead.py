"""Processes that start at once on a new file: one switches it to the write-ahead log, the others wait."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from activities.events.bus import SqliteBus
from activities.queues.store import SqliteQueues
from activities.storage.opening import open_database


@pytest.mark.parametrize(
    "opened",
    [lambda path: open_database(f"sqlite:///{path}"), SqliteBus, SqliteQueues],
    ids=["database", "bus", "queues"],
)
def test_a_new_file_that_another_process_writes_is_waited_for(
    tmp_path: Path, opened: Callable[[Path], sqlite3.Connection]
) -> None:
    """SQLite does not wait there, so a relay ended with "database is locked" when a stack was started."""
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE of_another (x)")
        commit = threading.Timer(0.5, lambda: other.execute("COMMIT"))
        commit.start()
        with closing(opened(path)):
            pass
        commit.join()
    with closing(sqlite3.connect(path)) as found:
        assert found.execute("PRAGMA journal_mode").fetchone() == ("wal",)
