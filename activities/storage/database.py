"""One database, SQLite or PostgreSQL, and the only way to write to it.

`write()` is one transaction. It must `record` what it changed: that adds the audit row and the outbox row. A transaction that inserted or updated and
recorded nothing is rolled back, because a change that nobody can see later is a defect.
"""

import sqlite3
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import portalocker
import psycopg
import sqlalchemy
from blake3 import blake3
from sqlalchemy import Connection, Engine, Table, bindparam, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DisconnectionError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session, SQLModel, select

from activities.storage.chain import link
from activities.storage.migrate import migrate
from activities.storage.tables import StoreIdentityRow
from activities.storage.turnstile import WriterTurnstile
from qmtl_sdk.contracts.canonical import canonical_json
from qmtl_sdk.contracts.errors import QmtlError

_WROTE, _IDLE_S = "qmtl_wrote", 1.0
_AUDIT, _HEAD, _OUTBOX = (SQLModel.metadata.tables[name] for name in ("audit", "audit_head", "outbox"))
_HELD_HEAD = (
    sqlalchemy.select(_HEAD.c.number, _HEAD.c.hash)
    .where(_HEAD.c.chain == bindparam("chain"))
    .with_for_update()
)
_LOCK, _SHARE = text("SELECT pg_advisory_xact_lock(:key)"), text("SELECT pg_advisory_xact_lock_shared(:key)")


def utc_now() -> str:
    """The present, as every table writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Transaction:
    """A session that writes. `insert_new` and `record` cover most of what stores do; the rest goes through `session`."""

    def __init__(self, session: Session, insert: Any, actor: str) -> None:
        self.session, self._insert, self._actor = session, insert, actor
        self.recorded = False

    def insert_new(self, rows: Sequence[SQLModel]) -> set[tuple[Any, ...]]:
        """Insert the rows that are not there yet (by any unique key); the primary keys of those that were new."""
        if not rows:
            return set()
        table: Table = type(rows[0]).__table__  # type: ignore[attr-defined]  # SQLModel adds it to classes with table=True
        columns = [column for column in table.columns if column.autoincrement is not True]
        values = [{column.key: getattr(row, column.key) for column in columns} for row in rows]
        statement = self._insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)
        found: set[tuple[Any, ...]] = set()
        for start in range(0, len(values), 500):
            found |= {
                tuple(row)
                for row in self.session.connection().execute(statement.values(values[start : start + 500]))
            }
        if found:
            self.session.connection().info[_WROTE] = True
        return found

    def upsert(self, row: SQLModel) -> None:
        """Insert the row, or put it in the place of the one with its primary key, in one statement."""
        table: Table = type(row).__table__  # type: ignore[attr-defined]  # as above
        self._put(table, {column.key: getattr(row, column.key) for column in table.columns})

    def _put(self, table: Table, values: dict[str, Any]) -> None:
        self.session.connection().execute(_upsert(self._insert, table), values)

    def lock(self, name: str) -> None:
        """Hold `name` until the end of the transaction. SQLite has one writer anyway."""

    def share(self, name: str) -> None:
        """Hold `name` together with others who share it, against those who `lock` it. They queue fairly: a lock does not starve behind shares."""

    def record(
        self,
        action: str,
        world_id: str,
        subject: str,
        *,
        before: Any = None,
        after: Any = None,
        correlation_id: str = "",
        event: str = "",
        about: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """The audit row and the outbox row of this transaction. `event` is the event's type, the action's name unless given; `about` its subject likewise."""
        now = utc_now()
        was, became = canonical_json(before).decode(), canonical_json(after).decode()
        payload = canonical_json(
            dict(data) if data is not None else {"world_id": world_id, "subject": subject}
        ).decode()
        key = world_id or subject
        self._chained(
            {
                "at": now,
                "actor": self._actor,
                "action": action,
                "world_id": world_id,
                "subject": subject,
                "correlation_id": correlation_id,
                "before": was,
                "after": became,
                "chain": key,
            }
        )
        event_row = {
            "event_id": uuid.uuid4().hex,
            "type": event or action,
            "key": key,
            "world_id": world_id,
            "subject": about or subject,
            "at": now,
            "data": payload,
        }
        self.session.connection().execute(_OUTBOX.insert(), event_row)
        self.recorded = True

    def _chained(self, row: dict[str, Any]) -> None:
        """Add a row at the end of its chain. The head is held from here to the commit: within a key, numbers are in the order of commits, those of the outbox too."""
        self.session.flush()  # what changed is held before the head, by whatever way it is written: two who held them the other way round would wait for each other
        connection, chain = self.session.connection(), {"chain": row["chain"]}
        head = connection.execute(_HELD_HEAD, chain).first()
        if head is None:  # nothing is there to be held yet
            self.lock(f"audit:{row['chain']}")
            head = connection.execute(_HELD_HEAD, chain).first()
        number, before = (head.number, head.hash) if head else (0, "")
        row["number"] = number + 1
        row["hash"] = link(before, row)
        connection.execute(_AUDIT.insert(), row)
        self._put(_HEAD, {**chain, "number": row["number"], "hash": row["hash"]})


class Database(ABC):
    """Connections, transactions and the store's identity. Made by `open_database`."""

    transaction_type: type[Transaction] = Transaction
    insert: Any = None  # the dialect's INSERT, which knows ON CONFLICT

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        try:
            with self.migrating():
                migrate(engine)
            self.store_id = self._identity()
        except BaseException:  # nobody gets this object, so nobody else can close it
            self.close()
            raise

    @contextmanager
    def write(self, actor: str, *, bookkeeping: bool = False) -> Iterator[Transaction]:
        """One transaction in the name of `actor`: all of it or nothing. `bookkeeping` changes nothing that anyone is told of: beats, and what was told."""
        with self.queue(), self._connection("write") as connection, Session(connection) as session:
            transaction = self.transaction_type(session, self.insert, actor)
            yield transaction
            session.flush()
            if self._changed(connection) and not transaction.recorded and not bookkeeping:
                raise RuntimeError("a transaction changed the store without a record of it")
            connection.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent look at the store."""
        with self._connection("read") as connection, Session(connection) as session:
            yield session
            if self._changed(connection):
                raise RuntimeError("a look changed the store")
            connection.commit()  # psycopg forgets its prepared statements at a rollback, and would plan every one anew

    @contextmanager
    def _connection(self, purpose: str) -> Iterator[Connection]:
        try:
            connection = self._engine.connect().execution_options(qmtl_purpose=purpose)
            with connection:
                yield connection
        except (
            DataError,
            psycopg.DataError,
        ) as error:  # PostgreSQL refuses what no column can hold, such as a text with a zero byte
            raise QmtlError(
                "E_BODY_INVALID",
                f"a value can't be stored: {_said(error)}",
                "send text and numbers that a database can hold",
            ) from error
        except (OperationalError, psycopg.OperationalError, sqlite3.OperationalError) as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"the database can't be reached: {_said(error)}",
                "check that it runs and has room, then try again",
            ) from error

    def _changed(self, connection: Connection) -> bool:
        """Whether this transaction wrote anything, as far as the database says."""
        return bool(connection.info.pop(_WROTE, False))

    def _identity(self) -> str:
        with self.write("system") as tx:
            tx.lock("store_identity")
            found = tx.session.exec(select(StoreIdentityRow)).first()
            if found is None:
                found = StoreIdentityRow(store_id=uuid.uuid4().hex)
                tx.session.add(found)
                tx.record("store.created", "", found.store_id)
            return found.store_id

    def queue(self) -> AbstractContextManager[None]:
        """The writers' queue, where the database has none of its own."""
        return nullcontext()

    def migrating(self) -> AbstractContextManager[None]:
        """Held while migrations run, so that two processes that start don't both do them."""
        return nullcontext()

    @abstractmethod
    def elected(self, role: str) -> AbstractContextManager[bool]:
        """Whether this process is now the one that plays `role`; it is until the block ends, or the process."""

    def close(self) -> None:
        self._engine.dispose()


class SqliteDatabase(Database):
    """A file that several processes write: they queue at the turnstile, and each transaction takes the lock when it begins."""

    insert = staticmethod(sqlite.insert)

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._local = path, threading.local()
        self._turnstiles: list[WriterTurnstile] = []
        engine = create_engine(
            f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False}, pool_size=16
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(
            engine,
            "begin",
            lambda connection: connection.exec_driver_sql(
                "BEGIN IMMEDIATE"
                if connection.get_execution_options().get("qmtl_purpose") == "write"
                else "BEGIN"
            ),
        )
        _watch_writes(engine)
        super().__init__(engine)

    @contextmanager
    def queue(self) -> Iterator[None]:
        if not hasattr(self._local, "turnstile"):
            self._local.turnstile = WriterTurnstile(self._path)
            self._turnstiles.append(self._local.turnstile)
        with self._local.turnstile:
            yield

    def migrating(self) -> AbstractContextManager[None]:
        return self.queue()

    @contextmanager
    def elected(self, role: str) -> Iterator[bool]:
        with self._path.with_name(f"{self._path.name}.{role}").open("w") as file:
            try:
                portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            except portalocker.LockException:
                yield False
                return
            yield True  # closing the file lets go of it

    def close(self) -> None:
        super().close()
        for turnstile in self._turnstiles:
            turnstile.close()


class _PostgresTransaction(Transaction):
    def lock(self, name: str) -> None:
        self.session.connection().execute(_LOCK, {"key": lock_key(name)})

    def share(self, name: str) -> None:
        self.session.connection().execute(_SHARE, {"key": lock_key(name)})


class PostgresDatabase(Database):
    transaction_type = _PostgresTransaction
    insert = staticmethod(postgresql.insert)

    def __init__(self, dsn: str) -> None:
        # The connection that was used last is used next: it has most statements prepared.
        engine = create_engine(
            "postgresql+psycopg://" + dsn.split("://", 1)[1], pool_size=16, pool_use_lifo=True
        )
        _try_idle(engine)
        _watch_writes(engine)
        super().__init__(engine)

    @contextmanager
    def migrating(self) -> Iterator[None]:
        with self._connection("migrate") as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key("migrate")})
            connection.commit()
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": lock_key("migrate")})
                connection.commit()

    @contextmanager
    def elected(self, role: str) -> Iterator[bool]:
        with self._connection("election") as connection:  # the lock is this connection's, and ends with it
            mine = bool(
                connection.execute(
                    text("SELECT pg_try_advisory_lock(:key)"), {"key": lock_key(role)}
                ).scalar_one()
            )
            connection.commit()
            try:
                yield mine
            finally:
                connection.execute(text("SELECT pg_advisory_unlock_all()"))
                connection.commit()


def open_database(dsn: str) -> Database:
    """`sqlite:///FILE` or `postgresql://…`, migrated to this version. Raises QmtlError: E_CONFIG, E_UNAVAILABLE, E_DATABASE_NEWER."""
    if dsn.startswith("sqlite:///"):
        return SqliteDatabase(Path(dsn.removeprefix("sqlite:///")))
    if dsn.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        return PostgresDatabase(dsn)
    raise QmtlError(
        "E_CONFIG",
        f"{dsn.split(':')[0]!r} is not a database that QMTL knows",
        "use sqlite:///FILE or postgresql://USER@HOST/NAME",
    )


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions at times of its own
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _watch_writes(engine: Engine) -> None:
    """Note on the connection that a statement changed rows. Whether an INSERT that skips conflicts did, `insert_new` says."""

    def after(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if (
            statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE")
            and "ON CONFLICT DO NOTHING" not in statement
        ):
            connection.info[_WROTE] = True

    def begin(connection: Connection) -> None:
        connection.info.pop(_WROTE, None)

    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "begin", begin)


def _try_idle(engine: Engine) -> None:
    """Try a connection that lay idle before it is used: the server may have gone meanwhile. One that was used a moment ago is not worth a round trip."""

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


@cache
def _upsert(insert: Any, table: Table) -> Any:
    """The statement of `upsert`, made once for each table: to make it takes longer than to carry it out. (Any: the dialect's.)"""
    statement, keys = insert(table), [column.key for column in table.primary_key.columns]
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={
            column.key: statement.excluded[column.key] for column in table.columns if column.key not in keys
        },
    )


def _said(error: Exception) -> str:
    """What the database's driver said, in one line."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]


def lock_key(name: str) -> int:
    """The number of an advisory lock."""
    return int.from_bytes(blake3(name.encode()).digest(8), "big", signed=True)
