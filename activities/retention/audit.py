"""Read the audit trail, and verify its hash chain."""

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlmodel import Session

from activities.fence.segments import LOG, rows_after, segment_hash
from activities.retention.archives import Archives, archived_until, archives_of
from activities.retention.audit_trail import TRAIL
from activities.retention.order_log import SEALED, broken_segment
from activities.storage.chain import link
from activities.storage.database import Database
from activities.storage.tables import AuditHeadRow
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime

# Rows that `verify` reads at a time.
_CHUNK = 2000


class AuditEntry(Model):
    """Who did what to which subject, with its state before and after.

    (Any: the JSON of whatever was changed.)
    """

    number: int
    at: UtcTime
    actor: str
    action: str
    subject: str
    correlation_id: str
    before: Any
    after: Any
    hash: str


class AuditPage(Model):
    """Entries of a chain.

    `verified`: the number of verified entries, and `orders_verified`: that of the rows of the order log which
    they seal; None where that was not requested.
    """

    entries: tuple[AuditEntry, ...]
    verified: int | None = None
    orders_verified: int | None = None


class SqlAudit:
    """Reads chains: a world's, or a subject's where there is no world. Archived entries are read as well."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def page(self, chain: str, after: int, limit: int, verify: bool = False) -> AuditPage:
        """Read `limit` entries after number `after`.

        Raises QmtlError: E_AUDIT_BROKEN if `verify` finds a defect, E_ARCHIVE where an archive can't be read.
        """
        verified = self.verify(chain) if verify else (None, None)
        with self._database.read() as session:
            rows = list(islice(self._rows(session, chain, after, min(limit, _CHUNK)), limit))
        return AuditPage(entries=tuple(map(_entry, rows)), verified=verified[0], orders_verified=verified[1])

    def verify(self, chain: str) -> tuple[int, int]:
        """Verify the hashes and numbers of all entries, and the rows of the order log that they seal.

        Returns how many entries and rows there are. Raises QmtlError: E_AUDIT_BROKEN with the number of the
        first entry that is wrong or missing.
        """
        number = 0
        before = ""
        seals: list[dict[str, Any]] = []
        with self._database.read() as session:
            head = session.get(AuditHeadRow, chain)
            for row in self._rows(session, chain, 0, _CHUNK):
                if row["number"] != number + 1:
                    raise _broken(
                        chain, number + 1, f"entry {number + 1} is missing, the next one is {row['number']}"
                    )
                if row["hash"] != link(before, row):
                    raise _broken(
                        chain,
                        row["number"],
                        f"entry {row['number']} ({row['action']} by {row['actor']}) was changed",
                    )
                number = row["number"]
                before = row["hash"]
                if row["action"] == SEALED:
                    seals.append(json.loads(row["after"]))
            if (number, before) != ((head.number, head.hash) if head else (0, "")):
                raise _broken(
                    chain,
                    number + 1,
                    f"the chain ends at entry {number}, but {head.number if head else 0} were written",
                )
            return number, self._verify_orders(session, chain, seals)

    def _rows(self, session: Session, chain: str, after: int, chunk: int) -> Iterator[dict[str, Any]]:
        """Read the entries of a chain after a number: those in archives, then those in the table.

        (Any: the values of the columns.)
        """
        for found in archives_of(session, TRAIL.name, chain, after):
            for row in self._archives.read(found, "chain"):
                if row["number"] > after:
                    yield row
        number = max(after, archived_until(session, TRAIL.name, chain))
        query = select(TRAIL).where(TRAIL.c.chain == chain).order_by(TRAIL.c.number).limit(chunk)
        while rows := session.connection().execute(query.where(TRAIL.c.number > number)).all():
            yield from (dict(row._mapping) for row in rows)
            number = rows[-1].number

    def _verify_orders(self, session: Session, world_id: str, seals: list[dict[str, Any]]) -> int:
        """Verify the rows of the order log against the entries that seal them. Returns how many there are."""
        archived = {found.last: found for found in archives_of(session, LOG.name, world_id)}
        after = total = 0
        for seal in seals:
            if seal["last"] in archived:
                rows = self._archives.read(archived[seal["last"]], "world_id")
            else:
                rows = rows_after(session.connection(), world_id, after, seal["last"])
            if segment_hash(rows) != seal["hash"]:
                raise broken_segment(world_id, seal["number"])
            after = seal["last"]
            total += len(rows)
        return total


def _broken(chain: str, number: int, what: str) -> QmtlError:
    return QmtlError(
        "E_AUDIT_BROKEN",
        f"the audit trail of {chain} has been changed: {what}",
        "compare the database with a backup; do not rely on anything after that entry",
        entry=number,
    )


def _entry(row: dict[str, Any]) -> AuditEntry:
    """Convert an entry. (Any: the values of its columns.)"""
    base = {name: row[name] for name in ("number", "actor", "action", "subject", "correlation_id", "hash")}
    return AuditEntry.model_validate(
        {
            **base,
            "at": datetime.fromisoformat(row["at"]),
            "before": json.loads(row["before"]),
            "after": json.loads(row["after"]),
        }
    )
