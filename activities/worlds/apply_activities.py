"""The steps of an apply: thin. Each is done once for ever by the store; the two that wait look again and again until their limit."""

import asyncio
import time

from temporalio import activity

from activities.commands import (
    AckResult,
    ApplyBrief,
    ApplyInput,
    ApprovalList,
    AwaitAcks,
    ConcludeApply,
    DirectApproval,
    DrainCommand,
)
from activities.orders.sql import SqlOrderStore
from activities.worlds.applies import SqlApplyStore
from activities.worlds.store import GateChange, StepDone
from qmtl_sdk.contracts.errors import QmtlError

LOOK_S, LINES = 0.02, 40


class ApplyActivities:
    def __init__(self, applies: SqlApplyStore, orders: SqlOrderStore) -> None:
        self._applies, self._orders = applies, orders

    @activity.defn(no_thread_cancel_exception=True)
    def apply_plan(self, command: ApplyInput) -> ApplyBrief:
        plan = self._applies.find(command.world_id, command.run_id).plan
        rows = plan.diff()
        more = [(f"and {len(rows) - LINES} more", "", "")] if len(rows) > LINES else []
        left_out = tuple(str(item) for item in plan.left_out[:10])
        return ApplyBrief(
            title=plan.title,
            reason=plan.reason,
            requested_by=plan.requested_by,
            stages=plan.stages,
            diff=(*rows[:LINES], *more),
            left_out=left_out,
            etag=plan.etag,
        )

    @activity.defn(no_thread_cancel_exception=True)
    def await_approval(self, command: ApplyInput) -> StepDone:
        return self._applies.await_approval(command.world_id, command.run_id)

    @activity.defn(no_thread_cancel_exception=True)
    def take_votes(self, command: ApplyInput) -> ApprovalList:
        return ApprovalList(approvals=self._applies.taken(command.world_id, command.run_id))

    @activity.defn(no_thread_cancel_exception=True)
    def direct_vote(self, command: DirectApproval) -> StepDone:
        self._applies.direct(
            command.world_id,
            command.run_id,
            command.actor,
            command.verdict,
            command.reason,
            command.approval_id,
        )
        return StepDone()

    @activity.defn(no_thread_cancel_exception=True)
    def freeze_world(self, command: ApplyInput) -> GateChange:
        return self._applies.freeze(command.world_id, command.run_id)

    @activity.defn
    async def drain_world(self, command: DrainCommand) -> AckResult:
        """Until no order is open, and everyone has heard of the freeze or has had time to. Raises QmtlError (E_DRAIN_TIMEOUT)."""
        await asyncio.to_thread(self._applies.drain, command.world_id, command.run_id)
        began = command.frozen.at.timestamp()
        while True:
            still_open, missing = await asyncio.to_thread(self._left, command)
            waited = time.time() - began  # since the freeze, whichever worker has seen it
            if not still_open and (not missing or waited >= command.ack_timeout_s):
                return AckResult(missing=missing, waited_s=round(waited, 3))
            if still_open and waited >= command.timeout_s:
                raise QmtlError(
                    "E_DRAIN_TIMEOUT",
                    f"{still_open} orders were still open after {command.timeout_s:g} s",
                    "cancel them at their venue, or give the drain more time",
                )
            await asyncio.sleep(LOOK_S)

    def _left(self, command: DrainCommand) -> tuple[int, tuple[str, ...]]:
        """How many orders are open, and who has not said yet that they have heard of the freeze."""
        return self._orders.open_orders(command.world_id), self._applies.missing_acks(
            command.world_id, command.frozen, "freeze"
        )

    @activity.defn(no_thread_cancel_exception=True)
    def switch_world(self, command: ApplyInput) -> StepDone:
        return self._applies.switch(command.world_id, command.run_id)

    @activity.defn(no_thread_cancel_exception=True)
    def restore_world(self, command: ApplyInput) -> StepDone:
        return self._applies.restore(command.world_id, command.run_id)

    @activity.defn(no_thread_cancel_exception=True)
    def unfreeze_world(self, command: ApplyInput) -> GateChange:
        return self._applies.unfreeze(command.world_id, command.run_id)

    @activity.defn
    async def await_acks(self, command: AwaitAcks) -> AckResult:
        began = command.told.at.timestamp()
        while True:
            missing = await asyncio.to_thread(
                self._applies.missing_acks, command.world_id, command.told, command.phase
            )
            waited = time.time() - began
            if not missing or waited >= command.timeout_s:
                return AckResult(missing=missing, waited_s=round(waited, 3))
            await asyncio.sleep(LOOK_S)

    @activity.defn(no_thread_cancel_exception=True)
    def conclude_apply(self, command: ConcludeApply) -> StepDone:
        return self._applies.conclude(command.world_id, command.run_id, command.outcome, command.reason)
