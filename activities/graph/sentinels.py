"""What a metric says of version sentinels."""

from sqlalchemy import exists
from sqlmodel import col, func, select

from activities.storage.database import Database
from activities.storage.tables import BindingRow, SentinelRow

# Strategies that a metric looks at, each time that it is read.
_NEWEST = 500


def sentinel_gaps(database: Database) -> int:
    """Count the strategies without a version sentinel in front, among the newest in any world."""
    with database.read() as session:
        last = session.exec(select(func.max(BindingRow.seq))).one() or 0
        newest = (
            select(BindingRow.world_id, BindingRow.strategy_id)
            .where(col(BindingRow.seq) > last - _NEWEST)
            .subquery()
        )
        same = (
            col(SentinelRow.world_id) == newest.c.world_id,
            col(SentinelRow.strategy_id) == newest.c.strategy_id,
        )
        return session.exec(select(func.count()).select_from(newest).where(~exists().where(*same))).one()
