"""Segments of the order log, and what else of the fence's tables retention archives and removes."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, exists, func, select

from activities.storage.tables import AckRow, OpenOrderRow, OrderLogRow
from activities.storage.transactions import Transaction, table_of
from qmtl_sdk.contracts.canonical import hash_parts

LOG = table_of(OrderLogRow)
"""The order log, which has an archive for each segment."""

ACKNOWLEDGEMENTS = table_of(AckRow)
"""Acknowledgements: those that are older than any apply that waits for them may be removed."""

_open = table_of(OpenOrderRow)


def segment_hash(rows: Iterable[dict[str, Any]]) -> str:
    """Return the hash of rows of the order log. (Any: the values of its columns.)"""
    columns = LOG.columns.keys()
    return hash_parts(*(str(row[name]) for row in rows for name in columns))


def rows_after(
    connection: Connection, world_id: str, after: int, last: int | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read the rows of a world after a number, up to `last`, oldest first. (Any: as above.)

    A world's rows become visible in the order of their numbers (`OrderLogRow`), so none comes later between
    those that are read here.
    """
    query = select(LOG).where(LOG.c.world_id == world_id, LOG.c.seq > after)
    if last is not None:
        query = query.where(LOG.c.seq <= last)
    return [dict(row._mapping) for row in connection.execute(query.order_by(LOG.c.seq).limit(limit))]


def is_needed(connection: Connection, world_id: str, last: int, cutoff: str) -> bool:
    """Return whether the segment of a world up to `last` must stay in the table.

    It must where it ends after the cutoff (ISO 8601, UTC), where an order of it is open, and where it holds
    the newest row of all: SQLite would give its number again.
    """
    if connection.execute(select(func.max(LOG.c.seq))).scalar() == last:
        return True
    at = connection.execute(select(LOG.c.at).where(LOG.c.world_id == world_id, LOG.c.seq == last)).scalar()
    if at is None or at >= cutoff:
        return True
    orders = select(_open.c.order_id).where(_open.c.world_id == world_id)
    still_open = exists().where(LOG.c.ref.in_(orders), LOG.c.world_id == world_id, LOG.c.seq <= last)
    return bool(connection.execute(select(still_open)).scalar())


def remove_rows(tx: Transaction, world_id: str, first: int, last: int) -> int:
    """Remove rows that an archive names; the database refuses others. Returns how many."""
    mine = (LOG.c.world_id == world_id, LOG.c.seq >= first, LOG.c.seq <= last)
    return tx.connection.execute(delete(LOG).where(*mine)).rowcount
