"""Segments of the order log, and what else of the fence's tables retention archives and removes."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, select

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


def is_needed(connection: Connection, seal: Row[Any], after: int, latest: str, cutoff: str) -> bool:
    """Return whether a segment, the sealed rows of a world that follow a number, must stay in the table.

    It must where its newest row is not before the cutoff (ISO 8601, UTC), where an order of it is open, and
    where it holds the newest row of all: SQLite would give its number again. Times after `latest` are wrong,
    and don't count; where all are, the time of the seal does. (Any: the columns of `order_seal`.)
    """
    if connection.execute(select(func.max(LOG.c.seq))).scalar() == seal.last:
        return True
    until = (LOG.c.world_id == seal.world_id, LOG.c.seq <= seal.last)
    times = select(func.max(LOG.c.at)).where(*until, LOG.c.seq > after, LOG.c.at <= latest)
    if (connection.execute(times).scalar() or seal.at) >= cutoff:
        return True
    orders = select(_open.c.order_id).where(_open.c.world_id == seal.world_id)
    return bool(connection.execute(select(exists().where(LOG.c.ref.in_(orders), *until))).scalar())


def remove_rows(tx: Transaction, world_id: str, first: int, last: int) -> int:
    """Remove rows that an archive names; the database refuses others. Returns how many."""
    mine = (LOG.c.world_id == world_id, LOG.c.seq >= first, LOG.c.seq <= last)
    return tx.connection.execute(delete(LOG).where(*mine)).rowcount
