"""What strategies hold and have earned in a world, now and since midnight.

The positions are read a page at a time, so that memory does not grow with them. Those that have changed since
midnight come with their state of then, which is looked up in the ledger for these alone: the others have
earned nothing since, as a mark changes with an entry only.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, case, literal, select, tuple_

from activities.ledger.past import newest_entry
from activities.ledger.sql import held_position
from activities.ledger.sums import WorldSums
from activities.storage.database import Database
from activities.storage.tables import LedgerRow, PositionRow
from activities.storage.transactions import table_of, utc_text
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.ledger import Position, PositionKey
from qmtl_sdk.contracts.position_summary import PositionSummary

_ledger = table_of(LedgerRow)
_position = table_of(PositionRow)
_KEY = tuple(_position.c[name] for name in PositionKey._fields)
# Positions that one statement reads.
_PAGE = 5000

_log = structlog.get_logger()


class SqlPositionSummary:
    """Adds up the positions of worlds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def summary(self, world_id: str, midnight: datetime, largest: int) -> PositionSummary:
        """Add up the positions of a world, those that are flat too.

        `midnight`: since when today's profit counts, at most a day ago: older entries may be removed.
        `largest`: how many positions of each strategy and account are named. Raises QmtlError
        (E_WORLD_UNKNOWN).
        """
        sums, since, unreadable = WorldSums(largest), utc_text(midnight), 0
        with self._database.read() as session:
            world_row(session, world_id)
            for row in _rows(session.connection(), world_id, since):
                try:
                    held = held_position(row)
                    before = Position.model_validate_json(row.before) if row.before else Position()
                except ValueError as error:
                    unreadable += 1
                    _log.error("a position cannot be read and is left out of a sum", why=str(error))
                    continue
                sums.add(held, before if row.at >= since else held.position)
        return PositionSummary(
            world_id=world_id,
            midnight=midnight,
            strategies=sums.strategies(),
            accounts=sums.accounts(),
            unreadable=unreadable,
        )


def _rows(connection: Connection, world_id: str, midnight: str) -> Iterator[Any]:
    """Read the positions of a world in the order of their keys. (Any: their columns.)"""
    newest = newest_entry(_ledger.c.after, midnight, also_then=False)
    before = case((_position.c.at >= midnight, newest), else_=None).label("before")
    query = select(*_KEY, _position.c.at, _position.c.after, before).where(_position.c.world_id == world_id)
    query = query.order_by(*_KEY).limit(_PAGE)
    rows: Sequence[Any] = connection.execute(query).all()
    while rows:
        yield from rows
        if len(rows) < _PAGE:
            return
        last = tuple_(*(literal(rows[-1][number]) for number in range(len(_KEY))))
        rows = connection.execute(query.where(tuple_(*_KEY) > last)).all()
