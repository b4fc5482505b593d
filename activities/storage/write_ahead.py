"""SQLite's write-ahead log, with which readers and the writer do not wait for each other."""

import sqlite3
import time

# Seconds between two tries.
_PAUSE_S = 0.01


def use_write_ahead_log(connection: sqlite3.Connection, limit_s: float) -> None:
    """Switch a database to its write-ahead log, waiting for `limit_s` seconds while it is locked.

    A new file is switched once. SQLite itself does not wait there, whatever its busy time-out, so of the
    processes that start at once on a new file one would end.

    Raises sqlite3.OperationalError.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return
