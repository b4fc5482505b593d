"""The ledger in the database: entries are booked in the transaction that writes what they follow from.

Who books holds the world's fence, so that a world's entries are booked one after the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, tuple_

from activities.ledger.booking import book, postings
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import LedgerRow, PositionRow
from activities.storage.transactions import Transaction, table_of
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.ledger import Entry, HeldPosition, LedgerLine, Position, PositionKey

_ledger = table_of(LedgerRow)
_position = table_of(PositionRow)
_KEY = (_position.c.strategy_id, _position.c.account, _position.c.symbol)


class DatedEntry(NamedTuple):
    """An entry and when it was recorded (ISO 8601, UTC)."""

    at: str
    entry: Entry

    @property
    def key(self) -> PositionKey:
        """Whose position it changes."""
        return PositionKey(self.entry.strategy_id, self.entry.account, self.entry.symbol)


@dataclass(frozen=True)
class PositionQuery:
    """Which positions: as of a time or now, of one strategy or all, those that were closed too."""

    as_of: datetime | None = None
    strategy_id: str = ""
    closed: bool = False
    limit: int = 10_000


class SqlLedger:
    """Reads the ledgers of worlds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def positions(self, world_id: str, asked: PositionQuery) -> list[HeldPosition]:
        """List the positions of a world, as the ledger has them now or had them at a time.

        Raises QmtlError (E_WORLD_UNKNOWN).
        """
        mine = [_position.c.world_id == world_id]
        if asked.strategy_id:
            mine.append(_position.c.strategy_id == asked.strategy_id)
        query = select(*_KEY, _position.c.at, _position.c.after).where(*mine)
        if asked.as_of is not None:
            query = _as_of(asked.as_of, mine)
        elif not asked.closed:
            query = query.where(_position.c.held)
        with self._database.read() as session:
            world_row(session, world_id)
            rows = session.connection().execute(query.order_by(*_KEY).limit(asked.limit)).all()
        found = readable([row for row in rows if row.at is not None], _held)
        return [item for item in found if asked.closed or item.position.quantity]

    def lines(
        self, world_id: str, after: int = 0, limit: int = 100, strategy_id: str = ""
    ) -> list[LedgerLine]:
        """List entries after a number of the ledger, oldest first. Raises QmtlError (E_WORLD_UNKNOWN)."""
        query = select(_ledger).where(_ledger.c.world_id == world_id, _ledger.c.seq > after)
        if strategy_id:
            query = query.where(_ledger.c.strategy_id == strategy_id)
        with self._database.read() as session:
            world_row(session, world_id)
            rows = session.connection().execute(query.order_by(_ledger.c.seq).limit(limit)).all()
        return readable(rows, _line)


def booked(connection: Connection, world_id: str, account: str, refs: Sequence[str]) -> dict[str, Entry]:
    """Read the entries of an account with these names, which are booked already."""
    mine = (_ledger.c.world_id == world_id, _ledger.c.account == account, _ledger.c.ref.in_(refs))
    rows = connection.execute(select(_ledger.c.ref, _ledger.c.entry).where(*mine))
    return {row.ref: Entry.model_validate_json(row.entry) for row in rows}


def book_entries(tx: Transaction, world_id: str, entries: Sequence[DatedEntry]) -> None:
    """Book entries in this order. The caller holds the world's fence; none of them is booked already."""
    if not entries:
        return
    held = _positions(tx.connection, world_id, {entry.key for entry in entries})
    rows = [_row(world_id, dated, held) for dated in entries]
    tx.connection.execute(_ledger.insert(), rows)
    changed = sorted({dated.key for dated in entries})
    tx.upsert_values(_position, [_position_row(world_id, key, *held[key]) for key in changed])


def remove_ledger(tx: Transaction, world_id: str) -> None:
    """Remove a world's ledger, to book it anew from the order log."""
    for table in (_ledger, _position):
        tx.connection.execute(delete(table).where(table.c.world_id == world_id))


def ledger_rows(connection: Connection, world_id: str, after: int, limit: int) -> Sequence[Any]:
    """Read rows of a world's ledger after a number, oldest first. (Any: the columns of a row.)"""
    query = select(_ledger).where(_ledger.c.world_id == world_id, _ledger.c.seq > after)
    return connection.execute(query.order_by(_ledger.c.seq).limit(limit)).all()


def current_positions(connection: Connection, world_id: str) -> dict[PositionKey, tuple[str, str]]:
    """Read a world's current positions as they are stored: when each changed, and its JSON."""
    query = select(*_KEY, _position.c.at, _position.c.after).where(_position.c.world_id == world_id)
    return {PositionKey(*row[:3]): (row.at, row.after) for row in connection.execute(query)}


def booked_row(dated: DatedEntry, held: dict[PositionKey, tuple[str, Position]]) -> tuple[str, str, str]:
    """Book an entry on positions in memory; return what its row holds: time, entry and position as JSON."""
    last, before = held.get(dated.key, ("", Position()))
    entry, after = book(before, dated.entry)
    at = max(dated.at, last)  # a clock that was set back must not hide the newest entry
    held[dated.key] = at, after
    return at, entry.model_dump_json(exclude_defaults=True), after.model_dump_json(exclude_defaults=True)


def _row(world_id: str, dated: DatedEntry, held: dict[PositionKey, tuple[str, Position]]) -> dict[str, str]:
    at, entry, after = booked_row(dated, held)
    return {
        "at": at,
        "world_id": world_id,
        **dated.key._asdict(),
        "ref": dated.entry.ref,
        "entry": entry,
        "after": after,
    }


def _position_row(world_id: str, key: PositionKey, at: str, after: Position) -> dict[str, object]:
    return {
        "world_id": world_id,
        **key._asdict(),
        "at": at,
        "held": bool(after.quantity),
        "after": after.model_dump_json(exclude_defaults=True),
    }


def _positions(
    connection: Connection, world_id: str, keys: Iterable[PositionKey]
) -> dict[PositionKey, tuple[str, Position]]:
    these = (_position.c.world_id == world_id, tuple_(*_KEY).in_(sorted(keys)))
    rows = connection.execute(select(*_KEY, _position.c.at, _position.c.after).where(*these))
    return {PositionKey(*row[:3]): (row.at, Position.model_validate_json(row.after)) for row in rows}


def _as_of(moment: datetime, mine: Sequence[Any]) -> Any:
    """Select each position with its newest entry until a time. (Any: the parts of a query.)

    Both parts are looked up in an index for each position; joined, PostgreSQL would read the whole ledger.
    """
    until = moment.isoformat(timespec="microseconds")

    def newest(column: Any) -> Any:
        its = [_ledger.c[name] == _position.c[name] for name in ("world_id", *PositionKey._fields)]
        found = select(column).where(*its, _ledger.c.at <= until)
        newest_first = found.order_by(_ledger.c.at.desc(), _ledger.c.seq.desc()).limit(1)
        return newest_first.correlate(_position).scalar_subquery()

    return select(*_KEY, newest(_ledger.c.at).label("at"), newest(_ledger.c.after).label("after")).where(
        *mine
    )


def _held(row: Any) -> HeldPosition:
    """Convert a row. (Any: the columns of a position.)"""
    position = Position.model_validate_json(row.after)
    # What the ledger wrote needs no second check: a world may have thousands.
    return HeldPosition.model_construct(
        strategy_id=row.strategy_id,
        account=row.account,
        symbol=row.symbol,
        position=position,
        average=position.average,
        unrealised=position.unrealised,
        updated_at=datetime.fromisoformat(row.at),
    )


def _line(row: Any) -> LedgerLine:
    """Convert a row of the ledger. (Any: its columns.)"""
    entry = Entry.model_validate_json(row.entry)
    return LedgerLine(
        seq=row.seq,
        at=datetime.fromisoformat(row.at),
        entry=entry,
        after=Position.model_validate_json(row.after),
        postings=postings(entry),
    )
