"""Schedules of rebalancings in the database: set, list, find and remove them.

The row is the truth. Temporal follows it: `unsettled` names the schedules that it does not have yet as they
are, and those that it has not forgotten yet.
"""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlmodel import Session, col, select

from activities.applies.own_requests import issuers_of
from activities.order_settings import DEFAULT_ACCOUNTS, Accounts
from activities.rebalancing.rows import REBALANCING
from activities.rebalancing.workable import require_workable
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import RebalancingScheduleRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now, utc_text
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.access import EVERY_WORLD, Caller, Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_schedules import (
    MAX_SCHEDULES,
    MAX_WORLD_SCHEDULES,
    Firing,
    RebalanceSchedule,
    RebalanceScheduleBody,
)

WANTED: Final = "wanted"
SET: Final = "set"
REMOVED: Final = "removed"


class SqlRebalanceSchedules:
    """Stores schedules of rebalancings."""

    def __init__(self, database: Database, accounts: Accounts = DEFAULT_ACCOUNTS) -> None:
        self._database = database
        self._accounts = accounts

    def set(
        self, name: str, body: RebalanceScheduleBody, caller: Caller, live: bool = False
    ) -> RebalanceSchedule:
        """Store a schedule in the caller's name, or replace it. `live`: they confirmed live trading.

        Raises QmtlError: E_WORLD_FORBIDDEN, E_ROLE where they are no operator of a world of it, or of what
        it replaces; E_WORLD_UNKNOWN, E_WORLD_ARCHIVED, E_SCHEDULES_MANY; for one that is not paused also
        E_ALLOCATION_MISSING, E_WEIGHT, E_BODY_INVALID, as `require_workable`.
        """
        with self._database.write(caller.subject) as tx:
            tx.lock("allocation")
            for world_id in body.world_ids:
                caller.require_role(world_id, Role.OPERATOR)
                world_of(world_row(tx.session, world_id)).require_active()
            row = tx.session.get(RebalancingScheduleRow, name, populate_existing=True)
            before = row if row is not None and row.state != REMOVED else None
            old = _changeable(before, caller) if before else None
            _require_room(tx.session, name, body)
            if not body.paused:
                require_workable(tx.session, body, self._accounts)
            new = RebalancingScheduleRow(
                name=name,
                body=body.model_dump_json(),
                set_by=caller.subject,
                token_id=caller.token_id,
                issuers=json.dumps(issuers_of(tx.session, caller.token_id)),
                live=live,
                set_at=utc_now(),
                state=WANTED,
                fired_at=before.fired_at if before and old else "",
                firing=before.firing if before and old else "",
            )
            tx.upsert(new)
            _record(tx, "rebalancing.schedule_set", name, old, body)
            return _schedule(new)

    def find(self, name: str) -> RebalanceSchedule:
        """Read a schedule. Raises QmtlError (E_SCHEDULE_UNKNOWN)."""
        with self._database.read() as session:
            return _schedule(schedule_row(session, name))

    def all(self) -> list[RebalanceSchedule]:
        """List all schedules by name."""
        query = select(RebalancingScheduleRow).where(RebalancingScheduleRow.state != REMOVED)
        with self._database.read() as session:
            rows = session.exec(query.order_by(col(RebalancingScheduleRow.name))).all()
            return readable(rows, _schedule)

    def remove(self, name: str, caller: Caller) -> None:
        """Remove a schedule: it fires no more. What it has requested stays.

        Raises QmtlError: E_SCHEDULE_UNKNOWN; E_WORLD_FORBIDDEN, E_ROLE for who is no operator of its worlds.
        """
        with self._database.write(caller.subject) as tx:
            tx.lock("allocation")
            row = schedule_row(tx.session, name)
            body = _changeable(row, caller)
            row.state, row.set_at = REMOVED, utc_now()
            tx.session.add(row)
            _record(tx, "rebalancing.schedule_removed", name, body, None)

    def names(self) -> list[str]:
        """List the names of all schedules, also of those that Temporal has to forget."""
        with self._database.read() as session:
            return list(
                session.exec(select(RebalancingScheduleRow.name).order_by(RebalancingScheduleRow.name))
            )

    def unsettled(self) -> list[str]:
        """List the schedules that Temporal has not got as they are."""
        query = select(RebalancingScheduleRow.name).where(RebalancingScheduleRow.state != SET)
        with self._database.read() as session:
            return list(session.exec(query.order_by(RebalancingScheduleRow.name)))

    def wanted(self, name: str) -> tuple[str, RebalanceScheduleBody | None]:
        """Return when a schedule was last changed, and how it should be; None: it should not be at all."""
        with self._database.read() as session:
            row = session.get(RebalancingScheduleRow, name)
            if row is None or row.state == REMOVED:
                return row.set_at if row else "", None
            return row.set_at, RebalanceScheduleBody.model_validate_json(row.body)

    def settle(self, name: str, set_at: str) -> bool:
        """Note that Temporal has what was wanted at a time. If something else is now, it is done again.

        Returns False where it is to be done at once: another process has removed the row meanwhile, so that
        nothing else would ever ask for it.
        """
        with self._database.write(REBALANCING, bookkeeping=True) as tx:
            tx.lock("allocation")
            row = tx.session.get(RebalancingScheduleRow, name, populate_existing=True)
            if row is None:
                return not set_at
            if row.set_at == set_at and row.state == REMOVED:
                tx.session.delete(row)
            elif row.state != REMOVED:
                row.state = SET if row.set_at == set_at else WANTED
                tx.session.add(row)
            return True

    def record_firing(self, name: str, firing: Firing) -> None:
        """Store what a firing decided, unless a later one has been stored.

        An attempt that was given up may still request the run: then the firing has requested it after all.
        A schedule that only Temporal has, since a process died between the two, is one that it has to forget.
        """
        with self._database.write(REBALANCING, bookkeeping=True) as tx:
            tx.lock("allocation")
            row = tx.session.get(RebalancingScheduleRow, name, populate_existing=True)
            at = utc_text(firing.at)
            if row is None:
                tx.session.add(_forgotten(name))
            elif row.state != REMOVED and (row.fired_at < at or (row.fired_at == at and firing.run_id)):
                row.fired_at, row.firing = at, firing.model_dump_json()
                tx.session.add(row)


def schedule_row(session: Session, name: str) -> RebalancingScheduleRow:
    """Read the row of a schedule that was not removed. Raises QmtlError (E_SCHEDULE_UNKNOWN)."""
    row = session.get(RebalancingScheduleRow, name, populate_existing=True)
    if row is None or row.state == REMOVED:
        raise QmtlError(
            "E_SCHEDULE_UNKNOWN",
            f"there is no schedule {name[:64]!r}",
            "qmtl world rebalance-schedule list shows them",
        )
    return row


def firing_of(row: RebalancingScheduleRow) -> Firing | None:
    """Return what the newest firing of a schedule decided."""
    return Firing.model_validate_json(row.firing) if row.firing else None


def _changeable(row: RebalancingScheduleRow, caller: Caller) -> RebalanceScheduleBody | None:
    """Read what a schedule is, for a caller who changes it; None where nobody can read it any more.

    Under the lock: whoever read it before may have read another. Whose worlds a row has that cannot be read
    is unknown, so that it needs an operator of all. Raises QmtlError: E_WORLD_FORBIDDEN, E_ROLE.
    """
    found = readable([row], _schedule)
    for world_id in found[0].body.world_ids if found else (EVERY_WORLD,):
        caller.require_role(world_id, Role.OPERATOR)
    return found[0].body if found else None


def _require_room(session: Session, name: str, body: RebalanceScheduleBody) -> None:
    """Raise QmtlError (E_SCHEDULES_MANY) where there are as many others as may be, of all or of a world.

    The limit for a world keeps its operator from taking the places of all worlds.
    """
    query = select(RebalancingScheduleRow).where(RebalancingScheduleRow.state != REMOVED)
    rows = session.exec(query.order_by(col(RebalancingScheduleRow.name))).all()
    others = [row for row in rows if row.name != name]
    if len(others) >= MAX_SCHEDULES:
        raise _too_many(f"there are {MAX_SCHEDULES} schedules of rebalancings already")
    named = Counter(world for item in readable(others, _schedule) for world in item.body.world_ids)
    for world_id in body.world_ids:
        if named[world_id] >= MAX_WORLD_SCHEDULES:
            raise _too_many(f"{world_id} is in {MAX_WORLD_SCHEDULES} schedules of rebalancings already")


def _too_many(why: str) -> QmtlError:
    return QmtlError("E_SCHEDULES_MANY", why, "remove one: qmtl world rebalance-schedule remove NAME")


def _forgotten(name: str) -> RebalancingScheduleRow:
    return RebalancingScheduleRow(
        name=name, body="", set_by="", token_id="", issuers="[]", live=False, set_at=utc_now(), state=REMOVED
    )


def _schedule(row: RebalancingScheduleRow) -> RebalanceSchedule:
    return RebalanceSchedule(
        name=row.name,
        body=RebalanceScheduleBody.model_validate_json(row.body),
        set_by=row.set_by,
        set_at=datetime.fromisoformat(row.set_at),
        is_running=row.state == SET,
        newest=firing_of(row),
    )


def _record(
    tx: Transaction,
    action: str,
    name: str,
    before: RebalanceScheduleBody | None,
    after: RebalanceScheduleBody | None,
) -> None:
    """Audit and publish a change of a schedule, in each of its worlds; in none where these are unknown."""
    worlds: Sequence[str] = sorted(
        {*(before.world_ids if before else ()), *(after.world_ids if after else ())}
    ) or [""]
    tx.record_all(
        RecordedChange(
            action, world_id, name, before=before and before.json_dict(), after=after and after.json_dict()
        )
        for world_id in worlds
    )
