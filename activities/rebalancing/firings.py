"""What a firing of a schedule decides, once for each time at which it fires.

1. What was decided at that time already is the answer. A run that it requested is found by its id, which
   follows from the schedule's name and the time.
2. It is skipped while the schedule is paused, or one of its worlds is archived, halted, locked, has no share
   or no capital, or is part of an apply or rebalancing that has not ended.
3. It is refused where whoever set it is no operator of its worlds any more, the token that they used was
   revoked (it may have ended), or a world allows live now and they have not confirmed that.
4. It is refused where results on paper would move shares of worlds that trade live (`workable.py`).
5. Shares are proposed (`proposals.py`). Where one differs by more than the tolerance, a run is requested in
   the name of that person, with all shares that differ. It waits for approvals like any other.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from sqlmodel import Session, col, select

from activities.access.present_roles import lacks_role
from activities.allocation.store import allocations_of
from activities.fence.rules import OPEN
from activities.fence.scales import WorldScales, scaled
from activities.ledger.exposures import world_profits
from activities.ledger.sql import held_list
from activities.order_settings import DEFAULT_ACCOUNTS, Accounts
from activities.rebalancing.proposals import PresentShare, exceeds_tolerance, proposal
from activities.rebalancing.requests import SqlRebalancings
from activities.rebalancing.returns import counted_domain, daily_returns
from activities.rebalancing.schedules import REMOVED, SqlRebalanceSchedules, firing_of
from activities.rebalancing.workable import lack_of, require_one_domain
from activities.storage.database import Database
from activities.storage.tables import (
    AllocationRow,
    ApplyRow,
    FenceRow,
    RebalancingRow,
    RebalancingScheduleRow,
    TokenRow,
    WorldRow,
)
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.allocations import WorldAllocation
from qmtl_sdk.contracts.amounts import EXACT, ZERO
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.rebalance_runs import RebalanceApply
from qmtl_sdk.contracts.rebalance_schedules import Firing, ProposedShare, RebalanceScheduleBody
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.contracts.share_changes import changed_request, common_rules, update_of

# Times that a request is built anew where shares or positions have changed while it was built.
_TRIES = 3

# Errors below this HTTP status are refusals: trying the firing again would not help.
_LEAST_FAILURE = 500


def scheduled_run_id(name: str, at: datetime) -> str:
    """Return the id of the run that a schedule requests where it fires at a time."""
    return f"scheduled-{name}-{at.astimezone(UTC):%Y%m%d-%H%M%S-%f}"


def is_run_of(name: str, run_id: str) -> bool:
    """Whether a run is one that a schedule requested, not one whose name begins with the same."""
    return re.fullmatch(rf"scheduled-{re.escape(name)}-[0-9]{{8}}-[0-9]{{6}}-[0-9]{{6}}", run_id) is not None


class SqlFirings:
    """Decides firings of schedules."""

    def __init__(
        self,
        database: Database,
        schedules: SqlRebalanceSchedules,
        requests: SqlRebalancings,
        accounts: Accounts = DEFAULT_ACCOUNTS,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._schedules = schedules
        self._requests = requests

    def fire(self, name: str, at: datetime) -> Firing:
        """Decide what a schedule does that fires at a time. Returns the same for the same time."""
        with self._database.read() as session:
            row = session.get(RebalancingScheduleRow, name)
            known = firing_of(row) if row else None
        if known is not None and known.at == at:
            return known if known.run_id else self._requested(name, at) or known
        try:
            firing = self._requested(name, at) or self._decide(name, at)
        except QmtlError as error:
            if error.status >= _LEAST_FAILURE:
                raise
            refused = Firing(at=at, outcome="refused", reason=str(error))
            # Another attempt at this firing may have requested the run meanwhile.
            firing = self._requested(name, at) or refused
        self._schedules.record_firing(name, firing)
        return firing

    def fail(self, name: str, at: datetime, reason: str) -> Firing:
        """Store that a firing could not decide. A run that it has requested all the same counts."""
        line = " ".join(reason.split())[:MAX_REASON]
        firing = self._requested(name, at) or Firing(at=at, outcome="failed", reason=line)
        self._schedules.record_firing(name, firing)
        return firing

    def _requested(self, name: str, at: datetime) -> Firing | None:
        """Return the firing from the run that it has requested; None where there is none."""
        run_id = scheduled_run_id(name, at)
        columns = (RebalancingRow.requested_by, RebalancingRow.title)
        with self._database.read() as session:
            row = session.get(RebalancingScheduleRow, name)
            run = session.exec(select(*columns).where(RebalancingRow.run_id == run_id)).first()
        if run is None or row is None or run[0] != row.set_by:
            return None
        return Firing(at=at, outcome="requested", reason=run[1], run_id=run_id)

    def _decide(self, name: str, at: datetime) -> Firing:
        for _ in range(_TRIES - 1):
            try:
                return self._propose(name, at)
            except QmtlError as error:
                if error.code != "E_ETAG":
                    raise
        return self._propose(name, at)

    def _propose(self, name: str, at: datetime) -> Firing:
        with self._database.read() as session:
            row = session.get(RebalancingScheduleRow, name)
            schedule = RebalanceScheduleBody.model_validate_json(row.body) if row else None
            if row is None or schedule is None or row.state == REMOVED:
                return Firing(at=at, outcome="skipped", reason=f"{name} was removed")
            if why := _obstacle(session, name, schedule):
                return Firing(at=at, outcome="skipped", reason=why)
            if why := _lacks_right(session, row, schedule, at):
                return Firing(at=at, outcome="refused", reason=why)
            require_one_domain(session, schedule, self._accounts)
            shares = _ShareReader(session, schedule, self._accounts).shares(at)
            if not exceeds_tolerance(shares, schedule.tolerance):
                why = f"no share differs by more than {schedule.tolerance:f}"
                return Firing(at=at, outcome="unchanged", reason=why, shares=shares)
            request = _request(session, shares)
        run_id = scheduled_run_id(name, at)
        wanted = RebalanceApply(
            request=request.model_copy(update={"run_id": run_id}), reason=_reason(name, schedule, shares)
        )
        found = self._requests.request(wanted, row.set_by, row.token_id, json.loads(row.issuers))
        return Firing(at=at, outcome="requested", reason=found.title, shares=shares, run_id=run_id)


def _lacks_right(
    session: Session, row: RebalancingScheduleRow, schedule: RebalanceScheduleBody, at: datetime
) -> str:
    """Say why the person who set a schedule may not request its run now; empty where they may."""
    again = "an operator sets it again (docs/capital.md)"
    if why := lacks_role(session, row.set_by, Role.OPERATOR, schedule.world_ids, at):
        return f"{why}; {again}"
    token = session.get(TokenRow, row.token_id)
    if token is not None and token.revoked_at is not None:
        return f"the token with which {row.set_by} set it was revoked; {again}"
    for world_id in schedule.world_ids:
        if not row.live and world_of(world_row(session, world_id)).spec.allow_live:
            return f"{world_id} allows live now, which {row.set_by} has not confirmed; {again}, with --live"
    return ""


def _obstacle(session: Session, name: str, schedule: RebalanceScheduleBody) -> str:
    """Say why no run can be requested now; empty where one can."""
    if schedule.paused:
        return "it is paused"
    shares = {item.world_id: item.weight for item in allocations_of(session).allocations}
    for world_id in schedule.world_ids:
        world = session.get(WorldRow, world_id)
        fence = session.get(FenceRow, world_id)
        if world is None or fence is None:
            return f"there is no world {world_id}"
        found = world_of(world)
        if found.state == "archived":
            return f"{world_id} is archived"
        if lack := lack_of(found, shares.get(world_id), schedule):
            return f"{lack.message}; {lack.remedy}"
        if fence.rebalancing:
            return f"{world_id} is being rebalanced by {fence.rebalancing}"
        if fence.state != OPEN:
            return f"{world_id} is {fence.state} by {fence.holder}"
        if fence.halted:
            return f"{world_id} is halted ({fence.halted})"
    return _under_way(session, name, schedule.world_ids)


def _under_way(session: Session, name: str, worlds: Sequence[str]) -> str:
    """Say which apply or rebalancing of these worlds has not ended."""
    apply = session.exec(
        select(ApplyRow).where(col(ApplyRow.world_id).in_(worlds), col(ApplyRow.ended_at).is_(None))
    ).first()
    if apply is not None:
        return f"the apply {apply.run_id} of {apply.world_id} has not ended"
    runs = select(RebalancingRow.run_id, RebalancingRow.worlds).where(col(RebalancingRow.ended_at).is_(None))
    for run_id, theirs in session.exec(runs.order_by(RebalancingRow.requested_at)):
        if shared := sorted(set(worlds) & set(json.loads(theirs))):
            own = "its run" if is_run_of(name, run_id) else "the rebalancing"
            return f"{own} {run_id}, of {shared[0]}, has not ended"
    return ""


class _ShareReader:
    """Reads what a proposal rests on, and proposes shares."""

    def __init__(self, session: Session, schedule: RebalanceScheduleBody, accounts: Accounts) -> None:
        self._session = session
        self._schedule = schedule
        self._accounts = accounts

    def shares(self, at: datetime) -> tuple[ProposedShare, ...]:
        """Propose shares. Raises QmtlError: E_WEIGHT."""
        held = {item.world_id: item for item in allocations_of(self._session).allocations}
        worlds = self._schedule.world_ids
        present = {world_id: self._present(held[world_id]) for world_id in worlds}
        others = {name: item.weight for name, item in held.items() if name not in present}
        returns: dict[str, list[Decimal]] = {}
        if self._schedule.method == "equal_risk":
            for name in worlds:
                capital = _capital(self._session, name)
                returns[name] = daily_returns(self._session, name, present[name].account, capital, at)
        return proposal(self._schedule, present, others, returns)

    def _present(self, held: WorldAllocation) -> PresentShare:
        if self._schedule.method == "given":
            return PresentShare(share=held.weight)
        account = self._accounts[counted_domain(self._session, held.world_id, self._accounts)]
        if self._schedule.method == "equal_risk":
            return PresentShare(share=held.weight, account=account)
        row = self._session.get_one(AllocationRow, held.world_id)
        scales = WorldScales.stored(row.scales)
        now = world_profits(self._session.connection(), held.world_id).get(account, ZERO)
        return PresentShare(
            share=held.weight,
            capital=scaled(_capital(self._session, held.world_id), scales.world.value),
            earned=EXACT.subtract(now, Decimal(json.loads(row.profits).get(account, "0"))),
            account=account,
        )


def _capital(session: Session, world_id: str) -> Decimal:
    capital = world_of(world_row(session, world_id)).spec.capital
    assert capital is not None  # the firing would have been skipped
    return capital.amount


def _request(session: Session, shares: Sequence[ProposedShare]) -> MultiWorldRebalanceRequest:
    """Build the request that changes the shares that differ, as the command builds it."""
    present = allocations_of(session)
    wanted = {item.world_id: item.after for item in shares if item.after != item.before}
    rules = {name: world_of(world_row(session, name)).spec.instruments for name in wanted}
    held = {name: held_list(session.connection(), name) for name in wanted}
    update = update_of(present, wanted, present.etag)
    return changed_request(present, update, common_rules(rules), held)


def _reason(name: str, schedule: RebalanceScheduleBody, shares: Sequence[ProposedShare]) -> str:
    """Say why the run is requested, for those who approve it."""
    why = "; ".join(f"{item.world_id}: {item.why}" for item in shares)
    return f"scheduled by {name} ({schedule.method}). {schedule.reason} {why}"[:500]
