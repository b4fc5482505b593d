"""SQLite: one file that several processes write. For the embedded profile and tests."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import portalocker
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import sqlite

from activities.storage.commits import CommitWatcher, data_version
from activities.storage.database import POOL_WAIT_S, Database
from activities.storage.pool import Pool
from activities.storage.turnstile import WriterTurnstile
from activities.storage.write_ahead import use_write_ahead_log
from qmtl_sdk.contracts.errors import QmtlError

# Seconds that a connection waits for a lock before it fails.
_LOCK_TIMEOUT_S = 30

# Pages of the write-ahead log (4 KiB each) after which a commit copies them into the database file. Orders
# change the same pages of indexes again and again until then: with SQLite's 1,000, the slowest hundredth of
# their transactions took twice as long.
_CHECKPOINT_PAGES = 4000

# Connections that stay open: one for each thread that a process typically runs.
_POOL_SIZE = 16


class SqliteDatabase(Database):
    """Writers queue at the turnstile, and each transaction takes SQLite's lock when it begins."""

    insert = staticmethod(sqlite.insert)

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"{error.filename} can't be made: {error.strerror}",
                "use an account that may write there, or another QMTL_HOME",
            ) from error
        self._path = path
        self._turnstiles = Pool(lambda: WriterTurnstile(path))

        def make_engine() -> Engine:
            engine = create_engine(
                f"sqlite:///{path}",
                connect_args={"timeout": _LOCK_TIMEOUT_S, "check_same_thread": False},
                pool_size=_POOL_SIZE,
                pool_timeout=POOL_WAIT_S,
            )
            event.listen(engine, "connect", _prepare)
            event.listen(engine, "begin", _begin)
            return engine

        super().__init__(make_engine)

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Wait in the queue of writers of all processes."""
        with self._turnstiles.take() as turnstile, turnstile:
            yield

    def migrating(self) -> AbstractContextManager[None]:
        """Migrate as any other writer."""
        return self.queue()

    @contextmanager
    def elected(self, role: str) -> Iterator[Callable[[], None] | None]:
        """Try to lock the role's file, which no other process gets while this one has it."""
        with self._path.with_name(f"{self._path.name}.{role}").open("w") as file:
            try:
                portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            except portalocker.LockException:
                yield None
                return
            yield lambda: None  # closing the file releases the lock

    @contextmanager
    def watch_commits(self) -> Iterator[CommitWatcher]:
        """Poll `PRAGMA data_version`."""
        with closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S)) as connection:
            yield CommitWatcher(lambda: data_version(connection), time.monotonic())

    def close(self) -> None:
        """Close all connections and the files of the queue."""
        super().close()
        self._turnstiles.close()


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # else the driver begins transactions at times of its own
    use_write_ahead_log(connection, _LOCK_TIMEOUT_S)
    for pragma in (
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={_LOCK_TIMEOUT_S * 1000}",
        f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("qmtl_purpose") == "write"
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
