"""Archives: rows of a table as an artifact, and the row that says which they are.

Nothing is removed before its archive has been read back and compared with the table. The database itself
refuses to remove a row of the audit trail or of the order log that no archive names.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Table, select
from sqlmodel import Session, col
from sqlmodel import select as select_rows

from activities.artifacts.store import ArtifactStore
from activities.retention.parquet import Row, decode, encode
from activities.storage.tables import ArchiveRow
from activities.storage.transactions import RecordedChange, Transaction, table_of, utc_now
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError

LOCK = "archive"
"""The lock of whoever removes archived rows."""

RETENTION = "retention"
"""The subject under whose chain of the audit trail every archive is recorded."""

_archive = table_of(ArchiveRow)


class Archives:
    """Writes rows as artifacts, and reads them again."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def write(self, table: Table, rows: Sequence[Row]) -> str:
        """Store rows as Parquet, read them back and compare. Returns the artifact's content hash.

        Raises QmtlError: E_ARCHIVE where it can't be written, or what was read back differs.
        """
        try:
            data = encode(table, rows)
            artifact = content_hash(data)
            self._artifacts.put(artifact, data)
        except (QmtlError, ValueError, OSError) as error:
            raise _refused(table.name, f"their archive can't be written: {error}") from error
        try:
            stored = decode(self._artifacts.get(artifact))
        except (QmtlError, ValueError) as error:
            raise _refused(table.name, f"their archive {artifact} can't be read back") from error
        if stored != [dict(row) for row in rows]:
            raise _refused(table.name, f"their archive {artifact} holds other rows")
        return artifact

    def read(self, found: ArchiveRow, scope_column: str) -> list[dict[str, Any]]:
        """Read the rows of an archive that belong to its scope. (Any: the values of whatever table.)

        Raises QmtlError: E_ARCHIVE where it is missing or damaged, E_UNAVAILABLE where none can be read.
        """
        try:
            return decode(self._artifacts.get(found.artifact), **{scope_column: found.scope})
        except (QmtlError, ValueError) as error:
            if isinstance(error, QmtlError) and error.code == "E_UNAVAILABLE":
                raise
            raise QmtlError(
                "E_ARCHIVE",
                f"the archive {found.artifact} of {found.source} can't be read",
                "restore it from a backup of the artifacts",
            ) from error


def archive_until(deadline: float, archive_next: Callable[[], int]) -> tuple[int, bool]:
    """Repeat `archive_next`, which returns how many rows it archived, until there are none or the deadline.

    The deadline is on the monotonic clock. Returns how many rows there were, and whether some may be left.
    """
    rows = 0
    while archived := archive_next():
        rows += archived
        if time.monotonic() > deadline:
            return rows, True
    return rows, False


def archives_of(
    session: Session, source: str, scope: str, after: int = 0, limit: int | None = None
) -> Iterator[ArchiveRow]:
    """Read the archives of a world or chain that reach beyond a number, oldest first."""
    query = select_rows(ArchiveRow).where(
        ArchiveRow.source == source, ArchiveRow.scope == scope, ArchiveRow.last > after
    )
    return iter(session.exec(query.order_by(col(ArchiveRow.last)).limit(limit)).all())


def archived_until(session: Session, source: str, scope: str) -> int:
    """Return the last number of a world or chain that is archived; 0 for none."""
    query = select(_archive.c.last).where(_archive.c.source == source, _archive.c.scope == scope)
    newest = session.connection().execute(query.order_by(_archive.c.last.desc()).limit(1)).scalar()
    return newest or 0


def record_archives(tx: Transaction, archives: Sequence[ArchiveRow]) -> None:
    """Store what was archived, and record it."""
    for found in archives:
        tx.session.add(found)
    tx.session.flush()
    for artifact in dict.fromkeys(found.artifact for found in archives):
        mine = [found for found in archives if found.artifact == artifact]
        after = {
            "source": mine[0].source,
            "rows": sum(found.rows for found in mine),
            "artifact": artifact,
            "scopes": [[found.scope, found.first, found.last] for found in mine[:20]],
        }
        tx.record(RecordedChange("rows.archived", "", RETENTION, after=after))


def archive_row(source: str, scope: str, first: int, last: int, rows: int, artifact: str) -> ArchiveRow:
    """Build the row of an archive."""
    return ArchiveRow(
        source=str(source), scope=scope, first=first, last=last, rows=rows, artifact=artifact, at=utc_now()
    )


def require_all_removed(source: str, removed: int, expected: int) -> None:
    """Check that exactly the archived rows were removed. Raises QmtlError (E_ARCHIVE)."""
    if removed != expected:
        raise _refused(source, f"{expected} rows were archived, and {removed} are still there")


def _refused(source: str, why: str) -> QmtlError:
    return QmtlError(
        "E_ARCHIVE",
        f"rows of {source} were not removed: {why}",
        "the next run of the upkeep tries again; if it fails again, check the folder of artifacts",
    )
