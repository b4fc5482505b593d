"""Activities of ApplyWorkflow. The store does each step once; the two that wait poll until their limit."""

import asyncio
import time
from dataclasses import dataclass

from temporalio import activity

from activities.applies.acknowledgements import SqlApplyAcks
from activities.applies.approvals import SqlApprovals
from activities.applies.requests import SqlApplyRequests
from activities.applies.steps import SqlApplySteps
from activities.fence.order_log import SqlOrderLog
from activities.messages.apply import (
    AckResult,
    ApplyBrief,
    ApplyInput,
    ApprovalList,
    ApprovalWait,
    AwaitAcks,
    AwaitApproval,
    ConcludeApply,
    DirectApproval,
    DrainCommand,
    FenceChange,
    StepDone,
)
from activities.messages.stubs import ApplyActivityStubs
from qmtl_sdk.contracts.errors import QmtlError

# Seconds between two polls of the store.
POLL_S = 0.02

# Rows of a plan, and strategies that were left out, that the Temporal UI shows.
_ROWS = 40
_LEFT_OUT = 10


@dataclass(frozen=True)
class ApplyStores:
    """The stores that the activities of an apply use."""

    requests: SqlApplyRequests
    approvals: SqlApprovals
    steps: SqlApplySteps
    acks: SqlApplyAcks
    orders: SqlOrderLog


class ApplyActivities(ApplyActivityStubs):
    """The steps of an apply."""

    def __init__(self, stores: ApplyStores) -> None:
        self._stores = stores

    @activity.defn(no_thread_cancel_exception=True)
    def apply_plan(self, command: ApplyInput) -> ApplyBrief:
        """Read the plan of an apply."""
        found = self._stores.requests.find(command.world_id, command.run_id)
        plan = found.plan
        rows = plan.diff()
        more = [(f"and {len(rows) - _ROWS} more", "", "")] if len(rows) > _ROWS else []
        return ApplyBrief(
            title=plan.title,
            reason=plan.reason,
            requested_by=plan.requested_by,
            steps=plan.steps,
            diff=(*rows[:_ROWS], *more),
            left_out=tuple(str(item) for item in plan.left_out[:_LEFT_OUT]),
            done=tuple(step.name for step in found.steps),
        )

    @activity.defn(no_thread_cancel_exception=True)
    def await_approval(self, command: AwaitApproval) -> ApprovalWait:
        """Record that an apply waits for approvals, and until when."""
        return self._stores.steps.await_approval(command.world_id, command.run_id, command.until)

    @activity.defn(no_thread_cancel_exception=True)
    def read_approvals(self, command: ApplyInput) -> ApprovalList:
        """Read all approvals of an apply."""
        return ApprovalList(approvals=self._stores.approvals.read(command.world_id, command.run_id))

    @activity.defn(no_thread_cancel_exception=True)
    def record_direct_approval(self, command: DirectApproval) -> StepDone:
        """Store an approval that was signalled straight to Temporal."""
        self._stores.approvals.record_direct(command)
        return StepDone()

    @activity.defn(no_thread_cancel_exception=True)
    def freeze_world(self, command: ApplyInput) -> FenceChange:
        """Refuse orders, under a new epoch."""
        return self._stores.steps.freeze(command.world_id, command.run_id)

    @activity.defn
    async def drain_world(self, command: DrainCommand) -> AckResult:
        """Wait until no order is open, and the freeze is acknowledged or its time limit has passed.

        Raises QmtlError (E_DRAIN_TIMEOUT).
        """
        await asyncio.to_thread(self._stores.steps.drain, command.world_id, command.run_id)
        began = command.frozen.at.timestamp()  # the freeze: another worker may have waited before
        while True:
            still_open, missing = await asyncio.to_thread(self._drain_status, command)
            waited = time.time() - began
            if not still_open and (not missing or waited >= command.ack_timeout_s):
                return AckResult(missing=missing)
            if still_open and waited >= command.timeout_s:
                raise QmtlError(
                    "E_DRAIN_TIMEOUT",
                    f"{still_open} orders were still open after {command.timeout_s:g} s",
                    f"qmtl world cancel {command.world_id} --all cancels them; "
                    "gating_policy.apply.drain_timeout_ms gives the drain more time",
                )
            await asyncio.sleep(POLL_S)

    def _drain_status(self, command: DrainCommand) -> tuple[int, tuple[str, ...]]:
        """Count the open orders, and name who has not acknowledged the freeze."""
        still_open = self._stores.orders.open_orders(command.world_id)
        return still_open, self._stores.acks.missing(command.world_id, command.frozen, "freeze")

    @activity.defn(no_thread_cancel_exception=True)
    def switch_world(self, command: ApplyInput) -> StepDone:
        """Change activations, queues, edge and fingerprint."""
        return self._stores.steps.switch(command.world_id, command.run_id)

    @activity.defn(no_thread_cancel_exception=True)
    def restore_world(self, command: ApplyInput) -> StepDone:
        """Restore what the freeze found."""
        return self._stores.steps.restore(command.world_id, command.run_id)

    @activity.defn(no_thread_cancel_exception=True)
    def unfreeze_world(self, command: ApplyInput) -> FenceChange:
        """Accept orders again, under a new epoch."""
        return self._stores.steps.unfreeze(command.world_id, command.run_id)

    @activity.defn
    async def await_acks(self, command: AwaitAcks) -> AckResult:
        """Wait until a change of the fence is acknowledged, or its time limit has passed."""
        deadline = command.change.at.timestamp() + command.timeout_s
        while True:
            missing = await asyncio.to_thread(
                self._stores.acks.missing, command.world_id, command.change, command.phase
            )
            if not missing or time.time() >= deadline:
                return AckResult(missing=missing)
            await asyncio.sleep(POLL_S)

    @activity.defn(no_thread_cancel_exception=True)
    def conclude_apply(self, command: ConcludeApply) -> StepDone:
        """Record how an apply ended."""
        return self._stores.steps.conclude(command.world_id, command.run_id, command.outcome, command.reason)
