"""How a run begins: in one transaction its worlds are locked, and their shares become the new ones.

1. Everything that the plan rests on is checked again: approvals, shares, positions, and that every world and
   strategy may trade. If anything has changed, nothing is.
2. The shares of the worlds and the scales of their strategies' weights become the new ones, and stored
   targets are sized by them (`goals.py`). While the world is locked, a target that stays orders nothing;
   afterwards the next bar orders what the run has left.
3. Strategies cross what nets out, at the marks of the plan, where the fence would let them trade.
4. The trades are stored. From here on the run goes forward: what cannot be ordered or filled is named.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import insert

from activities.allocation.store import allocations_of, change_scales, write_allocation
from activities.applies.status import approvals_of, is_disabled
from activities.fence.activations import halts_of
from activities.fence.flattening_rows import flattening_rows
from activities.fence.state import lock_for_rebalancing, locked_fence, require_unlocked
from activities.order_settings import OrdersSettings
from activities.rebalancing.crossings import Crossings
from activities.rebalancing.goals import Goals
from activities.rebalancing.present import require_present
from activities.rebalancing.requests import approvals_needed, start_of
from activities.rebalancing.rows import (
    REBALANCING,
    body_of,
    plan_of,
    record,
    run_row,
    trade_row,
    worlds_of,
)
from activities.rebalancing.trades import trades_of
from activities.storage.database import Database
from activities.storage.tables import FenceRow, RebalancingRow, RebalancingTradeRow
from activities.storage.transactions import Transaction, table_of, utc_now, utc_text
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.allocations import AllocationChange, WorldAllocation, carried_shares
from qmtl_sdk.contracts.applies import approvers, rejection
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_runs import ALL_WORLDS

_trade = table_of(RebalancingTradeRow)

# Seconds that the transaction waits for each lock; its activity is tried again after that.
_LOCK_WAIT_S = 2.0


class SqlRebalanceBeginnings:
    """Begins runs."""

    def __init__(self, database: Database, settings: OrdersSettings) -> None:
        """`settings` name the account of each domain that trades, and its limits."""
        self._database = database
        self._crossings = Crossings(database, settings)
        self._goals = Goals(settings.accounts)

    def begin(self, run_id: str) -> datetime:
        """Lock the worlds of a run and change their shares. Returns when; once, however often it is called.

        Raises QmtlError: E_REBALANCE_ENDED where it was aborted or has ended; E_APPROVAL_MISSING; E_ETAG;
        E_WORLD_FROZEN, E_HALTED, E_REBALANCING, E_FLATTENING where a world or strategy may not trade now;
        E_BODY_INVALID where new shares cannot be stored: trying again would not help.
        """
        try:
            return self._begin(run_id)
        except ValueError as error:  # of a model
            raise QmtlError("E_BODY_INVALID", f"{run_id}: {error}"[:500], "request another one") from error

    def _begin(self, run_id: str) -> datetime:
        with self._database.read() as session:  # what takes long, before any lock is held
            found = run_row(session, run_id)
            body, plan, secret = body_of(found), plan_of(found), found.secret
        run_key = f"{run_id}:{secret}"
        trades = trades_of(plan, body.request, run_key)
        changes = {item.world_id: item for item in body.request.worlds}
        with self._database.write(REBALANCING) as tx:
            tx.limit_lock_waits(_LOCK_WAIT_S)
            row = start_of(tx, run_id)
            if row.locked_at:
                return datetime.fromisoformat(row.locked_at)
            _require_wanted(tx, row)
            fences = {world_id: locked_fence(tx, world_id) for world_id in worlds_of(row)}
            require_present(tx.session, body.request, plan)
            for world_id, fence in fences.items():
                mine = {trade.strategy_id for trade in trades if trade.world_id == world_id}
                _require_open(tx, fence, mine)
            now = utc_now()
            row.locked_at, row.state = now, "reductions"
            row.deadline = utc_text(datetime.fromisoformat(now) + timedelta(seconds=body.time_limit_s))
            trades = self._crossings.book(tx, fences, run_id, run_key, trades)
            _change_shares(tx, changes, now)
            goals = self._goals.set(tx, sorted(changes), trades)
            rows = [
                trade_row(run_id, number, trade, goals[trade.place]) for number, trade in enumerate(trades)
            ]
            if rows:
                tx.connection.execute(insert(_trade), rows)
            for fence in fences.values():
                lock_for_rebalancing(tx, fence, run_id, locked=True)
            tx.session.add(row)
            record(tx, row, "rebalancing.begun", {"trades": len(trades), "etag": plan.etag})
            return datetime.fromisoformat(now)


def _require_wanted(tx: Transaction, row: RebalancingRow) -> None:
    """Check that a run was neither aborted nor rejected, and is approved as its worlds ask now."""
    if row.ended_at is not None:
        raise QmtlError("E_REBALANCE_ENDED", f"{row.run_id} has ended: {row.outcome}", "request another one")
    if row.aborted_by:
        raise QmtlError("E_REBALANCE_ENDED", f"aborted by {row.aborted_by}", "request another one")
    given = approvals_of(tx.session, ALL_WORLDS, row.run_id, REBALANCING)
    rejected = rejection(given)
    if rejected is not None:
        raise QmtlError("E_REBALANCE_ENDED", f"rejected by {rejected.actor}", "request another one")
    if is_disabled(tx.session, row.requested_by):
        raise QmtlError(
            "E_APPROVAL_MISSING", f"{row.requested_by}, who requested it, is disabled", "request another one"
        )
    needed = max(row.approvals, approvals_needed(tx.session, worlds_of(row)).required)
    missing = needed - len(approvers(given))
    if missing > 0:
        raise QmtlError(
            "E_APPROVAL_MISSING",
            f"{missing} more approvals are needed: somebody who approved is disabled, or a world asks for "
            "more now",
            "request another one",
        )


def _require_open(tx: Transaction, fence: FenceRow, strategies: set[str]) -> None:
    """Check that a world and its strategies may trade now."""
    world_id = fence.world_id
    world_of(world_row(tx.session, world_id)).require_active()
    require_unlocked(fence)
    if fence.halted:
        raise QmtlError("E_HALTED", f"{world_id} is halted ({fence.halted})", f"qmtl world resume {world_id}")
    halted = [item.label for item in halts_of(tx.session, world_id) if item.strategy_id in strategies]
    if halted:
        raise QmtlError(
            "E_HALTED",
            f"strategies of {world_id} are halted: {', '.join(halted)}",
            f"qmtl world resume {world_id} -s STRATEGY",
        )
    if flattening_rows(tx.connection, world_id, strategies):
        raise QmtlError(
            "E_FLATTENING",
            f"positions of {world_id} are being closed",
            f"wait until they are: qmtl world flatten {world_id} --wait 60",
        )


def _change_shares(tx: Transaction, changes: Mapping[str, AllocationChange], now: str) -> None:
    """Write the new shares of worlds, and the scales that follow from them."""
    held = {item.world_id: item for item in allocations_of(tx.session).allocations}
    for world_id, change in changes.items():
        before = held.get(world_id)
        after = WorldAllocation(
            world_id=world_id,
            weight=change.after,
            strategies=carried_shares(before.strategies if before else {}, change),
        )
        row = write_allocation(tx, before, after, now)
        change_scales(row, change, now)
    tx.session.flush()
