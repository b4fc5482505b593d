"""The outbox in the database: events that were written with a change and are not published yet."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import bindparam, update
from sqlmodel import col, select

from activities.storage.database import Database
from activities.storage.tables import DeadLetterRow, OutboxRow
from activities.storage.transactions import utc_now

# Made once: the relay reads it after every commit, and mostly finds nothing.
_WAITING = (
    select(OutboxRow)
    .where(col(OutboxRow.published_at).is_(None))
    .order_by(col(OutboxRow.seq))
    .limit(bindparam("limit"))
)
_OLDEST = (
    select(OutboxRow.at).where(col(OutboxRow.published_at).is_(None)).order_by(col(OutboxRow.seq)).limit(1)
)


class SqlOutbox:
    """Rows that the relay publishes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, limit: int) -> list[OutboxRow]:
        """List unpublished rows by number. A row that commits late is found later, not skipped."""
        with self._database.read() as session:
            return list(session.exec(_WAITING, params={"limit": limit}))

    def mark_published(self, seqs: Sequence[int], unpublishable: Mapping[int, str] | None = None) -> None:
        """Mark these rows as published.

        `unpublishable`: those of them that become dead letters instead, each with the reason.
        """
        now = utc_now()
        with self._database.write("relay", bookkeeping=True) as tx:
            tx.session.connection().execute(
                update(OutboxRow).where(col(OutboxRow.seq).in_(seqs)).values(published_at=now)
            )
            tx.insert_new(
                [
                    DeadLetterRow(seq=seq, reason=reason, at=now)
                    for seq, reason in (unpublishable or {}).items()
                ]
            )

    def age_s(self) -> float:
        """Return how long the oldest row has waited, in seconds; 0 where none does."""
        with self._database.read() as session:
            oldest = session.exec(_OLDEST).first()
        return (
            max(0.0, (datetime.now(UTC) - datetime.fromisoformat(oldest)).total_seconds()) if oldest else 0.0
        )
