"""Which sessions there are: the newest of a world, and those that are open since a moment."""

from datetime import UTC, datetime

from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities.storage.tables import SessionRow
from activities.storage.transactions import utc_now


def newest_sessions(world_id: str | None, ended: bool, limit: int) -> SelectOfScalar[SessionRow]:
    """Select the newest sessions, of one world if given, and ended ones only if `ended`."""
    query = select(SessionRow).order_by(col(SessionRow.opened_at).desc()).limit(limit)
    if world_id is not None:
        query = query.where(SessionRow.world_id == world_id)
    return query if ended else query.where(col(SessionRow.ended_at).is_(None))


def sessions_since(session: Session, world_id: str, moment: datetime) -> list[str]:
    """List the ids of a world's sessions that were open at `moment` and still are."""
    at = moment.astimezone(UTC).isoformat(timespec="microseconds")
    query = select(SessionRow.session_id).where(
        SessionRow.world_id == world_id,
        col(SessionRow.ended_at).is_(None),
        SessionRow.opened_at <= at,
        SessionRow.expires_at >= utc_now(),
    )
    return list(session.exec(query))
