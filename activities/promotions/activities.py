"""Activities of PromotionWorkflow."""

import asyncio

from temporalio import activity

from activities.applies.requests import SqlApplyRequests
from activities.messages.promotion import (
    ApplyEndResult,
    ApplyRequestResult,
    CheckConditions,
    PromotionApply,
    PublishPromotion,
)
from activities.messages.stubs import PromotionActivityStubs
from activities.promotions.sql import SqlPromotions
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.promotions import PromotionProgress

# Seconds between two polls for the end of an apply.
_POLL_S = 0.2


class PromotionActivities(PromotionActivityStubs):
    """The steps of a promotion."""

    def __init__(self, promotions: SqlPromotions, applies: SqlApplyRequests) -> None:
        self._promotions = promotions
        self._applies = applies

    @activity.defn(no_thread_cancel_exception=True)
    def check_conditions(self, command: CheckConditions) -> PromotionProgress:
        """Check which conditions of the next stage are met."""
        return self._promotions.progress(command.world_id, command.strategy_id, command.to)

    @activity.defn(no_thread_cancel_exception=True)
    def request_apply(self, command: PromotionApply) -> ApplyRequestResult:
        """Request the apply that takes a strategy to its next stage."""
        request = ApplyRequest(
            run_id=command.run_id,
            to="live" if command.target == "live" else "dryrun",
            strategies=(command.strategy_id,),
            reason=command.reason,
        )
        refused = self._promotions.request_apply(
            command.world_id, request, command.requested_by, command.requested_issuers
        )
        if refused:
            return ApplyRequestResult(refused=refused)
        plan = self._applies.find(command.world_id, command.run_id).plan
        return ApplyRequestResult(title=plan.title, approvals=plan.approval.required)

    @activity.defn
    async def apply_ended(self, command: PromotionApply) -> ApplyEndResult:
        """Wait until an apply has ended, whoever runs it. Returns why it did not complete."""
        while True:
            found = await asyncio.to_thread(self._applies.find, command.world_id, command.run_id)
            if found.outcome is not None:
                return ApplyEndResult(failure="" if found.outcome == "completed" else found.waits_for)
            await asyncio.sleep(_POLL_S)

    @activity.defn(no_thread_cancel_exception=True)
    def publish_promotion(self, command: PublishPromotion) -> None:
        """Record and publish a promotion's new state."""
        self._promotions.publish(command)
