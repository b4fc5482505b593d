"""For how long sessions of a strategy were open: the time in which it really ran."""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, or_, select

from activities.storage.tables import SessionRow
from activities.storage.transactions import utc_text


@dataclass(frozen=True)
class TimeOpen:
    """For how many seconds at least one session was open, and whether one is now."""

    seconds: float = 0.0
    now: bool = False


def time_open(
    session: Session, world_id: str, strategy_id: str, execution_domain: str, since: datetime, now: datetime
) -> TimeOpen:
    """Return for how long sessions of the strategy were open from `since` to `now` (UTC).

    A session whose runner died was open until its lease ended.
    """
    query = (
        select(SessionRow.opened_at, SessionRow.ended_at, SessionRow.expires_at)
        .where(
            SessionRow.strategy_id == strategy_id,
            SessionRow.world_id == world_id,
            SessionRow.execution_domain == execution_domain,
            or_(col(SessionRow.ended_at).is_(None), col(SessionRow.ended_at) > utc_text(since)),
        )
        .order_by(col(SessionRow.opened_at))
    )
    total, reached = 0.0, since
    for opened_at, ended_at, expires_at in session.exec(query):
        begin = max(reached, datetime.fromisoformat(opened_at))
        # A lease that ended while nothing ran was noticed later.
        end = min(now, datetime.fromisoformat(min(ended_at or expires_at, expires_at)))
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return TimeOpen(total, reached == now)
