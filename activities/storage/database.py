"""The interface of the database, SQLite or PostgreSQL. All writes go through `Database.write`.

A write is one transaction, and must `record` what it changed: that adds the audit row and the outbox row. A
transaction that changed rows and recorded nothing is rolled back, because nobody could see that change later.
"""

import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError, DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session, select

from activities.storage.commits import CommitWatcher
from activities.storage.migrate import is_current, migrate
from activities.storage.tables import StoreIdentityRow
from activities.storage.transactions import RecordedChange, Transaction
from activities.storage.write_marks import take_write_mark, watch_writes
from qmtl_sdk.contracts.errors import QmtlError

POOL_WAIT_S = 10.0
"""Seconds that a caller waits for a connection of a pool where all are in use."""

# Whether the work of this thread or task uses the reserved connections.
_reserved: ContextVar[bool] = ContextVar("reserved", default=False)


class Database(ABC):
    """Connections, transactions and the store's identity. `open_database` opens one."""

    transaction_type: type[Transaction] = Transaction
    insert: Any = None
    """The dialect's INSERT, which supports ON CONFLICT. (Any: the dialects share no type for it.)"""

    read_options: Mapping[str, str] = MappingProxyType({})
    """What a connection needs to read everything in one session from one snapshot."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        """Make the engine of most work, and one whose connections only `reserved` blocks use."""
        self._engine = make_engine()
        self._reserve = make_engine()
        for engine in (self._engine, self._reserve):
            watch_writes(engine)
        try:
            with self._connection("read") as connection:
                current = is_current(connection)
            if not current:
                with _translated_errors(), self.migrating():
                    migrate(self._engine)
            self.store_id = self._identity()
        except BaseException:  # the caller gets no object that it could close
            self.close()
            raise

    @contextmanager
    def write(self, actor: str, *, bookkeeping: bool = False) -> Iterator[Transaction]:
        """Run one transaction in the name of `actor`: it commits as a whole, or not at all.

        `bookkeeping` allows changes without a record, where no event is due: heartbeats, and marks of what
        was published or read.

        Raises QmtlError: E_UNAVAILABLE, and E_BODY_INVALID where a value cannot be stored.
        """
        with (
            self.queue(),
            self._connection("write") as connection,
            self.transaction_type(connection, self.insert, actor) as transaction,
        ):
            yield transaction
            transaction.finish()
            if take_write_mark(connection) and not transaction.records and not bookkeeping:
                raise RuntimeError("a transaction changed the store without a record of it")
            connection.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that only reads, all of it from one snapshot. Raises QmtlError (E_UNAVAILABLE)."""
        with self._connection("read", **self.read_options) as connection, Session(connection) as session:
            yield session
            if take_write_mark(connection):
                raise RuntimeError("a read changed the store")
            # After a rollback psycopg would drop its prepared statements, and plan every query anew.
            connection.commit()

    @staticmethod
    @contextmanager
    def reserved() -> Iterator[None]:
        """Use connections that other work cannot use up: for halts, and for what they and orders wait for."""
        before = _reserved.set(True)
        try:
            yield
        finally:
            _reserved.reset(before)

    @contextmanager
    def _connection(self, purpose: str, **options: str) -> Iterator[Connection]:
        engine = self._reserve if _reserved.get() else self._engine
        with _translated_errors():
            connection = engine.connect().execution_options(qmtl_purpose=purpose, **options)
            with connection:
                yield connection

    def _identity(self) -> str:
        with self.read() as session:
            known = session.exec(select(StoreIdentityRow)).first()
        if known is not None:
            return known.store_id
        with self.write("system") as tx:
            tx.lock("store_identity")
            found = tx.session.exec(select(StoreIdentityRow)).first()
            if found is None:
                found = StoreIdentityRow(store_id=uuid.uuid4().hex)
                tx.session.add(found)
                tx.record(RecordedChange("store.created", "", found.store_id))
            return found.store_id

    def queue(self) -> AbstractContextManager[None]:
        """Wait in the queue of writers, where the database has none of its own."""
        return nullcontext()

    def migrating(self) -> AbstractContextManager[None]:
        """Hold the lock of migrations, so that only one of two starting processes migrates."""
        return nullcontext()

    @abstractmethod
    def elected(self, role: str) -> AbstractContextManager[Callable[[], None] | None]:
        """Try to become the only process with this role, until the block or the process ends.

        Gives None where another process has the role, otherwise a function that confirms it: it raises once
        the role may have passed to another process.
        """

    @abstractmethod
    def watch_commits(self) -> AbstractContextManager[CommitWatcher]:
        """Watch for commits of all processes and threads, over a connection of its own.

        Raises the driver's error, or QmtlError (E_UNAVAILABLE), where the database cannot be reached.
        """

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._reserve.dispose()


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise the errors of drivers as QmtlError: E_UNAVAILABLE, and E_BODY_INVALID for a value."""
    try:
        yield
    except PoolTimeoutError as error:
        raise QmtlError(
            "E_UNAVAILABLE",
            "every connection to the database is in use",
            "try again; if it stays so, look in the log for what holds them",
        ) from error
    except (DataError, psycopg.DataError) as error:  # such as a text with a zero byte in PostgreSQL
        raise QmtlError(
            "E_BODY_INVALID",
            f"a value can't be stored: {_first_line(error)}",
            "send text and numbers that a database can hold",
        ) from error
    except (OperationalError, psycopg.OperationalError, sqlite3.OperationalError) as error:
        raise _unavailable(error) from error
    except (DatabaseError, sqlite3.DatabaseError) as error:
        cause = getattr(error, "orig", error)
        damaged = type(cause) is sqlite3.DatabaseError  # SQLite's driver has no class of its own for it
        if damaged or isinstance(cause, psycopg.errors.IdleInTransactionSessionTimeout):
            raise _unavailable(error) from error
        raise


def _unavailable(error: Exception) -> QmtlError:
    if type(getattr(error, "orig", error)) is sqlite3.DatabaseError:
        return QmtlError(
            "E_UNAVAILABLE",
            f"the database file is damaged: {_first_line(error)}",
            "stop the stack, and restore its home from a backup (docs/operations.md)",
        )
    if isinstance(getattr(error, "orig", error), psycopg.errors.LockNotAvailable):
        return QmtlError(
            "E_UNAVAILABLE",
            "another transaction holds a lock that this one needs",
            "try again; if it stays so, look for a process that hangs",
        )
    return QmtlError(
        "E_UNAVAILABLE",
        f"the database can't be reached: {_first_line(error)}",
        "check that it runs and has room, then try again",
    )


def _first_line(error: Exception) -> str:
    """Return the first line of the driver's message."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
