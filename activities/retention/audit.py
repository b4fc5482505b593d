"""Read the audit trail, in the table and in archives."""

import json
from datetime import datetime
from itertools import islice
from typing import Any

from activities.retention.archives import Archives
from activities.retention.verification import CHUNK, Verification, Verified
from activities.storage.database import Database
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime


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
    """Entries of a chain, and where it was requested, what was verified; otherwise None.

    `verified`: the number of entries, and `orders_verified`: that of the rows of the order log which they
    seal. `orders_unsealed`: rows that are not sealed yet, and the time of the oldest (ISO 8601, UTC). `head`:
    the hash of the newest verified entry.
    """

    entries: tuple[AuditEntry, ...]
    verified: int | None = None
    orders_verified: int | None = None
    orders_unsealed: int | None = None
    orders_unsealed_since: str | None = None
    head: str | None = None


class SqlAudit:
    """Reads the chain of a world, or of what belongs to none. Archived entries are read as well."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._verification = Verification(database, archives)

    def page(self, chain: str, after: int, limit: int, verify: bool = False) -> AuditPage:
        """Read `limit` entries after number `after`.

        Raises QmtlError: E_AUDIT_BROKEN if `verify` finds a defect, E_ARCHIVE where an archive can't be read.
        """
        verified = self.verify(chain) if verify else None
        rows = islice(self._verification.entries(chain, after, min(limit, CHUNK)), limit)
        page = AuditPage(entries=tuple(map(_entry, rows)))
        if verified is None:
            return page
        return page.model_copy(
            update={
                "verified": verified.entries,
                "orders_verified": verified.orders,
                "orders_unsealed": verified.unsealed,
                "orders_unsealed_since": verified.unsealed_since or None,
                "head": verified.head,
            }
        )

    def verify(self, chain: str) -> Verified:
        """Verify a chain, and the order log that it seals. Raises QmtlError (E_AUDIT_BROKEN, E_ARCHIVE)."""
        return self._verification.verify(chain)


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
