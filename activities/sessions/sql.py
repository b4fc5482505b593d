"""Sessions in the database: running strategies, each with a lease on its world."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TypeVar

from sqlmodel import col, func, select
from sqlmodel.sql.expression import SelectOfScalar

from activities.sessions.holder import SessionCaller, hash_secret, new_secret
from activities.sessions.listing import newest_sessions
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import SessionRow
from activities.storage.transactions import (
    LockHeldError,
    RecordedChange,
    Transaction,
    utc_now,
    utc_text,
)
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionInfo, SessionOpen

# Why a session ended whose runner stopped sending heartbeats.
LEASE_ENDED = "its lease ended: no heartbeat arrived in time"

# The last share of a lease, and the longest time at its end, in which a heartbeat comes too late. Orders see
# a lease as it was last committed: while such a heartbeat commits, some would be refused for a lease that has
# ended, and nothing would ever say that it had.
_MARGIN_SHARE = 0.1
_MARGIN_LIMIT = timedelta(seconds=1)

# Sessions that one request lists.
_LISTED = 1000

# Milliseconds that the end of sessions waits for the fence of a world. So it gets its turn among the orders:
# in a busy world, a fence that is only tried is never free.
_FENCE_WAIT_MS = 100

# Seconds that it waits for any other lock, and errors of worlds after which one turn of it ends.
_EXPIRE_WAIT_S = 1.0
_FAILURES = 3


FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class OpenedSession:
    """A new session with its secret, which nothing returns again."""

    info: SessionInfo
    secret: str = field(repr=False)


@dataclass(frozen=True)
class StoredSession:
    """A session with the hash of its secret."""

    info: SessionInfo
    secret_hash: str = field(repr=False)

    def require_holder(self, caller: SessionCaller) -> None:
        """Require the actor who opened the session, with its secret. Raises QmtlError (E_SESSION_HOLDER)."""
        if not caller.holds(self.info.actor, self.secret_hash):
            raise not_the_holder(self.info.session_id)


class SqlSessionStore:
    """Opens, extends and ends sessions. A heartbeat extends a lease by `lease_s` seconds."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self.lease_s = lease_s

    def open(self, request: SessionOpen, name: str, execution_domain: str, actor: str) -> OpenedSession:
        """Open a session with a lease on its world."""
        secret = new_secret()
        with self._database.write(actor) as tx:
            row = SessionRow(
                session_id=uuid.uuid4().hex,
                world_id=request.world_id,
                strategy_id=request.strategy_id,
                name=name,
                actor=actor,
                secret_hash=hash_secret(secret),
                runner=request.runner,
                host=request.host,
                execution_domain=execution_domain,
                opened_at=utc_now(),
                expires_at=self._expires_at(),
            )
            tx.session.add(row)
            after = {
                "strategy_id": row.strategy_id,
                "runner": row.runner,
                "host": row.host,
                "execution_domain": execution_domain,
            }
            data = {
                "world_id": row.world_id,
                "session_id": row.session_id,
                "strategy_id": row.strategy_id,
                "state": "open",
                "reason": "",
            }
            tx.record(RecordedChange("session.opened", row.world_id, row.session_id, after=after, data=data))
            return OpenedSession(_info(row), secret)

    def heartbeat(self, session_id: str, heartbeat: SessionHeartbeat) -> SessionInfo:
        """Extend the lease, and store the report.

        Raises QmtlError: E_SESSION_UNKNOWN, and E_SESSION_LOST where the session or its lease has ended, or
        the lease is in its last tenth, one second at most.
        """
        margin = min(_MARGIN_LIMIT, timedelta(seconds=self.lease_s * _MARGIN_SHARE))
        with self._database.write("session", bookkeeping=True) as tx:
            row = self._row(tx, session_id)
            if row.ended_at is not None or row.expires_at < utc_text(datetime.now(UTC) + margin):
                raise QmtlError(
                    "E_SESSION_LOST",
                    f"the session has ended: {row.end_reason or LEASE_ENDED}",
                    "open another one",
                )
            row.expires_at = self._expires_at()
            row.report = heartbeat.model_dump_json()
            if heartbeat.bar_time and row.execution_domain != Domain.SHADOW.value:
                # Not the largest that it ever reported: one wrong time would hide all that come after it.
                row.newest_bar = utc_text(heartbeat.bar_time)
            tx.session.add(row)
            return _info(row)

    def end(self, session_id: str, reason: str, actor: str) -> SessionInfo:
        """End a session. Idempotent: the first reason stays, and a lease that has ended is the first.

        Raises QmtlError (E_SESSION_UNKNOWN).
        """
        with self._database.write(actor) as tx:
            world_id = tx.session.exec(_world_of(session_id)).first()
            if world_id is None:
                raise _unknown(session_id)
            # Orders of the world wait for the lock, and then see the session ended. It is taken before the
            # row, which a heartbeat needs while another transaction holds the fence.
            tx.lock(f"fence:{world_id}")
            row = self._row(tx, session_id)
            if row.ended_at is None:
                tx.record(self._end(tx, row, LEASE_ENDED if row.expires_at < utc_now() else reason))
            return _info(row)

    def expire(self) -> int:
        """End the sessions whose lease has ended. Returns how many those were.

        Each world has a transaction of its own. A world whose fence is held for a tenth of a second is left
        to the next turn, so no world waits long for another one. An error of one world stops no other; three
        end the turn, and the first is raised.
        """
        now = utc_now()
        with self._database.read() as session:
            worlds = sorted(session.exec(_over(select(SessionRow.world_id), now).distinct()))
        ended, failures = 0, list[Exception]()
        for world_id in worlds:
            try:
                ended += self._expire_in(world_id, now)
            except Exception as error:  # whatever one world's rows hold, the others go on
                failures.append(error)
                if len(failures) == _FAILURES:  # it is the database, which each would wait for
                    break
        if failures:
            raise failures[0]
        return ended

    def next_expiry_s(self) -> float:
        """Return the seconds until the first open session's lease may end; negative where one is overdue.

        At most the length of a lease: a session that opens now ends no sooner.
        """
        query = select(func.min(SessionRow.expires_at)).where(col(SessionRow.ended_at).is_(None))
        with self._database.read() as session:
            earliest = session.exec(query).one()
        if not earliest:
            return self.lease_s
        return min(self.lease_s, (datetime.fromisoformat(earliest) - datetime.now(UTC)).total_seconds())

    def _expire_in(self, world_id: str, now: str) -> int:
        with self._database.write("sessions") as tx:
            try:
                tx.lock(f"fence:{world_id}", _FENCE_WAIT_MS)
            except LockHeldError:
                return 0
            tx.limit_lock_waits(_EXPIRE_WAIT_S)
            over = _over(select(SessionRow), now).where(SessionRow.world_id == world_id)
            rows = tx.session.exec(over.with_for_update(skip_locked=True)).all()
            tx.record_all([self._end(tx, row, LEASE_ENDED) for row in rows])
            return len(rows)

    def find(self, session_id: str) -> StoredSession:
        """Read one session. Raises QmtlError (E_SESSION_UNKNOWN)."""
        with self._database.read() as session:
            row = session.get(SessionRow, session_id)
        if row is None:
            raise _unknown(session_id)
        return StoredSession(_info(row), row.secret_hash)

    def all(self, world_id: str | None, ended: bool = False) -> list[SessionInfo]:
        """List the newest 1,000 sessions, of one world if given, and ended ones only if `ended`."""
        return self._listed((world_id,), ended)

    def of_worlds(self, worlds: Collection[str], ended: bool = False) -> list[SessionInfo]:
        """List the newest 1,000 sessions of these worlds, and ended ones only if `ended`."""
        return self._listed(worlds, ended)

    def _listed(self, worlds: Collection[str | None], ended: bool) -> list[SessionInfo]:
        """Read each world by itself: with IN, a database would sort every session of all of them."""
        with self._database.read() as session:
            found = [row for world in worlds for row in session.exec(newest_sessions(world, ended, _LISTED))]
            found.sort(key=attrgetter("opened_at"), reverse=True)
            return readable(found[:_LISTED], _info)

    @staticmethod
    def _end(tx: Transaction, row: SessionRow, reason: str) -> RecordedChange:
        """End an open session. The caller records the change."""
        row.ended_at = utc_now()
        row.end_reason = reason[:MAX_REASON]
        tx.session.add(row)
        data = {
            "world_id": row.world_id,
            "session_id": row.session_id,
            "strategy_id": row.strategy_id,
            "state": "ended",
            "reason": row.end_reason,
        }
        return RecordedChange(
            "session.ended", row.world_id, row.session_id, after={"reason": row.end_reason}, data=data
        )

    @staticmethod
    def _row(tx: Transaction, session_id: str) -> SessionRow:
        row = tx.session.get(SessionRow, session_id, with_for_update=True)
        if row is None:
            raise _unknown(session_id)
        return row

    def _expires_at(self) -> str:
        return utc_text(datetime.now(UTC) + timedelta(seconds=self.lease_s))


def _world_of(session_id: str) -> SelectOfScalar[str]:
    return select(SessionRow.world_id).where(SessionRow.session_id == session_id)


def _over(query: SelectOfScalar[FoundT], now: str) -> SelectOfScalar[FoundT]:
    """Restrict a query to the sessions that are open though their lease has ended."""
    return query.where(col(SessionRow.ended_at).is_(None), SessionRow.expires_at < now)


def not_the_holder(session_id: str) -> QmtlError:
    """Return the error for a caller who did not open the session, or does not know its secret."""
    return QmtlError(
        "E_SESSION_HOLDER",
        f"only who opened session {session_id[:8]} may act in it, with the secret that its grant returned",
        "open a session of your own; an operator may end any session",
    )


def _unknown(session_id: str) -> QmtlError:
    return QmtlError(
        "E_SESSION_UNKNOWN", f"there is no session {session_id[:64]!r}", "qmtl world sessions lists them"
    )


def _info(row: SessionRow) -> SessionInfo:
    return SessionInfo(
        session_id=row.session_id,
        world_id=row.world_id,
        strategy_id=row.strategy_id,
        name=row.name,
        actor=row.actor,
        runner=row.runner,
        host=row.host,
        execution_domain=row.execution_domain,
        opened_at=datetime.fromisoformat(row.opened_at),
        expires_at=datetime.fromisoformat(row.expires_at),
        ended_at=datetime.fromisoformat(row.ended_at) if row.ended_at else None,
        end_reason=row.end_reason,
        report=SessionHeartbeat.model_validate_json(row.report or "{}"),
    )
