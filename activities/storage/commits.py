"""Waiting until any process commits a transaction.

Asking a database for its version costs microseconds on SQLite and a round trip on PostgreSQL. Reading the
tables for work fifty times a second instead took 14 % of a core for an idle stack (docs/decisions/0018).
"""

import sqlite3
import threading
import time
from collections.abc import Callable

# Seconds between two polls of a database's version. The relay and then each Gateway wait for one poll, so an
# event may be late by twice this.
_POLL_S = 0.02

# The same after `_IDLE_AFTER_S` seconds without work: the first event after a quiet time may be 0.2 s late.
_IDLE_POLL_S = 0.1
_IDLE_AFTER_S = 2.0


class CommitWatcher:
    """Waits for commits. `version` returns a value that differs after a commit of another connection.

    Make it before you read: it does not report commits from before it was made. `last_work_at` is when the
    caller last had work, on the monotonic clock; the caller updates it, and polls become rarer without it.
    Commits alone do not count, since heartbeats commit too.
    """

    def __init__(self, version: Callable[[], object], last_work_at: float) -> None:
        self._version = version
        self._known = version()
        self.last_work_at = last_work_at

    def wait(self, limit_s: float, stop: threading.Event) -> bool:
        """Wait for a commit, at most for `limit_s` seconds or until `stop` is set.

        Returns whether there was one; what is read then contains it. It pauses before each poll, so that
        commits one after another do not make the caller work without a pause.
        """
        deadline = time.monotonic() + limit_s
        while (left := deadline - (now := time.monotonic())) > 0:
            pause = _POLL_S if now - self.last_work_at < _IDLE_AFTER_S else _IDLE_POLL_S
            if stop.wait(min(pause, left)):
                return False
            version = self._version()
            if version != self._known:
                self._known = version
                return True
        return False


def data_version(connection: sqlite3.Connection) -> object:
    """Return SQLite's data version: it differs after a commit of another connection.

    Values of two connections cannot be compared.
    """
    return connection.execute("PRAGMA data_version").fetchone()
