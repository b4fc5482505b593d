"""The order log in segments: sealed when they are full or a day old, archived when they are old.

A segment is sealed by writing its hash into the world's audit trail. So whoever verifies the trail verifies
the rows as well, in the table or in their archive. The rows after the last segment are not sealed yet.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import func, select

from activities.fence.ledger_entries import entries_of, line_of
from activities.fence.segments import LOG, is_needed, remove_rows, rows_after, segment_hash
from activities.ledger.sql import remove_old_entries
from activities.retention.ages import Ages
from activities.retention.archives import (
    LOCK,
    Archives,
    archive_row,
    archive_until,
    archived_until,
    record_archives,
    require_all_removed,
)
from activities.retention.failures import Failures
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

    def apply(self, ages: Ages, limit_s: float) -> tuple[int, bool]:
        """Seal the rows of all worlds, and then archive the segments that are old.

        A world that fails keeps no other back. Returns how many rows were archived, and whether `limit_s`
        seconds were too few. Raises QmtlError: E_ARCHIVE, E_AUDIT_BROKEN of the first world that failed.
        """
        deadline = time.monotonic() + limit_s
        with self._database.read() as session:
            worlds = list(session.connection().execute(select(_world.c.world_id)).scalars())
        failures = Failures()
        rows, more = 0, self._seal(worlds, ages, deadline, failures)
        for world_id in () if more else worlds:
            with failures.contained(world_id):
                archived, more = archive_until(deadline, partial(self._archive_next, world_id, ages))
                rows += archived
            if more:
                break
        failures.raise_first()
        return rows, more

    def _seal(self, worlds: Sequence[str], ages: Ages, deadline: float, failures: Failures) -> bool:
        """Seal what is to be sealed. Returns whether there was no time for all."""
        for world_id in worlds:
            with failures.contained(world_id):
                while self._seal_next(world_id, ages):
                    if time.monotonic() > deadline:
                        return True
        return False

    def _seal_next(self, world_id: str, ages: Ages) -> bool:
        """Seal the next segment of a world, if there is one. Raises QmtlError (E_AUDIT_BROKEN)."""
        with self._database.read() as session:
            connection = session.connection()
            query = select(_seal.c.number, _seal.c.last).where(_seal.c.world_id == world_id)
            before = connection.execute(query.order_by(_seal.c.number.desc()).limit(1)).first()
            number, after = (before.number, before.last) if before else (0, 0)
            newest = connection.execute(select(func.max(LOG.c.seq))).scalar() or 0
            if after > newest:  # the newest row of all is never removed
                raise broken_segment(world_id, number)
            rows = rows_after(connection, world_id, after, limit=SEGMENT_ROWS)
        if not _is_due(rows, ages):
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
                # One subject for all: the state of a topic holds the newest event of each for ever.
                change = RecordedChange(SEALED, world_id, str(number + 1), about=LOG.name, after=sealed)
                tx.record(change)
        return True

    def _archive_next(self, world_id: str, ages: Ages) -> int:
        """Archive the oldest segment of a world, if it is old. Returns its number of rows."""
        with self._database.read() as session:
            connection = session.connection()
            done = archived_until(session, LOG.name, world_id)
            query = select(_seal).where(_seal.c.world_id == world_id, _seal.c.last > done)
            seal = connection.execute(query.order_by(_seal.c.number).limit(1)).first()
            if seal is None or is_needed(connection, seal, done, ages.latest, ages.cutoff):
                return 0
            rows = rows_after(connection, world_id, done, seal.last)
        if segment_hash(rows) != seal.hash:
            raise broken_segment(world_id, seal.number)
        artifact = self._archives.write(LOG, rows)
        newest = {dated.key: dated.entry.ref for row in rows for dated in entries_of(line_of(row))}
        with self._database.write("upkeep") as tx:
            tx.lock(LOCK)
            found = archive_row(LOG.name, world_id, seal.first, seal.last, len(rows), artifact)
            record_archives(tx, [found])
            removed = remove_rows(tx, world_id, seal.first, seal.last)
            require_all_removed(LOG.name, removed, len(rows))
            # Their entries can be made again from the archive. The newest one of each position stays.
            remove_old_entries(tx, world_id, newest)
        return len(rows)


def _is_due(rows: Sequence[dict[str, Any]], ages: Ages) -> bool:
    """Return whether rows are sealed now. (Any: the values of their columns.)

    One with a wrong time is, whatever its place: rows would wait for that time, and all after them.
    """
    times: list[str] = [row["at"] for row in rows]
    if not times or len(times) >= SEGMENT_ROWS:
        return bool(times)
    return min(times) <= utc_text(ages.now - SEAL_AFTER) or max(times) > ages.latest


def broken_segment(world_id: str, number: int) -> QmtlError:
    """Return the error of rows that are not those that were sealed."""
    return QmtlError(
        "E_AUDIT_BROKEN",
        f"the order log of {world_id} has been changed: the rows of segment {number} are not those that were"
        " sealed",
        "compare the database with a backup; do not rely on this segment",
        segment=number,
    )
