"""Retention of the audit trail: rows of all chains in one archive, each chain from its oldest row on."""

import time
from datetime import datetime
from itertools import groupby, pairwise, takewhile
from typing import Any

from sqlalchemy import delete, func, select

from activities.retention.archives import (
    LOCK,
    Archives,
    archive_row,
    archive_until,
    archived_until,
    record_archives,
    require_all_removed,
)
from activities.retention.records import is_worth_a_file
from activities.storage.chain import link
from activities.storage.database import Database
from activities.storage.tables import AuditRow
from activities.storage.transactions import table_of, utc_text
from qmtl_sdk.contracts.errors import QmtlError

TRAIL = table_of(AuditRow)

# Rows of one archive.
_MOST_ROWS = 5000


class AuditRetention:
    """Archives the audit trail."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def apply(self, cutoff: datetime, limit_s: float) -> tuple[int, bool]:
        """Archive what is older than the cutoff, for about `limit_s` seconds.

        Returns how many rows were archived, and whether some are left. Raises QmtlError: E_ARCHIVE,
        E_AUDIT_BROKEN where a row is missing or was changed.
        """
        deadline = time.monotonic() + limit_s
        with self._database.read() as session:
            newest = session.connection().execute(select(func.max(TRAIL.c.seq))).scalar() or 0
        # Each archive adds a row, which is none of this run's. The newest row stays: SQLite would give its
        # number again.
        return archive_until(deadline, lambda: self._archive_next(cutoff, newest))

    def _archive_next(self, cutoff: datetime, newest: int) -> int:
        with self._database.read() as session:
            # The oldest rows have the smallest numbers, so no index of their times is needed.
            query = select(TRAIL).where(TRAIL.c.seq < newest).order_by(TRAIL.c.seq).limit(_MOST_ROWS)
            found = session.connection().execute(query).all()
            # Only what comes before the first young row: clocks of hosts differ, and a chain has no gaps.
            old = [dict(row._mapping) for row in takewhile(lambda row: row.at < utc_text(cutoff), found)]
            if not old or not is_worth_a_file(len(old), old[0]["at"], cutoff):
                return 0
            chains = _by_chain(old)
            for chain, rows in chains.items():
                _verify(chain, archived_until(session, TRAIL.name, chain), rows)
        artifact = self._archives.write(TRAIL, old)
        with self._database.write("upkeep") as tx:
            tx.lock(LOCK)
            archives = [
                archive_row(TRAIL.name, chain, rows[0]["number"], rows[-1]["number"], len(rows), artifact)
                for chain, rows in chains.items()
            ]
            record_archives(tx, archives)
            removed = tx.connection.execute(delete(TRAIL).where(TRAIL.c.seq <= old[-1]["seq"])).rowcount
            require_all_removed(TRAIL.name, removed, len(old))
        return len(old)


def _by_chain(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by chain, each in the order of its numbers. (Any: the values of their columns.)"""

    def place(row: dict[str, Any]) -> tuple[str, int]:
        return row["chain"], row["number"]

    ordered = sorted(rows, key=place)
    return {chain: list(mine) for chain, mine in groupby(ordered, key=lambda row: str(row["chain"]))}


def _verify(chain: str, archived: int, rows: list[dict[str, Any]]) -> None:
    """Check that rows follow what is archived, one after another. Raises QmtlError (E_AUDIT_BROKEN)."""
    numbers = [row["number"] for row in rows]
    whole = numbers == list(range(archived + 1, archived + 1 + len(rows)))
    linked = all(after["hash"] == link(before["hash"], after) for before, after in pairwise(rows))
    first = rows[0]
    begun = first["number"] > 1 or first["hash"] == link("", first)
    if not (whole and linked and begun):
        raise QmtlError(
            "E_AUDIT_BROKEN",
            f"the audit trail of {chain} has been changed, so nothing of it is archived",
            "qmtl world audit --verify names the first entry that is wrong",
        )
