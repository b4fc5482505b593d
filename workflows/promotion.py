"""The gate between a decision and an apply, for one strategy: wait until the policy's conditions hold → apply → the next stage, until it is as far as it shall come.

1. Look: what the next stage asks for, and what of it holds. What only time is missing for is waited for by one durable timer; for the rest the promotion looks again now and then.
2. Apply: as a child workflow, in the name of who asked for the promotion, so that nobody approves their own. Approvals with their time limit are the apply's.
3. An apply that does not complete ends the promotion: people have decided, and ask again if they want.
"""

from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError, ChildWorkflowError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from activities.messages.apply import ApplyInput, ApprovalSignal
    from activities.messages.promotion import (
        ApplyRequestResult,
        CheckConditions,
        EndPromotion,
        PromotionApply,
        PromotionEnd,
        PromotionInput,
        PublishPromotion,
    )
    from activities.messages.stubs import PromotionActivityStubs
    from qmtl_sdk.contracts.promotions import PromotionProgress, PromotionView
    from workflows.apply import ApplyWorkflow
    from workflows.shared import (
        SEARCH_RUN,
        SEARCH_STAGE,
        SEARCH_WORLD,
        STORE,
        TASK_TIMEOUT,
        WAIT,
        apply_id,
        table,
    )

LOOK_EVERY = timedelta(minutes=1)


@workflow.defn
class PromotionWorkflow:
    @workflow.init
    def __init__(self, promotion: PromotionInput) -> None:
        self._promotion = promotion
        self._run = promotion.run_id or workflow.info().run_id  # its beginning is a time, its end is random
        self._applies = promotion.applies
        self._progress: PromotionProgress | None = None
        self._apply_run = ""
        self._end: EndPromotion | None = None
        self._look_now = False
        self._waits_for, self._outcome = "", ""

    @workflow.run
    async def run(self, promotion: PromotionInput) -> PromotionEnd:
        if not promotion.run_id:
            await self._tell("requested", promotion.requested_by, promotion.reason)
        outcome, reason = await self._go()
        await self._tell(outcome, self._end.actor if self._end else promotion.requested_by, reason)
        self._show(outcome, reason)
        self._outcome = outcome
        await workflow.wait_condition(workflow.all_handlers_finished)
        return PromotionEnd(outcome=outcome, reason=reason)

    async def _go(self) -> tuple[str, str]:
        while True:
            about = {
                "store_id": self._promotion.store_id,
                "world_id": self._promotion.world_id,
                "strategy_id": self._promotion.strategy_id,
            }
            self._progress = await workflow.execute_local_activity_method(
                PromotionActivityStubs.check_conditions,
                CheckConditions(**about, to=self._promotion.to),
                summary="what the next stage asks for",
                **STORE,
            )
            if not self._progress.target:
                return "completed", f"it runs in {self._promotion.to}"
            if self._end is not None:
                return (
                    "stopped",
                    f"ended by {self._end.actor}{f': {self._end.reason}' if self._end.reason else ''}",
                )
            if self._progress.unmet:
                await self._wait("; ".join(condition.detail for condition in self._progress.unmet))
                continue
            command = PromotionApply(
                **about,
                run_id=f"promote-{self._run[-12:]}-{self._applies + 1}",
                target=self._progress.target,
                requested_by=self._promotion.requested_by,
                reason=self._promotion.reason,
            )
            asked = await workflow.execute_local_activity_method(
                PromotionActivityStubs.request_apply,
                command,
                summary=f"ask for an apply to {command.target}",
                **STORE,
            )
            if asked.refused:
                await self._wait(f"an apply can't be asked for now: {asked.refused}")
                continue
            self._applies += 1
            failed = await self._apply(command)
            if failed:
                return "stopped", f"the apply {command.run_id} has ended: {failed}"

    async def _apply(self, command: PromotionApply) -> str:
        """Carry the apply out; why it did not complete."""
        self._apply_run = command.run_id
        self._show(
            "apply",
            f"apply {command.run_id} takes it to {command.target}: `qmtl world applies {command.world_id} {command.run_id}`",
        )
        try:
            await workflow.execute_child_workflow(
                ApplyWorkflow.run,
                ApplyInput(store_id=command.store_id, world_id=command.world_id, run_id=command.run_id),
                id=apply_id(command.world_id),
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                task_timeout=TASK_TIMEOUT,
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(SEARCH_WORLD, command.world_id),
                        SearchAttributePair(SEARCH_RUN, command.run_id),
                    ]
                ),
                static_summary=f"apply {command.run_id} in world {command.world_id}"[:190],
            )
        except (WorkflowAlreadyStartedError, ChildWorkflowError) as error:
            workflow.logger.info("the apply is carried out by another run: %s", error)
        ended: ApplyRequestResult = await workflow.execute_activity_method(
            PromotionActivityStubs.apply_ended, command, summary="how the apply has ended", **WAIT
        )
        self._apply_run = ""
        return ended.refused

    async def _wait(self, waits_for: str) -> None:
        """Until time alone may have made the difference, or someone says something."""
        assert self._progress is not None  # looked at before
        self._show("waiting", waits_for)
        dues = [condition.due for condition in self._progress.unmet]
        until = max((due for due in dues if due), default=None) if dues and all(dues) else None
        left = max(until - workflow.now(), timedelta(0)) + timedelta(milliseconds=1) if until else LOOK_EVERY
        if workflow.info().is_continue_as_new_suggested():
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(
                self._promotion.model_copy(update={"run_id": self._run, "applies": self._applies})
            )
        with suppress(TimeoutError):  # time to look again
            await workflow.wait_condition(
                lambda: self._look_now or self._end is not None,
                timeout=left,
                timeout_summary=f"waiting: {waits_for}"[:190],
            )
        self._look_now = False

    async def _tell(self, state: str, actor: str, reason: str) -> None:
        promotion = self._promotion
        about = PublishPromotion(
            store_id=promotion.store_id,
            world_id=promotion.world_id,
            strategy_id=promotion.strategy_id,
            run_id=self._run,
            state=state,
            actor=actor,
            reason=reason,
        )
        await workflow.execute_local_activity_method(
            PromotionActivityStubs.publish_promotion, about, summary=f"record: {state}", **STORE
        )

    # messages

    @workflow.signal
    async def approve(self, vote: ApprovalSignal) -> None:
        """Handed on to the apply that is under way; there it counts as what it is."""
        await self._hand_on("approve", vote)

    @workflow.signal
    async def reject(self, vote: ApprovalSignal) -> None:
        await self._hand_on("reject", vote)

    async def _hand_on(self, verdict: str, vote: ApprovalSignal) -> None:
        if not self._apply_run:
            workflow.logger.info("no apply is under way to %s", verdict)
            return
        apply = workflow.get_external_workflow_handle(apply_id(self._promotion.world_id))
        try:
            await apply.signal(verdict, vote.model_copy(update={"run_id": self._apply_run}))
        except ApplicationError as error:
            workflow.logger.info("the apply has ended: %s", error)

    @workflow.signal
    def look(self) -> None:
        """Something has changed: look now."""
        self._look_now = True

    @workflow.update
    async def end(self, request: EndPromotion) -> PromotionView:
        self._end = self._end or request
        await workflow.wait_condition(lambda: bool(self._outcome))
        return self.gate()

    @end.validator
    def _may_end(self, request: EndPromotion) -> None:
        if self._apply_run:
            raise ApplicationError(
                f"its apply {self._apply_run} is under way: abort that, and the promotion ends with it",
                type="E_APPLY_RUNNING",
            )

    @workflow.query
    def gate(self) -> PromotionView:
        promotion = self._promotion
        return PromotionView.model_validate(
            {
                "world_id": promotion.world_id,
                "strategy_id": promotion.strategy_id,
                "to": promotion.to,
                "requested_by": promotion.requested_by,
                "reason": promotion.reason,
                "progress": self._progress,
                "apply_run": self._apply_run,
                "waits_for": self._waits_for,
                "outcome": self._outcome,
            }
        )

    def _show(self, stage: str, waits_for: str) -> None:
        self._waits_for = waits_for
        promotion, progress = self._promotion, self._progress
        lines = [
            f"**{stage}**: {waits_for}",
            f"{progress.label if progress else promotion.strategy_id[:17]} of {promotion.world_id} to {promotion.to}, asked for by {promotion.requested_by}",
        ]
        if promotion.reason:
            lines.append(promotion.reason)
        if progress is not None and progress.target:
            rows = tuple(
                (condition.name, "holds" if condition.met else "is missing", condition.detail)
                for condition in progress.conditions
            )
            lines.append(table((f"for {progress.target} (it is in {progress.stage})", "", ""), rows))
        workflow.set_current_details("\n\n".join(lines)[:18_000])
        workflow.upsert_search_attributes([SEARCH_STAGE.value_set(stage)])
