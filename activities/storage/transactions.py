"""A transaction that writes: inserts, upserts, and the audit and outbox rows of each change."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import sqlalchemy
from blake3 import blake3
from sqlalchemy import Connection, Table, bindparam
from sqlmodel import Session, SQLModel

from activities.storage.chain import OUTSIDE_WORLDS, link
from activities.storage.lock_order import LockOrder
from activities.storage.tables import AuditHeadRow, AuditRow, OutboxRow
from activities.storage.upserts import insert_new_statement, upsert_statement
from activities.storage.write_marks import mark_write
from qmtl_sdk.contracts.canonical import canonical_json
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import MAX_SUBJECT


def table_of(row_type: type[SQLModel]) -> Table:
    """Return the table of a row's class."""
    table: Table = row_type.__table__  # type: ignore[attr-defined]  # SQLModel adds it
    return table


_AUDIT = table_of(AuditRow)
_AUDIT_HEAD = table_of(AuditHeadRow)
_OUTBOX = table_of(OutboxRow)
_LOCKED_HEAD = (
    sqlalchemy.select(_AUDIT_HEAD.c.number, _AUDIT_HEAD.c.hash)
    .where(_AUDIT_HEAD.c.chain == bindparam("chain"))
    .with_for_update()
)


def subject_hash(subject: str) -> str:
    """Return 128 bits of the hash of an event's subject, by which later events of it are found."""
    return blake3(subject.encode()).hexdigest(16)


def utc_text(moment: datetime) -> str:
    """Return a time of UTC in the form that every table stores."""
    return moment.isoformat(timespec="microseconds")


def utc_now() -> str:
    """Return the time now, in the same form."""
    return utc_text(datetime.now(UTC))


def utc_before(age: timedelta) -> str:
    """Return the time before now by `age`, in the same form."""
    return utc_text(datetime.now(UTC) - age)


class LockHeldError(Exception):
    """Another transaction holds a lock for longer than the caller waits."""


@dataclass(frozen=True)
class RecordedChange:
    """A change that a transaction records: an audit row of what was changed, an outbox row of its event.

    `event` is the type of the published event (default: `action`), `about` its subject (default: `subject`),
    `data` its data (default: the world and the subject). (Any: the JSON of whatever was changed.)
    """

    action: str
    world_id: str
    subject: str
    _: KW_ONLY
    before: Any = None
    after: Any = None
    correlation_id: str = ""
    event: str = ""
    about: str = ""
    data: Mapping[str, Any] | None = None


ChangeRows = tuple[dict[str, Any], dict[str, Any]]
"""The audit row and the outbox row of a change, without its time and its actor."""


class Transaction:
    """Writes over a connection: `insert_new`, `upsert` and `record`, and for everything else `session`.

    `connection` is for statements without the mapper.
    """

    def __init__(self, connection: Connection, insert: Any, actor: str) -> None:
        """Take the dialect's INSERT, which supports ON CONFLICT. (Any: the dialects share no type for it.)"""
        self.connection = connection
        self._insert = insert
        self._actor = actor
        # The audit and outbox rows of changes that the commit records.
        self.records: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._session: Session | None = None
        self._lock_order = LockOrder()

    def __enter__(self) -> Self:
        self.connection.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()

    @property
    def session(self) -> Session:
        """The mapper's session, made when it is first used: an order's transaction needs none."""
        if self._session is None:
            self._session = Session(self.connection)
        return self._session

    def finish(self) -> None:
        """Write what is left before the commit: rows that were changed through the session, and the records.

        Changed rows are locked before the heads of audit chains, and heads in the order of their names, or
        two transactions might deadlock. Only a retry of a dead letter locks its chain first; whoever holds
        the row that it changes then waits for no chain.
        """
        if self._session is not None:
            self._session.flush()
        if self.records:
            self._insert_records(self._link_audit())

    def insert_new(self, rows: Sequence[SQLModel]) -> set[tuple[Any, ...]]:
        """Insert the rows that conflict with no unique key. Returns the primary keys of the inserted rows."""
        if not rows:
            return set()
        table = table_of(type(rows[0]))
        keys = [column.key for column in table.columns if column.autoincrement is not True]
        return self.insert_new_values(table, [{key: getattr(row, key) for key in keys} for row in rows])

    def insert_new_values(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
        """Insert rows given as values by column, like `insert_new` but without an object for each row.

        All rows name the same columns; another column gets its default in the database, or NULL.
        """
        if not rows:
            return set()
        found = self.connection.execute(insert_new_statement(self._insert, table), rows)
        inserted = {tuple(row) for row in found}
        if inserted:
            mark_write(self.connection)
        return inserted

    def upsert(self, row: SQLModel) -> None:
        """Insert the row, or replace the one with its primary key."""
        self.upsert_all([row])

    def upsert_all(self, rows: Sequence[SQLModel]) -> None:
        """Do the same for rows of one table."""
        if rows:
            keys = (table := table_of(type(rows[0]))).columns.keys()
            self.upsert_values(table, [{key: getattr(row, key) for key in keys} for row in rows])

    def upsert_values(self, table: Table, values: list[dict[str, Any]]) -> None:
        """Do the same for values by column."""
        found = values[0] if len(values) == 1 else values
        self.connection.execute(upsert_statement(self._insert, table), found)

    def lock(self, name: str, within_ms: int = 0) -> None:
        """Hold the lock `name` until the end of the transaction. SQLite has one writer and needs no lock.

        Raises LockHeldError where another transaction still holds it after `within_ms`. With 0 it waits
        for as long as any statement (10 s), and then raises QmtlError (E_UNAVAILABLE). RuntimeError where
        the locks of the transaction are out of order (`LOCK_ORDER`).
        """
        self._lock_order.take(name)
        self._wait_for_lock(name, within_ms)

    def _wait_for_lock(self, name: str, within_ms: int = 0) -> None:
        """Wait for a lock, whatever the order."""

    def try_locks(self, names: Sequence[str]) -> list[str]:
        """Hold the locks that are free now until the end of the transaction. Returns their names."""
        return list(names)

    def limit_lock_waits(self, limit_s: float, lock: str = "") -> None:
        """Let statements fail that wait longer for a lock (none waits on SQLite), and then take `lock`."""
        if lock:
            self._lock_order.take(lock)

    def record(self, change: RecordedChange) -> None:
        """Record a change: `finish` writes its audit row and its outbox row before the commit."""
        self.record_all([change])

    def record_all(self, changes: Iterable[RecordedChange]) -> None:
        """Record changes in this order.

        Raises QmtlError: E_BODY_INVALID where a subject is too long for an event.
        """
        self.record_rows([change_rows(change) for change in changes])

    def record_rows(self, rows: Iterable[ChangeRows]) -> None:
        """Do the same for changes whose rows were built before the transaction began."""
        now = utc_now()
        self.records += [
            ({**audit, "at": now, "actor": self._actor}, {**event, "at": now}) for audit, event in rows
        ]

    def _link_audit(self) -> list[dict[str, Any]]:
        """Give audit rows their numbers and hashes in their chains. Returns the new heads of the chains.

        The transaction locks the head of each chain until it commits. So audit and outbox numbers of one key
        are in the order of commits.
        """
        chains = sorted({row["chain"] for row, _ in self.records})
        heads = {name: self.lock_chain(name) for name in chains}
        for row, _ in self.records:
            number, before = heads[row["chain"]]
            row["number"] = number + 1
            row["hash"] = link(before, row)
            heads[row["chain"]] = row["number"], row["hash"]
        return [{"chain": name, "number": n, "hash": h} for name, (n, h) in heads.items()]

    def _insert_records(self, heads: list[dict[str, Any]]) -> None:
        """Insert the audit and outbox rows of the changes, and the new heads of their chains."""
        self.insert_all(_AUDIT, [audit for audit, _ in self.records])
        self.upsert_values(_AUDIT_HEAD, heads)
        self.insert_all(_OUTBOX, [event for _, event in self.records])

    def lock_chain(self, chain: str) -> tuple[int, str]:
        """Lock the head of an audit chain: until the commit, no other change of its key is recorded.

        Returns the number and the hash of its newest row.
        """
        self._lock_order.take("audit")
        head = self.connection.execute(_LOCKED_HEAD, {"chain": chain}).first()
        if head is None:  # there is no row to lock yet
            self._wait_for_lock(f"audit:{chain}")
            head = self.connection.execute(_LOCKED_HEAD, {"chain": chain}).first()
        return (head.number, head.hash) if head else (0, "")

    def insert_all(self, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows given as values by column, in this order. All name the same columns."""
        self.connection.execute(table.insert(), rows[0] if len(rows) == 1 else rows)


def change_rows(change: RecordedChange) -> ChangeRows:
    """Build the rows of a change. Raises QmtlError (E_BODY_INVALID)."""
    return _audit_row(change), _event_row(change)


def _audit_row(change: RecordedChange) -> dict[str, Any]:
    """Build the audit row of a change, which gets its number and hash in its chain."""
    return {
        "action": change.action,
        "world_id": change.world_id,
        "subject": change.subject,
        "correlation_id": change.correlation_id,
        "before": canonical_json(change.before).decode(),
        "after": canonical_json(change.after).decode(),
        "chain": change.world_id or OUTSIDE_WORLDS,
    }


def _event_row(change: RecordedChange) -> dict[str, Any]:
    """Build the outbox row of a change. Raises QmtlError (E_BODY_INVALID)."""
    data = change.data
    if data is None:
        data = {"world_id": change.world_id, "subject": change.subject}
    subject = change.about or change.subject
    if len(subject) > MAX_SUBJECT:  # the limit of the column, which SQLite does not check
        raise QmtlError(
            "E_BODY_INVALID",
            f"an event's subject has {len(subject)} characters; {MAX_SUBJECT} are allowed",
            "use shorter names",
        )
    return {
        "event_id": uuid.uuid4().hex,
        "type": change.event or change.action,
        "key": change.world_id or change.subject,
        "world_id": change.world_id,
        "subject": subject,
        "subject_hash": subject_hash(subject),
        "data": canonical_json(dict(data)).decode(),
    }
