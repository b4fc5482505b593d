"""Read the audit trail, and verify its hash chain."""

import json
from datetime import datetime
from typing import Any

from sqlmodel import col, select

from activities.storage.chain import link
from activities.storage.database import Database
from activities.storage.tables import AuditHeadRow, AuditRow
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
    """Entries of a chain. `verified`: the number of verified entries; None where that was not requested."""

    entries: tuple[AuditEntry, ...]
    verified: int | None = None


class SqlAudit:
    """Reads chains: a world's, or a subject's where there is no world."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, chain: str, after: int, limit: int, verify: bool = False) -> AuditPage:
        """Read `limit` entries after number `after`.

        Raises QmtlError: E_AUDIT_BROKEN if `verify` finds a defect.
        """
        verified = self.verify(chain) if verify else None
        with self._database.read() as session:
            rows = session.exec(
                select(AuditRow)
                .where(AuditRow.chain == chain, AuditRow.number > after)
                .order_by(col(AuditRow.number))
                .limit(limit)
            ).all()
        return AuditPage(entries=tuple(_entry(row) for row in rows), verified=verified)

    def verify(self, chain: str) -> int:
        """Verify the hashes and numbers of all entries. Returns how many there are.

        Raises QmtlError: E_AUDIT_BROKEN with the number of the first entry that is wrong or missing.
        """
        number = 0
        before = ""
        with self._database.read() as session:
            head = session.get(AuditHeadRow, chain)
            while True:
                rows = session.exec(
                    select(AuditRow)
                    .where(AuditRow.chain == chain, AuditRow.number > number)
                    .order_by(col(AuditRow.number))
                    .limit(_CHUNK)
                ).all()
                for row in rows:
                    if row.number != number + 1:
                        raise _broken(
                            chain, number + 1, f"entry {number + 1} is missing, the next one is {row.number}"
                        )
                    if row.hash != link(before, row.model_dump()):
                        raise _broken(
                            chain,
                            row.number,
                            f"entry {row.number} ({row.action} by {row.actor}) was changed",
                        )
                    number = row.number
                    before = row.hash
                session.expunge_all()
                if len(rows) < _CHUNK:
                    break
        if (number, before) != ((head.number, head.hash) if head else (0, "")):
            raise _broken(
                chain,
                number + 1,
                f"the chain ends at entry {number}, but {head.number if head else 0} were written",
            )
        return number


def _broken(chain: str, number: int, what: str) -> QmtlError:
    return QmtlError(
        "E_AUDIT_BROKEN",
        f"the audit trail of {chain} has been changed: {what}",
        "compare the database with a backup; do not rely on anything after that entry",
        entry=number,
    )


def _entry(row: AuditRow) -> AuditEntry:
    base = {
        name: getattr(row, name)
        for name in ("number", "actor", "action", "subject", "correlation_id", "hash")
    }
    return AuditEntry.model_validate(
        {
            **base,
            "at": datetime.fromisoformat(row.at),
            "before": json.loads(row.before),
            "after": json.loads(row.after),
        }
    )
