"""The outbox in the database: what was written with a change and not yet told."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import func, update
from sqlmodel import col, select

from activities.storage.database import Database, utc_now
from activities.storage.tables import OutboxRow


class SqlOutbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, limit: int) -> list[OutboxRow]:
        """What was not told yet, in the order of its numbers. A number may be given before another and become visible after it: nothing is skipped for that."""
        with self._database.read() as session:
            return list(
                session.exec(
                    select(OutboxRow)
                    .where(col(OutboxRow.published_at).is_(None))
                    .order_by(col(OutboxRow.seq))
                    .limit(limit)
                )
            )

    def told(self, seqs: Sequence[int]) -> None:
        with self._database.write("relay", bookkeeping=True) as tx:
            tx.session.connection().execute(
                update(OutboxRow).where(col(OutboxRow.seq).in_(seqs)).values(published_at=utc_now())
            )

    def age_s(self) -> float:
        """How long the oldest row has waited; 0 where none does."""
        with self._database.read() as session:
            oldest = session.exec(
                select(func.min(OutboxRow.at)).where(col(OutboxRow.published_at).is_(None))
            ).one()
        return (
            max(0.0, (datetime.now(UTC) - datetime.fromisoformat(oldest)).total_seconds()) if oldest else 0.0
        )
