"""The ledger in the database: entries are booked in the transaction that writes what they follow from.

Who books holds the world's fence, so that a world's entries are booked one after the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, literal, select, tuple_

from activities.ledger.booking import DatedEntry, History, book, postings, reverse
from activities.ledger.exposures import Exposures, owners, totals_of
from activities.ledger.past import positions_as_of
from activities.storage.database import Database
from activities.storage.lists import among, among_keys
from activities.storage.readable import readable
from activities.storage.tables import ExposureDayRow, ExposureRow, LedgerRow, PositionRow
from activities.storage.transactions import Transaction, table_of
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.ledger import (
    Entry,
    EntryKind,
    HeldPosition,
    LedgerLine,
    Position,
    PositionFilter,
    PositionKey,
)

_ledger = table_of(LedgerRow)
_position = table_of(PositionRow)
_exposure = table_of(ExposureRow)
_day = table_of(ExposureDayRow)

Held = dict[PositionKey, tuple[str, Position]]
"""Positions by key, each with the time of its newest entry (ISO 8601, UTC)."""


class StoredPosition(NamedTuple):
    """A position as it is stored: when it and its mark changed, its JSON, whether it is held."""

    at: str
    marked_at: str
    after: str
    held: bool


_KEY = (_position.c.strategy_id, _position.c.account, _position.c.symbol)


class SqlLedger:
    """Reads the ledgers of worlds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def positions(self, world_id: str, asked: PositionFilter) -> list[HeldPosition]:
        """List positions of a world, as the ledger has them now or had them at a time, by key.

        Raises QmtlError (E_WORLD_UNKNOWN).
        """
        mine = [_position.c.world_id == world_id]
        if asked.strategy_id:
            mine.append(_position.c.strategy_id == asked.strategy_id)
        if asked.after_key is not None:
            mine.append(tuple_(*_KEY) > tuple_(*map(literal, asked.after_key)))
        with self._database.read() as session:
            world_row(session, world_id)
            connection = session.connection()
            if asked.as_of is not None:
                return readable(positions_as_of(connection, mine, asked, asked.as_of), held_position)
            query = select(*_KEY, _position.c.at, _position.c.after).where(*mine)
            if not asked.closed:
                query = query.where(_position.c.held)
            rows = connection.execute(query.order_by(*_KEY).limit(asked.limit))
            return readable(rows.all(), held_position)

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
    found = dict[str, Entry]()
    mine = (_ledger.c.world_id == world_id, _ledger.c.account == account, among(_ledger.c.ref, refs))
    for row in connection.execute(select(_ledger.c.ref, _ledger.c.entry).where(*mine)):
        found[row.ref] = Entry.model_validate_json(row.entry)
    return found


def book_entries(tx: Transaction, world_id: str, entries: Sequence[DatedEntry]) -> None:
    """Book entries in this order. The caller holds the world's fence; none of them is booked already."""
    if not entries:
        return
    keys = {entry.key for entry in entries}
    held = positions_of(tx.connection, world_id, keys)
    mine = {owner for key in keys for owner in owners(key)}
    exposures = Exposures(totals_of(tx.connection, world_id, mine))
    rows = list[dict[str, object]]()
    history = partial(history_of, tx.connection, world_id)
    for dated in entries:
        if dated.entry.kind is EntryKind.REVERSAL and rows:  # it looks back at those before it
            tx.insert_all(_ledger, rows)
            rows = []
        before = held[dated.key][1] if dated.key in held else Position()
        rows.append(_row(world_id, dated, held, history))
        exposures.move(dated.key, dated.entry.kind, before, held[dated.key])
    tx.insert_all(_ledger, rows)
    exposures.store(tx, world_id)
    changed = sorted({dated.key for dated in entries})
    tx.upsert_values(_position, [_position_row(world_id, key, *held[key]) for key in changed])


def history_of(connection: Connection, world_id: str, key: PositionKey) -> History:
    """Read the entries of a position that are left, and its state before them."""
    query = select(_ledger.c.at, _ledger.c.entry, _ledger.c.after).where(*_of(world_id, key))
    rows = connection.execute(query.order_by(_ledger.c.seq)).all()
    entries = tuple(DatedEntry(row.at, Entry.model_validate_json(row.entry)) for row in rows)
    if not rows:
        return History()
    first = Position.model_validate_json(rows[0].after)
    at, entry = entries[0]
    if entry.kind is not EntryKind.REVERSAL and book(Position(), entry, at)[1] == first:
        return History(entries=entries)
    return History(first, entries[1:])  # what came before was removed


def held_positions(
    connection: Connection, world_id: str, strategies: Sequence[str] | None = None
) -> dict[PositionKey, Position]:
    """Read the positions of a world that are not flat, by key: of these strategies, or of all."""
    mine = [_position.c.world_id == world_id, _position.c.held]
    if strategies is not None:
        mine.append(_position.c.strategy_id.in_(strategies))
    rows = connection.execute(select(*_KEY, _position.c.after).where(*mine).order_by(*_KEY))
    return {PositionKey(*row[:3]): Position.model_validate_json(row.after) for row in rows}


def held_list(connection: Connection, world_id: str) -> list[HeldPosition]:
    """List the positions of a world that are not flat, by key, each with the time of its newest entry."""
    mine = (_position.c.world_id == world_id, _position.c.held)
    query = select(*_KEY, _position.c.at, _position.c.after).where(*mine)
    return [held_position(row) for row in connection.execute(query.order_by(*_KEY))]


def remove_old_entries(tx: Transaction, world_id: str, newest: Mapping[PositionKey, str]) -> None:
    """Remove the entries of positions that were booked before the named one of each, by its `ref`.

    That one stays: it says what was held from then on.
    """
    named = _ledger.alias("named")
    kept = (
        select(named.c.seq)
        .where(
            named.c.world_id == world_id,
            named.c.account == bindparam("of_account"),
            named.c.ref == bindparam("kept"),
        )
        .scalar_subquery()
    )
    mine = (
        _ledger.c.world_id == world_id,
        _ledger.c.strategy_id == bindparam("of_strategy"),
        _ledger.c.account == bindparam("of_account"),
        _ledger.c.symbol == bindparam("of_symbol"),
    )
    values = [
        {"of_strategy": key.strategy_id, "of_account": key.account, "of_symbol": key.symbol, "kept": ref}
        for key, ref in newest.items()
    ]
    if values:
        tx.connection.execute(delete(_ledger).where(*mine, _ledger.c.seq < kept), values)


def _of(world_id: str, key: PositionKey) -> list[Any]:
    """Select the entries of a position. (Any: conditions.)"""
    return [_ledger.c[name] == value for name, value in (("world_id", world_id), *key._asdict().items())]


def remove_ledger(tx: Transaction, world_id: str) -> None:
    """Remove a world's ledger, to book it anew from the order log."""
    for table in (_ledger, _position, _exposure, _day):
        tx.connection.execute(delete(table).where(table.c.world_id == world_id))


def ledger_rows(connection: Connection, world_id: str, after: int, limit: int) -> Sequence[Any]:
    """Read rows of a world's ledger after a number, oldest first. (Any: the columns of a row.)"""
    query = select(_ledger).where(_ledger.c.world_id == world_id, _ledger.c.seq > after)
    return connection.execute(query.order_by(_ledger.c.seq).limit(limit)).all()


def current_positions(connection: Connection, world_id: str) -> dict[PositionKey, StoredPosition]:
    """Read a world's positions as they are stored."""
    columns = (*_KEY, *(_position.c[name] for name in StoredPosition._fields))
    rows = connection.execute(select(*columns).where(_position.c.world_id == world_id))
    return {
        PositionKey(*row[:3]): StoredPosition(row.at, row.marked_at, row.after, bool(row.held))
        for row in rows
    }


def booked_row(dated: DatedEntry, held: Held, history: Callable[[PositionKey], History]) -> dict[str, object]:
    """Book an entry on positions in memory; return what its row holds. `history`: see `reverse`."""
    last, before = held.get(dated.key, ("", Position()))
    at = max(dated.at, last)  # a clock that was set back must not hide the newest entry
    if dated.entry.kind is EntryKind.REVERSAL:
        entry, after = reverse(before, dated.entry, history(dated.key))
    else:
        entry, after = book(before, dated.entry, at)
    held[dated.key] = at, after
    return {
        "at": at,
        **dated.key._asdict(),
        "ref": dated.entry.ref,
        "held": bool(after.quantity),
        "entry": entry.model_dump_json(exclude_defaults=True),
        "after": after.model_dump_json(exclude_defaults=True),
    }


def _row(
    world_id: str, dated: DatedEntry, held: Held, history: Callable[[PositionKey], History]
) -> dict[str, object]:
    return {"world_id": world_id, **booked_row(dated, held, history)}


def _position_row(world_id: str, key: PositionKey, at: str, after: Position) -> dict[str, object]:
    return {
        "world_id": world_id,
        **key._asdict(),
        "at": at,
        "marked_at": after.marked_at,
        "held": bool(after.quantity),
        "after": after.model_dump_json(exclude_defaults=True),
    }


def positions_of(connection: Connection, world_id: str, keys: Iterable[PositionKey]) -> Held:
    """Read positions, each with the time of its newest entry. Those that never were are left out."""
    # Whole keys: by a world alone, PostgreSQL would read all of it where it has no statistics yet.
    wanted = [(world_id, *key) for key in sorted(set(keys))]
    if not wanted:
        return {}
    these = among_keys((_position.c.world_id, *_KEY), wanted)
    rows = connection.execute(select(*_KEY, _position.c.at, _position.c.after).where(these))
    return {PositionKey(*row[:3]): (row.at, Position.model_validate_json(row.after)) for row in rows}


def held_position(row: Any) -> HeldPosition:
    """Convert a row: a key, the time of its newest entry, and a position. (Any: columns.)"""
    strategy_id, account, symbol, at, after = row[:5]
    position = Position.model_validate_json(after)
    # What the ledger wrote needs no second check: a world may have thousands.
    return HeldPosition.trusted(
        strategy_id=strategy_id,
        account=account,
        symbol=symbol,
        position=position,
        average=position.average,
        unrealised=position.unrealised,
        updated_at=datetime.fromisoformat(at),
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
