"""What positions were at a time: the newest entry of each until then, looked up in the ledger."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, case, literal, select, tuple_

from activities.storage.tables import LedgerRow, PositionRow
from activities.storage.transactions import table_of, utc_text
from qmtl_sdk.contracts.ledger import PositionFilter, PositionKey

_ledger = table_of(LedgerRow)
_position = table_of(PositionRow)
_NAMES = ("world_id", *PositionKey._fields)
_KEY = tuple(_position.c[name] for name in PositionKey._fields)
# Positions that one statement looks up at most, where those before them are not listed.
_AT_ONCE = 5000


def positions_as_of(
    connection: Connection, conditions: list[Any], asked: PositionFilter, moment: datetime
) -> list[tuple[str, ...]]:
    """Read positions as they were at a time, by key: each with the time of its newest entry and its JSON.

    (Any: conditions of their rows.)
    """
    # In one text, so that the entry is looked up once.
    entry = newest_entry(_ledger.c.at + _ledger.c.after, utc_text(moment), also_then=True, flat=asked.closed)
    query = select(*_KEY, entry.label("entry")).where(*conditions).order_by(*_KEY)
    found, size = list[tuple[str, ...]](), asked.limit
    rows: Any = connection.execute(query.limit(size)).all()
    while rows:
        for strategy_id, account, symbol, text in rows:
            if text is not None:
                start = text.index("{")
                found.append((strategy_id, account, symbol, text[:start], text[start:]))
        if len(found) >= asked.limit or len(rows) < size:
            break
        last = tuple_(*(literal(value) for value in rows[-1][:3]))
        size = min(2 * size, max(size, _AT_ONCE))
        rows = connection.execute(query.where(tuple_(*_KEY) > last).limit(size)).all()
    return found[: asked.limit]


def newest_entry(shown: Any, until: str, *, also_then: bool, flat: bool = True) -> Any:
    """Select an expression of the newest entry of a position before a time.

    NULL where there is none; without `flat`, also where nothing was held after it. The entry is the first
    one before a place in an index, whose whole key is compared as a row. No other index has its order, so
    the plan is this one whatever the database knows of the table: one that has just grown has no statistics.
    (Any: an expression.)
    """
    its = [_ledger.c[name] for name in _NAMES]
    # Joined to a text, since SQLite uses an index for no row of columns of another table.
    place = tuple_(*(_position.c[name] + "" for name in _NAMES), literal(until))
    here = tuple_(*its, _ledger.c.at)
    # Before the place may be an entry of another position.
    wanted = [_ledger.c[name] == _position.c[name] for name in _NAMES]
    if not flat:
        wanted.append(_ledger.c.held)
    return (
        select(case((and_(*wanted), shown)))
        .where(here <= place if also_then else here < place)
        .order_by(*(column.desc() for column in (*its, _ledger.c.at, _ledger.c.seq)))
        .limit(1)
        .correlate(_position)
        .scalar_subquery()
    )
