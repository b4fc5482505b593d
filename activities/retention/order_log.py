"""The order log in segments: sealed when they are full or a day old, archived when they are old.

A segment is sealed by writing its hash into the world's audit trail. So whoever verifies the trail verifies
the rows as well, in the table or in their archive. The rows after the last segment are not sealed yet.
"""

import time
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import select

from activities.fence.segments import LOG, is_needed, remove_rows, rows_after, segment_hash
from activities.retention.archives import (
    LOCK,
    Archives,
    archive_row,
    archive_until,
    archived_until,
    record_archives,
    require_all_removed,
)
from activities.storage.database import Database
from activities.storage.tables import OrderSealRow, WorldRow
from activities.storage.transactions import RecordedChange, table_of, utc_now, utc_text
from qmtl_sdk.contracts.errors import QmtlError

SEALED = "orders.sealed"
"""The action of the audit entry that holds the hash of a segment."""

SEGMENT_ROWS = 5000
"""Rows of a full segment."""

SEAL_AFTER = timedelta(days=1)
"""The age at which rows are sealed although their segment is not full."""

_seal = table_of(OrderSealRow)
_world = table_of(WorldRow)


class OrderLogRetention:
    """Seals and archives the order logs of all worlds."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def apply(self, now: datetime, cutoff: datetime, limit_s: float) -> tuple[int, bool]:
        """Seal what is to be sealed at `now`, and archive the segments that ended before the cutoff.

        Returns how many rows were archived, and whether `limit_s` seconds were too few. Raises QmtlError:
        E_ARCHIVE, E_AUDIT_BROKEN.
        """
        deadline = time.monotonic() + limit_s
        with self._database.read() as session:
            worlds = list(session.connection().execute(select(_world.c.world_id)).scalars())
        rows = 0
        for world_id in worlds:
            while self._seal_next(world_id, now):
                if time.monotonic() > deadline:
                    return rows, True
            archived, more = archive_until(deadline, partial(self._archive_next, world_id, cutoff))
            rows += archived
            if more:
                return rows, True
        return rows, False

    def _seal_next(self, world_id: str, now: datetime) -> bool:
        """Seal the next segment of a world, if there is one."""
        with self._database.read() as session:
            connection = session.connection()
            newest = select(_seal.c.number, _seal.c.last).where(_seal.c.world_id == world_id)
            before = connection.execute(newest.order_by(_seal.c.number.desc()).limit(1)).first()
            number, after = (before.number, before.last) if before else (0, 0)
            rows = rows_after(connection, world_id, after, limit=SEGMENT_ROWS)
        young = utc_text(now - SEAL_AFTER)
        if not rows or (len(rows) < SEGMENT_ROWS and rows[0]["at"] > young):
            return False
        sealed = {
            "number": number + 1,
            "first": rows[0]["seq"],
            "last": rows[-1]["seq"],
            "rows": len(rows),
            "hash": segment_hash(rows),
        }
        with self._database.write("upkeep") as tx:
            if tx.insert_new([OrderSealRow(world_id=world_id, at=utc_now(), **sealed)]):
                tx.record(RecordedChange(SEALED, world_id, str(number + 1), after=sealed))
        return True

    def _archive_next(self, world_id: str, cutoff: datetime) -> int:
        """Archive the oldest segment of a world, if it is old. Returns its number of rows."""
        with self._database.read() as session:
            connection = session.connection()
            done = archived_until(session, LOG.name, world_id)
            query = select(_seal).where(_seal.c.world_id == world_id, _seal.c.last > done)
            seal = connection.execute(query.order_by(_seal.c.number).limit(1)).first()
            if seal is None or is_needed(connection, world_id, seal.last, utc_text(cutoff)):
                return 0
            rows = rows_after(connection, world_id, done, seal.last)
        if segment_hash(rows) != seal.hash:
            raise broken_segment(world_id, seal.number)
        artifact = self._archives.write(LOG, rows)
        with self._database.write("upkeep") as tx:
            tx.lock(LOCK)
            found = archive_row(LOG.name, world_id, seal.first, seal.last, len(rows), artifact)
            record_archives(tx, [found])
            removed = remove_rows(tx, world_id, seal.first, seal.last)
            require_all_removed(LOG.name, removed, len(rows))
        return len(rows)


def broken_segment(world_id: str, number: int) -> QmtlError:
    """Return the error of rows that are not those that were sealed."""
    return QmtlError(
        "E_AUDIT_BROKEN",
        f"the order log of {world_id} has been changed: the rows of segment {number} are not those that were"
        " sealed",
        "compare the database with a backup; do not rely on this segment",
        segment=number,
    )
