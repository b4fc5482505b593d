"""Verification of the audit trail, and of the order log by the seals that the trail holds.

1. One short transaction reads where the chain ends, the seals of the order log, and what is not sealed.
2. The chain is read up to that end, and each segment of the order log: from archives without a transaction,
   which PostgreSQL would end while they are decoded, and from the table a chunk at a time. What the upkeep
   archives meanwhile is read from its archive.
3. A last transaction looks for rows that were added to what has been read.

Hashes show what was changed without computing them again. Who may write the database can compute all of them:
then only a hash that was copied elsewhere, such as `head`, shows the change.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlmodel import Session

from activities.fence.segments import LOG, rows_after, segment_hash
from activities.retention.archives import Archives, archived_until, archives_of
from activities.retention.audit_trail import TRAIL
from activities.retention.order_log import SEALED, broken_segment
from activities.storage.chain import link
from activities.storage.database import Database
from activities.storage.tables import AuditHeadRow, OrderSealRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.errors import QmtlError

CHUNK = 2000
"""Entries that are read at a time."""

_SEALED = ("number", "first", "last", "rows", "hash")
_seal = table_of(OrderSealRow)


class Verified(NamedTuple):
    """What a verification found whole.

    `entries` of the chain; `orders`: the rows of the order log that it seals; `unsealed`: rows that are not
    sealed yet, so that a change of them is not found, and the time of the oldest; `head`: the hash of the
    newest entry.
    """

    entries: int
    orders: int
    unsealed: int
    unsealed_since: str
    head: str


@dataclass(frozen=True)
class _End:
    """What there was when a verification began. (Any: the columns of seals.)"""

    number: int
    hash: str
    seals: list[dict[str, Any]]
    unsealed: int
    unsealed_since: str


class Verification:
    """Verifies chains, through their archives."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def verify(self, chain: str) -> Verified:
        """Verify the hashes and numbers of all entries, and the rows of the order log that they seal.

        Raises QmtlError: E_AUDIT_BROKEN with the number of the first entry that is wrong or missing, or where
        rows were added; E_ARCHIVE where an archive can't be read.
        """
        end = self._end(chain)
        seals = self._verify_entries(chain, end)
        if seals != end.seals:
            raise _broken_seals(chain, seals, end.seals)
        orders = self._verify_orders(chain, seals)
        self._require_none_added(chain)
        return Verified(end.number, orders, end.unsealed, end.unsealed_since, end.hash)

    def entries(self, chain: str, after: int, chunk: int) -> Iterator[dict[str, Any]]:
        """Read the entries of a chain after a number. No transaction is open between two of them.

        (Any: the values of the columns.)
        """
        number = after
        while True:
            with self._database.read() as session:
                archived = list(archives_of(session, TRAIL.name, chain, number))
                rows = [] if archived else _entries(session, chain, number, chunk)
            for found in archived:
                for row in self._archives.read(found, "chain"):
                    if row["number"] > number:
                        yield row
                number = found.last
            yield from rows
            if rows:
                number = rows[-1]["number"]
            elif not archived:
                return

    def _end(self, chain: str) -> _End:
        with self._database.read() as session:
            head = session.get(AuditHeadRow, chain)
            columns = [_seal.c[name] for name in _SEALED]
            query = select(*columns).where(_seal.c.world_id == chain).order_by(_seal.c.number)
            seals = [dict(row._mapping) for row in session.connection().execute(query)]
            last = max((seal["last"] for seal in seals), default=0)
            after = (LOG.c.world_id == chain, LOG.c.seq > last)
            unsealed = (
                session.connection().execute(select(func.count(), func.min(LOG.c.at)).where(*after)).one()
            )
            number, hash = (head.number, head.hash) if head else (0, "")
        return _End(number, hash, seals, unsealed[0], unsealed[1] or "")

    def _verify_entries(self, chain: str, end: _End) -> list[dict[str, Any]]:
        """Verify a chain up to its end. Returns what it says about seals. (Any: as in `_End`.)"""
        number = 0
        before = ""
        seals: list[dict[str, Any]] = []
        for row in self.entries(chain, 0, CHUNK):
            if number == end.number:
                break
            if row["number"] != number + 1:
                raise _broken(
                    chain, number + 1, f"entry {number + 1} is missing, the next one is {row['number']}"
                )
            if row["hash"] != link(before, row):
                changed = f"entry {row['number']} ({row['action']} by {row['actor']}) was changed"
                raise _broken(chain, row["number"], changed)
            number = row["number"]
            before = row["hash"]
            if row["action"] == SEALED:
                seals.append({name: json.loads(row["after"]).get(name) for name in _SEALED})
        if (number, before) != (end.number, end.hash):
            raise _broken(
                chain, number + 1, f"the chain ends at entry {number}, but {end.number} were written"
            )
        return seals

    def _verify_orders(self, world_id: str, seals: Sequence[dict[str, Any]]) -> int:
        """Verify the rows of the order log against their seals. Returns how many there are."""
        after = total = 0
        for seal in seals:
            rows = self._segment(world_id, after, seal["last"])
            if segment_hash(rows) != seal["hash"]:
                raise broken_segment(world_id, seal["number"])
            after = seal["last"]
            total += len(rows)
        return total

    def _segment(self, world_id: str, after: int, last: int) -> list[dict[str, Any]]:
        """Read the rows of a segment: from its archive, or from the table. (Any: as above.)"""
        with self._database.read() as session:
            archived = next(archives_of(session, LOG.name, world_id, after, limit=1), None)
            if archived is None or archived.last != last:
                return rows_after(session.connection(), world_id, after, last)
        return self._archives.read(archived, "world_id")

    def _require_none_added(self, chain: str) -> None:
        """Check that no rows were added to what is archived, before all others, or after the chain's end.

        Raises QmtlError (E_AUDIT_BROKEN).
        """
        with self._database.read() as session:
            connection = session.connection()
            head = session.get(AuditHeadRow, chain)
            mine = (TRAIL.c.chain == chain,)
            count, newest = connection.execute(
                select(func.count(), func.max(TRAIL.c.number)).where(*mine)
            ).one()
            written = head.number if head else 0
            archived = archived_until(session, TRAIL.name, chain)
            sealed = max(0, archived_until(session, LOG.name, chain))
            added = select(LOG.c.seq).where(LOG.c.world_id == chain, LOG.c.seq <= sealed).limit(1)
            order = connection.execute(added).scalar()
        if count != written - archived or (count and newest != written):
            raise _broken(
                chain,
                archived + 1,
                f"it has {count} entries that are not archived, and not the {written - archived} that were"
                " written",
            )
        if order is not None:
            raise QmtlError(
                "E_AUDIT_BROKEN",
                f"the order log of {chain} has been changed: row {order} was added to what is archived",
                "compare the database with a backup; do not rely on this row",
                row=order,
            )


def _entries(session: Session, chain: str, after: int, chunk: int) -> list[dict[str, Any]]:
    """Read entries of a chain from the table. (Any: the values of the columns.)"""
    query = select(TRAIL).where(TRAIL.c.chain == chain, TRAIL.c.number > after)
    found = session.connection().execute(query.order_by(TRAIL.c.number).limit(chunk))
    return [dict(row._mapping) for row in found]


def _broken(chain: str, number: int, what: str) -> QmtlError:
    return QmtlError(
        "E_AUDIT_BROKEN",
        f"the audit trail of {chain} has been changed: {what}",
        "compare the database with a backup; do not rely on anything after that entry",
        entry=number,
    )


def _broken_seals(
    chain: str, written: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]
) -> QmtlError:
    """Return the error of seals that are not those of the trail. (Any: as in `_End`.)"""
    differ = [seal for seal in (*written, *found) if seal not in written or seal not in found]
    number = min(seal["number"] for seal in differ)
    return QmtlError(
        "E_AUDIT_BROKEN",
        f"the order log of {chain} has been changed: its seal {number} is not the one of the audit trail",
        "compare the table order_seal with a backup; rows after a false seal are not sealed",
        segment=number,
    )
