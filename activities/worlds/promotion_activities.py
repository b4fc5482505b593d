"""The steps of a promotion: thin."""

import asyncio

from temporalio import activity

from activities.commands import ApplyRequestResult, CheckConditions, PromotionApply, PublishPromotion
from activities.worlds.applies import SqlApplyStore
from activities.worlds.apply_activities import LOOK_S
from activities.worlds.promotions import SqlPromotions
from activities.worlds.store import StepDone
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.promotions import PromotionProgress


class PromotionActivities:
    def __init__(self, promotions: SqlPromotions, applies: SqlApplyStore) -> None:
        self._promotions, self._applies = promotions, applies

    @activity.defn(no_thread_cancel_exception=True)
    def look(self, command: CheckConditions) -> PromotionProgress:
        return self._promotions.look(command.world_id, command.strategy_id, command.to)

    @activity.defn(no_thread_cancel_exception=True)
    def ask_for_apply(self, command: PromotionApply) -> ApplyRequestResult:
        request = ApplyRequest(
            run_id=command.run_id,
            to="live" if command.target == "live" else "dryrun",
            strategies=(command.strategy_id,),
            reason=command.reason,
        )
        return ApplyRequestResult(
            refused=self._promotions.ask(command.world_id, request, command.requested_by)
        )

    @activity.defn
    async def apply_ended(self, command: PromotionApply) -> ApplyRequestResult:
        """Wait for the end of an apply, whoever carries it out; why it did not complete."""
        while True:
            found = await asyncio.to_thread(self._applies.find, command.world_id, command.run_id)
            if found.outcome is not None:
                return ApplyRequestResult(refused="" if found.outcome == "completed" else found.waits_for)
            await asyncio.sleep(10 * LOOK_S)

    @activity.defn(no_thread_cancel_exception=True)
    def tell_promotion(self, command: PublishPromotion) -> StepDone:
        self._promotions.tell(
            command.world_id,
            command.strategy_id,
            command.run_id,
            command.state,
            command.actor,
            command.reason,
        )
        return StepDone()
