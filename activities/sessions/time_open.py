"""For how long sessions of a strategy were open: the time in which it really ran."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from sqlmodel import Session, col, select

from activities.storage.tables import SessionRow
from activities.storage.transactions import utc_text


@dataclass(frozen=True)
class TimeOpen:
    """For how many seconds at least one session was open, and whether one is now."""

    seconds: float = 0.0
    now: bool = False


def time_open(
    session: Session, world_id: str, execution_domain: str, since: Mapping[str, datetime], now: datetime
) -> dict[str, TimeOpen]:
    """Return for how long sessions of strategies were open, each from its time in `since` to `now` (UTC).

    A session whose runner died was open until its lease ended. All are read at once: it is also asked while
    the fence of the world is held.
    """
    these = select(
        SessionRow.strategy_id, SessionRow.opened_at, SessionRow.ended_at, SessionRow.expires_at
    ).where(
        col(SessionRow.strategy_id).in_(list(since)),
        SessionRow.world_id == world_id,
        SessionRow.execution_domain == execution_domain,
    )
    # Two look-ups, each in its index: with OR, SQLite would read every session that there ever was.
    open_now = session.exec(these.where(col(SessionRow.ended_at).is_(None))).all()
    ended = session.exec(these.where(col(SessionRow.ended_at) > utc_text(min(since.values())))).all()
    reached, total = dict(since), dict.fromkeys(since, 0.0)
    for strategy_id, opened_at, ended_at, expires_at in sorted([*open_now, *ended], key=itemgetter(1)):
        begin = max(reached[strategy_id], datetime.fromisoformat(opened_at))
        # A lease that ended while nothing ran was noticed later.
        end = min(now, datetime.fromisoformat(min(ended_at or expires_at, expires_at)))
        if end > begin:
            total[strategy_id] += (end - begin).total_seconds()
            reached[strategy_id] = end
    return {name: TimeOpen(total[name], reached[name] == now) for name in since}
