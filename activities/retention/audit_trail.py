"""Retention of the audit trail: rows of all chains in one archive, each chain from its oldest row on."""

import time
from collections.abc import Sequence
from itertools import groupby, pairwise, takewhile
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, select

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
from activities.retention.records import count_within, is_worth_a_file
from activities.storage.chain import OUTSIDE_WORLDS, link
from activities.storage.database import Database
from activities.storage.tables import AuditRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.errors import QmtlError

TRAIL = table_of(AuditRow)

# Rows of one archive.
_MOST_ROWS = 5000


class AuditRetention:
    """Archives the audit trail."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def apply(self, ages: Ages, limit_s: float) -> tuple[int, bool]:
        """Archive the rows that are old, for about `limit_s` seconds. A broken chain keeps only its own back.

        Returns how many rows were archived, and whether some are left. Raises QmtlError: E_ARCHIVE,
        E_AUDIT_BROKEN where a row of a chain is missing or was changed.
        """
        deadline = time.monotonic() + limit_s
        with self._database.read() as session:
            newest = session.connection().execute(select(func.max(TRAIL.c.seq))).scalar() or 0
        # Each archive adds a row, which is none of this run's. The newest row stays: SQLite would give its
        # number again.
        broken = Failures()
        done = archive_until(deadline, lambda: self._archive_next(ages, newest, broken))
        broken.raise_first()
        return done

    def _archive_next(self, ages: Ages, newest: int, broken: Failures) -> int:
        """Archive the oldest rows of the chains that are whole. Returns how many."""
        with self._database.read() as session:
            while True:
                old = _old_rows(session.connection(), ages, newest, broken.names)
                if not old:
                    return 0
                chains = _by_chain(old)
                for chain, rows in chains.items():
                    with broken.contained(chain):
                        _verify(chain, archived_until(session, TRAIL.name, chain), rows)
                if not any(chain in broken for chain in chains):
                    break
        artifact = self._archives.write(TRAIL, old)
        with self._database.write("upkeep") as tx:
            tx.lock(LOCK)
            archives = [
                archive_row(TRAIL.name, chain, rows[0]["number"], rows[-1]["number"], len(rows), artifact)
                for chain, rows in chains.items()
            ]
            record_archives(tx, archives)
            mine = (TRAIL.c.seq >= old[0]["seq"], TRAIL.c.seq <= old[-1]["seq"], _of_others(broken.names))
            removed = tx.connection.execute(delete(TRAIL).where(*mine)).rowcount
            require_all_removed(TRAIL.name, removed, len(old))
        return len(old)


def _old_rows(connection: Connection, ages: Ages, newest: int, broken: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of the next archive, but none of broken chains. (Any: the values of their columns.)

    They are those before the first young row, since clocks of hosts differ and a chain has no gaps. One with
    a wrong time goes where a row after it is old.
    """
    size = func.length(TRAIL.c.before) + func.length(TRAIL.c.after)
    # The oldest rows have the smallest numbers, so no index of their times is needed.
    query = select(TRAIL.c.seq, TRAIL.c.at, size.label("size")).where(
        TRAIL.c.seq < newest, _of_others(broken)
    )
    found = connection.execute(query.order_by(TRAIL.c.seq).limit(_MOST_ROWS)).all()
    before = list(takewhile(lambda row: not ages.is_young(row.at), found))
    old = [row for row in before if row.at < ages.cutoff]
    if not old or not is_worth_a_file(len(old), min(row.at for row in old), ages.limit):
        return []
    within = count_within([row.size for row in before])
    last = max((row.seq for row in before[:within] if row.at < ages.cutoff), default=before[within - 1].seq)
    rows = select(TRAIL).where(TRAIL.c.seq >= found[0].seq, TRAIL.c.seq <= last, _of_others(broken))
    return [dict(row._mapping) for row in connection.execute(rows.order_by(TRAIL.c.seq))]


def _of_others(broken: Sequence[str]) -> ColumnElement[bool]:
    """Select the rows of chains that are not broken."""
    return TRAIL.c.chain.not_in(broken)


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
        command = "qmtl audit" if chain == OUTSIDE_WORLDS else f"qmtl world audit {chain}"
        raise QmtlError(
            "E_AUDIT_BROKEN",
            f"the audit trail of {chain} has been changed, so nothing of it is archived",
            f"{command} --verify names the first entry that is wrong",
        )
