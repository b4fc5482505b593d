"""Activities of RebalancingWorkflow. The store does each step once; the one that waits polls it."""

import asyncio
import time
from dataclasses import dataclass

from temporalio import activity

from activities.messages.apply import StepDone
from activities.messages.rebalancing import (
    AbortRebalancing,
    AwaitRebalanceApproval,
    ConcludeRebalancing,
    OrderTrades,
    RebalanceApprovals,
    RebalanceBegun,
    RebalanceEnd,
    RebalancingBrief,
    RebalancingInput,
    TradesOrdered,
)
from activities.messages.stubs import RebalancingActivityStubs
from activities.rebalancing.approvals import SqlRebalanceApprovals
from activities.rebalancing.beginning import SqlRebalanceBeginnings
from activities.rebalancing.ending import SqlRebalanceEnds
from activities.rebalancing.ordering import Progress, SqlRebalanceOrders
from activities.rebalancing.requests import SqlRebalancings
from activities.rebalancing.trades import Step

# Seconds between two polls of the store.
_POLL_S = 0.05

CANCEL_WAIT_S = 60.0
"""Seconds that a run waits for the end of orders that it has cancelled: a venue may be away."""


@dataclass(frozen=True)
class RebalancingStores:
    """The stores that the activities of a rebalancing use."""

    requests: SqlRebalancings
    approvals: SqlRebalanceApprovals
    beginnings: SqlRebalanceBeginnings
    orders: SqlRebalanceOrders
    ends: SqlRebalanceEnds


class RebalancingActivities(RebalancingActivityStubs):
    """The steps of a rebalancing."""

    def __init__(self, stores: RebalancingStores) -> None:
        self._stores = stores

    @activity.defn(no_thread_cancel_exception=True)
    def rebalancing_plan(self, command: RebalancingInput) -> RebalancingBrief:
        """Read the plan of a run."""
        return self._stores.requests.brief(command.run_id)

    @activity.defn(no_thread_cancel_exception=True)
    def await_rebalance_approval(self, command: AwaitRebalanceApproval) -> RebalanceApprovals:
        """Record that a run waits for approvals, and read those that were given."""
        until = self._stores.requests.await_approval(command.run_id, command.until)
        return RebalanceApprovals(approvals=self._stores.approvals.read(command.run_id), until=until)

    @activity.defn(no_thread_cancel_exception=True)
    def begin_rebalancing(self, command: RebalancingInput) -> RebalanceBegun:
        """Lock the worlds of a run and change their shares."""
        return RebalanceBegun(at=self._stores.beginnings.begin(command.run_id))

    @activity.defn
    async def order_trades(self, command: OrderTrades) -> TradesOrdered:
        """Order the trades of a step, and wait for their ends; the limit or an abort cancels them."""
        await asyncio.to_thread(self._stores.orders.begin_step, command.run_id, command.step)
        limit = command.until.timestamp()
        await self._order(command.run_id, command.step, limit)
        stop_at = 0.0
        while True:
            still_open, aborted = await asyncio.to_thread(self._stores.ends.open_orders, command.run_id)
            if not still_open:
                break
            if not stop_at and (aborted or time.time() >= limit):
                why = "the rebalancing was aborted" if aborted else "the time limit of the rebalancing"
                await asyncio.to_thread(self._stores.ends.cancel, command.run_id, why)
                stop_at = time.time() + CANCEL_WAIT_S
            if stop_at and time.time() >= stop_at:
                break
            await asyncio.sleep(_POLL_S)
        return TradesOrdered(still_open=await asyncio.to_thread(self._stores.ends.settle, command.run_id))

    async def _order(self, run_id: str, step: Step, limit: float) -> None:
        """Order what is planned, until the limit."""
        while time.time() < limit:
            found = await asyncio.to_thread(self._stores.orders.order_some, run_id, step)
            if found is Progress.DONE:
                return
            if found is Progress.WAITS:
                await asyncio.sleep(_POLL_S)

    @activity.defn(no_thread_cancel_exception=True)
    def abort_rebalancing(self, command: AbortRebalancing) -> StepDone:
        """Store that the workflow of a run was cancelled."""
        self._stores.requests.record_abort(command.run_id, command.actor, command.reason)
        return StepDone()

    @activity.defn(no_thread_cancel_exception=True)
    def conclude_rebalancing(self, command: ConcludeRebalancing) -> RebalanceEnd:
        """Record how a run ended, and unlock its worlds."""
        self._stores.ends.conclude(command.run_id, command.outcome, command.reason)
        found = self._stores.requests.find(command.run_id, whole=False)
        assert found.outcome is not None  # it was written
        return RebalanceEnd(
            run_id=found.run_id, outcome=found.outcome, reason=found.reason, report=found.report
        )
