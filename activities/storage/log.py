"""A log of topics in an SQLite file of its own, read by position and trimmed.

Each topic numbers its entries 1, 2, 3 … without a gap. An entry is not added if the topic has its id, even
if that entry was trimmed recently. `newest` holds the last entry of each subject, and survives trimming.
Writers of several processes queue at a turnstile, and each call of `append` is one transaction. So the
file's own numbering (`position`) is the order of commits, and a reader that follows it misses nothing.
"""

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activities.storage.commits import CommitWatcher, data_version
from activities.storage.pool import Pool
from activities.storage.turnstile import WriterTurnstile
from activities.storage.write_ahead import use_write_ahead_log
from qmtl_sdk.contracts.errors import QmtlError

# Trimmed entries of a topic whose ids are still known, so that they are not added again.
_REMEMBERED = 5000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entry (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT,
    at REAL NOT NULL,
    UNIQUE (topic, sequence), UNIQUE (topic, id)
);
CREATE TABLE IF NOT EXISTS newest (
    topic TEXT NOT NULL,
    subject TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (topic, subject)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS topic (
    topic TEXT PRIMARY KEY,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL
) WITHOUT ROWID;
"""

# The first readable sequence of an entry's topic, as SQL. (It and other constants are all that is put into
# the text of statements: S608 does not apply.)
_FIRST = "(SELECT first FROM topic WHERE topic = entry.topic)"


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to append. `gone`: the subject no longer exists, and `newest` drops it."""

    topic: str
    id: str
    subject: str
    body: str
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a topic."""

    topic: str
    sequence: int
    body: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """The first readable sequence and the last assigned one; 1 and 0 for a topic without entries."""

    first: int = 1
    last: int = 0


class SqliteLog:
    """Topics in one file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._closed = threading.Event()
        self._last_work_at = 0.0
        self._connections = Pool(self._connect)
        self._turnstiles = Pool(lambda: WriterTurnstile(path))
        with self._write() as connection:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            if connection.execute("SELECT id FROM log").fetchone() is None:
                connection.execute("INSERT INTO log VALUES (?)", (uuid.uuid4().hex,))
        self.log_id: str = self._rows("SELECT id FROM log")[0][0]

    def append(self, entries: Sequence[NewEntry]) -> int:
        """Append all entries or none. Returns how many were new."""
        added = 0
        now = time.time()
        with self._write() as connection:
            ends: dict[str, int] = {}
            for entry in entries:
                if entry.topic not in ends:
                    row = connection.execute(
                        "SELECT last FROM topic WHERE topic = ?", (entry.topic,)
                    ).fetchone()
                    ends[entry.topic] = row[0] if row else 0
                sequence = ends[entry.topic] + 1
                done = connection.execute(
                    "INSERT INTO entry (topic, sequence, id, subject, body, at) VALUES (?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (topic, id) DO NOTHING",
                    (entry.topic, sequence, entry.id, entry.subject, entry.body, now),
                )
                if not done.rowcount:
                    continue
                added += 1
                ends[entry.topic] = sequence
                if entry.gone:
                    connection.execute(
                        "DELETE FROM newest WHERE topic = ? AND subject = ?", (entry.topic, entry.subject)
                    )
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO newest VALUES (?, ?, ?, ?, ?)",
                        (entry.topic, entry.subject, sequence, entry.id, entry.body),
                    )
            for topic, last in ends.items():
                connection.execute(
                    "INSERT INTO topic VALUES (?, 1, ?) "
                    "ON CONFLICT (topic) DO UPDATE SET last = excluded.last",
                    (topic, last),
                )
        return added

    def read(self, topic: str, after: int, limit: int) -> list[Entry]:
        """Read the retained entries of a topic after a sequence."""
        query = (
            "SELECT topic, sequence, body FROM entry WHERE topic = ? AND sequence > ? "  # noqa: S608
            f"AND sequence >= {_FIRST} ORDER BY sequence LIMIT ?"
        )
        return [Entry(*row) for row in self._rows(query, topic, after, limit)]

    def follow(self, position: int, limit: int, wait_s: float) -> tuple[list[Entry], int]:
        """Read entries of all topics after `position`. Returns them and the next position.

        Where there are none, it waits for them for up to `wait_s` seconds, or until the log is closed.
        """
        query = (
            "SELECT topic, sequence, body, position FROM entry WHERE position > ? ORDER BY position LIMIT ?"
        )
        with self._connection() as connection:
            # Before the read: an entry that is appended between the two then ends the wait.
            commits = CommitWatcher(lambda: data_version(connection), self._last_work_at)
            rows = connection.execute(query, (position, limit)).fetchall()
            if not rows and commits.wait(wait_s, self._closed):
                rows = connection.execute(query, (position, limit)).fetchall()
        if rows:
            self._last_work_at = time.monotonic()
        return [Entry(*row[:3]) for row in rows], rows[-1][3] if rows else position

    def end(self) -> int:
        """Return the position after all entries."""
        return int(self._rows("SELECT max(position) FROM entry")[0][0] or 0)

    def bounds(self, topic: str) -> Bounds:
        """Return the bounds of a topic."""
        rows = self._rows("SELECT first, last FROM topic WHERE topic = ?", topic)
        return Bounds(*rows[0]) if rows else Bounds()

    def last_before(self, topic: str, at: float) -> int:
        """Return the sequence of the newest retained entry appended before `at` (seconds since 1970).

        0 where there is none.
        """
        query = f"SELECT max(sequence) FROM entry WHERE topic = ? AND at < ? AND sequence >= {_FIRST}"  # noqa: S608
        return int(self._rows(query, topic, at)[0][0] or 0)

    def topics(self) -> dict[str, Bounds]:
        """List all topics with their bounds."""
        return {row[0]: Bounds(row[1], row[2]) for row in self._rows("SELECT topic, first, last FROM topic")}

    def newest(self, topic: str) -> tuple[int, list[str]]:
        """Read a topic's last sequence, and the newest body of each subject up to it, sorted by subject."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                row = connection.execute("SELECT last FROM topic WHERE topic = ?", (topic,)).fetchone()
                query = "SELECT body FROM newest WHERE topic = ? ORDER BY subject"
                return (row[0] if row else 0), [body for (body,) in connection.execute(query, (topic,))]
            finally:
                connection.execute("COMMIT")

    def trim(self, topic: str, first: int) -> int:
        """Remove the entries before `first`, which may be one past the last.

        Returns how many were removed.
        """
        with self._write() as connection:
            row = connection.execute("SELECT first, last FROM topic WHERE topic = ?", (topic,)).fetchone()
            if row is None or first <= row[0]:
                return 0
            first = min(first, row[1] + 1)
            connection.execute("UPDATE topic SET first = ? WHERE topic = ?", (first, topic))
            connection.execute(
                "DELETE FROM entry WHERE topic = ? AND sequence < ?", (topic, first - _REMEMBERED)
            )
            return int(first - row[0])

    def drop(self, topic: str) -> None:
        """Remove a topic with all its entries."""
        with self._write() as connection:
            for table in ("entry", "newest", "topic"):
                connection.execute(f"DELETE FROM {table} WHERE topic = ?", (topic,))  # noqa: S608

    def close(self) -> None:
        """Close all connections, and end what waits in `follow`."""
        self._closed.set()
        self._connections.close()
        self._turnstiles.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection, self._turnstiles.take() as turnstile, turnstile:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read rows. (Any: values of SQLite.)"""
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Take a connection. Raises QmtlError (E_UNAVAILABLE) where the file can't be read or written."""
        try:
            with self._connections.take() as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            # The driver has no class of its own for a damaged file.
            if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
                raise
            raise QmtlError(
                "E_UNAVAILABLE",
                f"the log {self._path.name} can't be read or written: {error}",
                "check that its disk has room and the file is whole, then try again",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        use_write_ahead_log(connection, 30.0)
        for pragma in ("synchronous=FULL", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")
        return connection
