"""PostgreSQL, with advisory locks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import psycopg
from blake3 import blake3
from psycopg import sql
from sqlalchemy import Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DisconnectionError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from activities.storage.commits import CommitWatcher
from activities.storage.database import POOL_WAIT_S, Database
from activities.storage.postgres_rows import insertion, record_insertion
from activities.storage.transactions import LockHeldError, Transaction

# Seconds after which a pooled connection is tested before use. Testing costs a round trip, so a connection
# that was used a moment ago is trusted.
_IDLE_S = 1.0

LOCK_WAIT_S = 10.0
"""Seconds that a statement waits for a lock, unless its transaction sets another limit (`limit_lock_waits`).

A lock that stays held would take one thread after the other until none is left, also for halts."""

# Seconds after which the server ends a connection whose transaction does nothing: its locks become free.
_IDLE_TRANSACTION_S = 30.0

# Seconds after which each side takes the other one for dead where it does not answer: a host that lost power
# would keep its locks and its role for two hours.
_DEAD_AFTER_S = 20
_KEEPALIVES = {
    "keepalives_idle": _DEAD_AFTER_S // 2,
    "keepalives_interval": _DEAD_AFTER_S // 4,
    "keepalives_count": 2,
}

# Connections that stay open: one for each thread that a process typically runs.
_POOL_SIZE = 16

# Rows from which on one statement for all of them is faster than one for each, which is prepared.
_MANY_ROWS = 8

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
# Differs after every writing transaction that ends, committed or not, in any database of the server.
_SNAPSHOT = text("SELECT pg_current_snapshot()::text")
_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :limit, true)")
_LIMIT_AND_LOCK = text("SELECT set_config('lock_timeout', :limit, true), pg_advisory_xact_lock(:key)")
_TRY_LOCKS = text("SELECT key FROM unnest(CAST(:keys AS bigint[])) key WHERE pg_try_advisory_xact_lock(key)")


class _PostgresTransaction(Transaction):
    def insert_all(self, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        if len(rows) < _MANY_ROWS:
            super().insert_all(table, rows)
        else:
            self.connection.execute(*insertion(table, rows))

    def upsert_values(self, table: Table, values: list[dict[str, Any]]) -> None:
        if len(values) < _MANY_ROWS:
            super().upsert_values(table, values)
        else:
            self.connection.execute(*insertion(table, values, replace=True))

    def _insert_records(self, heads: list[dict[str, Any]]) -> None:
        """Insert those of a few changes in one statement: a freeze and a halt pay for each."""
        if len(self.records) < _MANY_ROWS:
            audits, events = zip(*self.records, strict=True)
            self.connection.execute(*record_insertion(audits, heads, events))
        else:
            super()._insert_records(heads)

    def _wait_for_lock(self, name: str, within_ms: int = 0) -> None:
        connection = self.connection
        if not within_ms:
            connection.execute(_LOCK, {"key": lock_key(name)})
            return
        connection.execute(_LOCK_TIMEOUT, {"limit": milliseconds(within_ms / 1000)})
        try:
            connection.execute(_LOCK, {"key": lock_key(name)})
        except OperationalError as error:
            if isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise LockHeldError(name) from error
            raise
        connection.execute(_LOCK_TIMEOUT, {"limit": milliseconds(LOCK_WAIT_S)})

    def try_locks(self, names: Sequence[str]) -> list[str]:
        keys = {lock_key(name): name for name in names}
        held = self.connection.execute(_TRY_LOCKS, {"keys": list(keys)})
        return [keys[key] for key in held.scalars()]

    def limit_lock_waits(self, limit_s: float, lock: str = "") -> None:
        super().limit_lock_waits(limit_s, lock)
        limit = {"limit": milliseconds(limit_s)}
        if lock:
            self.connection.execute(_LIMIT_AND_LOCK, {**limit, "key": lock_key(lock)})
        else:
            self.connection.execute(_LOCK_TIMEOUT, limit)


class PostgresDatabase(Database):
    """A database that serves writers at the same time; row and advisory locks keep them apart."""

    transaction_type = _PostgresTransaction
    insert = staticmethod(postgresql.insert)
    read_options = MappingProxyType({"isolation_level": "REPEATABLE READ"})

    def __init__(self, dsn: str) -> None:
        def make_engine() -> Engine:
            # LIFO: the connection that was used last has most statements prepared.
            engine = create_engine(
                "postgresql+psycopg://" + dsn.split("://", 1)[1],
                pool_size=_POOL_SIZE,
                pool_timeout=POOL_WAIT_S,
                pool_use_lifo=True,
                connect_args={**_KEEPALIVES, "tcp_user_timeout": _DEAD_AFTER_S * 1000},
            )
            event.listen(engine, "connect", _limit_session)
            _test_idle_connections(engine)
            return engine

        super().__init__(make_engine)

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """Hold the lock of migrations."""
        with self._connection("migrate") as connection:
            connection.execute(_LOCK_TIMEOUT, {"limit": "0"})  # another process's migration takes its time
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key("migrate")})
            connection.commit()
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": lock_key("migrate")})
                connection.commit()

    @contextmanager
    def elected(self, role: str) -> Iterator[Callable[[], None] | None]:
        """Try to take the role's lock. It belongs to this connection, and ends with it.

        So the function that confirms the role uses the connection.
        """
        with self._connection("election") as connection:
            elected = bool(
                connection.execute(
                    text("SELECT pg_try_advisory_lock(:key)"), {"key": lock_key(role)}
                ).scalar_one()
            )
            connection.commit()

            def confirm() -> None:
                connection.execute(text("SELECT 1"))
                connection.commit()

            try:
                yield confirm if elected else None
            finally:
                if not connection.invalidated:  # else the server has dropped connection and lock already
                    connection.execute(text("SELECT pg_advisory_unlock_all()"))
                    connection.commit()

    @contextmanager
    def watch_commits(self) -> Iterator[CommitWatcher]:
        """Poll the snapshot of transactions.

        LISTEN/NOTIFY would need no polling, but commits of transactions that notify wait for each other.
        """
        with self._connection("commits", isolation_level="AUTOCOMMIT") as connection:
            yield CommitWatcher(lambda: connection.execute(_SNAPSHOT).scalar_one(), time.monotonic())


def lock_key(name: str) -> int:
    """Return the number of an advisory lock: 64 bits of the hash of its name."""
    return int.from_bytes(blake3(name.encode()).digest(8), "big", signed=True)


def milliseconds(seconds: float) -> str:
    """Return a wait as PostgreSQL takes it; 0 would mean no limit."""
    return f"{max(1, round(seconds * 1000))}ms"


def _limit_session(driver: "psycopg.Connection[Any]", _: ConnectionPoolEntry) -> None:
    """Let a new connection wait for nothing without a limit, and the server notice when its host is dead."""
    settings = {
        "lock_timeout": milliseconds(LOCK_WAIT_S),
        "idle_in_transaction_session_timeout": milliseconds(_IDLE_TRANSACTION_S),
        "tcp_user_timeout": milliseconds(_DEAD_AFTER_S),
        **{f"tcp_{name}": str(value) for name, value in _KEEPALIVES.items()},
    }
    calls = sql.SQL(", ").join(
        sql.SQL("set_config({}, {}, false)").format(name, value) for name, value in settings.items()
    )
    driver.execute(sql.SQL("SELECT {}").format(calls))
    driver.commit()


def _test_idle_connections(engine: Engine) -> None:
    """Test a connection that was idle before it is used again: the server may have closed it."""

    def checkin(_: object, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def checkout(driver: "psycopg.Connection[Any]", record: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - record.info.get("idle_since", 0.0) > _IDLE_S:
            try:
                driver.execute("SELECT 1")
                driver.commit()
            except psycopg.OperationalError as error:
                raise DisconnectionError from error

    event.listen(engine, "checkin", checkin)
    event.listen(engine, "checkout", checkout)
