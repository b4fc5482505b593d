"""Waiting until any process commits a transaction.

Asking a database whether anything has changed costs microseconds; reading the tables for work costs a
millisecond, and an idle process that does so all the time keeps a tenth of a core busy.
"""

import sqlite3
import threading
import time
from collections.abc import Callable

# Seconds between two looks. They add to the delivery time of every event.
_PAUSE_S = 0.02

# Seconds between two looks where there was no work for `_QUIET_S`.
_QUIET_PAUSE_S = 0.1

# Seconds without work after which looks become rarer.
_QUIET_S = 2.0


class Changes:
    """Tells when `mark` becomes another value; it does so at each commit of another connection.

    A commit before this object was made counts as known. `worked_at` is when the caller last found work, on
    the monotonic clock; it keeps that up to date. (Heartbeats are commits too, and no work.)
    """

    def __init__(self, mark: Callable[[], object], worked_at: float) -> None:
        self._mark = mark
        self._seen = mark()
        self.worked_at = worked_at

    def wait(self, limit_s: float, stop: threading.Event) -> bool:
        """Wait for a change, at most for `limit_s` seconds or until `stop` is set.

        Returns whether there was one. What is read after that contains it.
        """
        deadline = time.monotonic() + limit_s
        while not stop.is_set():
            mark, now = self._mark(), time.monotonic()
            if mark != self._seen:
                self._seen = mark
                return True
            if now >= deadline:
                break
            pause = _PAUSE_S if now - self.worked_at < _QUIET_S else _QUIET_PAUSE_S
            stop.wait(min(pause, deadline - now))
        return False


def data_version(connection: sqlite3.Connection) -> object:
    """Return a mark of an SQLite file, another one after each commit of any other connection."""
    return connection.execute("PRAGMA data_version").fetchone()
