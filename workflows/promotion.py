"""Promotion of one strategy to dryrun or live: check the next stage's conditions → apply → the stage after.

1. Check: read which conditions the policy sets for the next stage, and which are met. If only time is
   missing, wait by one durable timer; otherwise check again every minute.
2. Apply: run an apply as a child workflow, in the name of the person who requested the promotion, so that
   they can't approve it themselves. The apply waits for approvals and limits that wait.
3. An apply that does not complete ends the promotion. People decided that; they can request another one.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ApplicationError, ChildWorkflowError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from activities.messages.apply import ApplyEnd, ApplyInput, ApprovalSignal
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
    from workflows.ids import apply_id, promotion_apply_id
    from workflows.markdown import one_line, paragraphs, table, with_reason
    from workflows.options import STORE, WAIT, apply_options
    from workflows.search_attributes import SEARCH_STEP
    from workflows.waiting import run_to_the_end, wait_until

# Time between two checks of conditions that don't come to be met by time alone.
CHECK_EVERY = timedelta(minutes=1)

# Added to a timer, because a condition is met just after its due time.
_AFTER_DUE = timedelta(milliseconds=1)


@workflow.defn(versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class PromotionWorkflow:
    """Takes one strategy to its target, stage by stage."""

    @workflow.init
    def __init__(self, promotion: PromotionInput) -> None:
        self._promotion = promotion
        self._run = promotion.run_id or workflow.info().run_id
        self._applies = promotion.applies
        self._progress: PromotionProgress | None = None
        self._apply_run = ""
        self._child: asyncio.Task[ApplyEnd] | None = None
        self._end: EndPromotion | None = None
        self._check_now = False
        self._waits_for = ""
        self._outcome = ""

    @workflow.run
    async def run(self, promotion: PromotionInput) -> PromotionEnd:
        """Promote until the target is reached, an apply does not complete, or someone ends it.

        A cancellation through Temporal ends it, and aborts its apply unless that has switched.
        """
        return await run_to_the_end(self._carry_out(promotion), self._cancelled)

    def _cancelled(self) -> None:
        self._end = self._end or EndPromotion(actor="temporal", reason="the workflow was cancelled")
        if self._child is not None:
            self._child.cancel()

    async def _carry_out(self, promotion: PromotionInput) -> PromotionEnd:
        if not promotion.run_id:
            await self._publish("requested", promotion.requested_by, promotion.reason)
        outcome, reason = await self._promote()
        await self._publish(outcome, self._end.actor if self._end else promotion.requested_by, reason)
        self._show(outcome, reason)
        self._outcome = outcome
        await wait_until(workflow.all_handlers_finished)
        return PromotionEnd(outcome=outcome, reason=reason)

    async def _promote(self) -> tuple[str, str]:
        """Check and apply, stage by stage. Returns the outcome and its reason."""
        while True:
            self._progress = progress = await self._check_conditions()
            if not progress.target:
                return "completed", f"it runs in {self._promotion.to}"
            if self._end is not None:
                return "stopped", with_reason(f"ended by {self._end.actor}", self._end.reason)
            if progress.unmet:
                await self._wait(progress, "; ".join(condition.detail for condition in progress.unmet))
                continue
            command = self._apply_command(progress)
            request = await workflow.execute_local_activity_method(
                PromotionActivityStubs.request_apply,
                command,
                summary=one_line(f"request apply {command.run_id}: {progress.label} to {command.target}"),
                **STORE,
            )
            if request.refused:
                await self._wait(progress, f"an apply can't be requested now: {request.refused}")
                continue
            self._applies += 1
            failure = await self._apply(command, request)
            if failure:
                return "stopped", f"the apply {command.run_id} has ended: {failure}"

    async def _check_conditions(self) -> PromotionProgress:
        return await workflow.execute_local_activity_method(
            PromotionActivityStubs.check_conditions,
            CheckConditions(**self._strategy(), to=self._promotion.to),
            summary="check the conditions of the next stage",
            **STORE,
        )

    def _apply_command(self, progress: PromotionProgress) -> PromotionApply:
        asked = self._promotion.model_dump(include={"requested_by", "requested_issuers", "reason"})
        return PromotionApply(
            **self._strategy(),
            **asked,
            run_id=promotion_apply_id(self._run, self._applies + 1),
            target=progress.target,
        )

    async def _apply(self, command: PromotionApply, request: ApplyRequestResult) -> str:
        """Run the apply to its end. Returns why it did not complete; empty if it did."""
        world_id, run_id = command.world_id, command.run_id
        self._apply_run = run_id
        self._show("apply", f"apply to {command.target} under way: `qmtl world applies {world_id} {run_id}`")
        self._child = asyncio.create_task(
            workflow.execute_child_workflow(
                ApplyWorkflow.run,
                ApplyInput(store_id=command.store_id, world_id=world_id, run_id=run_id),
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                **apply_options(world_id, run_id, request.title, request.approvals),
            )
        )
        try:
            await self._child
        except (WorkflowAlreadyStartedError, ChildWorkflowError) as error:
            workflow.logger.info("another run of the apply carries it out: %s", error)
        except asyncio.CancelledError:
            workflow.logger.info("the apply was cancelled before it began; a Gateway carries it out")
        self._child = None
        end = await workflow.execute_activity_method(
            PromotionActivityStubs.apply_ended,
            command,
            summary=one_line(f"wait for the end of apply {run_id}"),
            **WAIT,
        )
        self._apply_run = ""
        return end.failure

    async def _wait(self, progress: PromotionProgress, waits_for: str) -> None:
        """Wait until the unmet conditions are due; for a minute if one has no due time; or for a message."""
        self._show("waiting", waits_for)
        if workflow.info().is_continue_as_new_suggested():
            await self._continue_as_new()
        with suppress(TimeoutError):  # then the conditions are checked again
            await wait_until(
                lambda: self._check_now or self._end is not None,
                _next_check(progress),
                one_line(f"waiting: {waits_for}"),
            )
        self._check_now = False

    async def _continue_as_new(self) -> None:
        """Continue as new. Returns instead if someone ends the promotion: `end` waits for the outcome."""
        await wait_until(lambda: self._end is not None or workflow.all_handlers_finished())
        if self._end is None:
            workflow.continue_as_new(
                self._promotion.model_copy(update={"run_id": self._run, "applies": self._applies})
            )

    async def _publish(self, state: str, actor: str, reason: str) -> None:
        named = self._strategy()
        command = PublishPromotion(**named, run_id=self._run, state=state, actor=actor, reason=reason)
        await workflow.execute_local_activity_method(
            PromotionActivityStubs.publish_promotion,
            command,
            summary=one_line(with_reason(f"record and publish: {state}", reason)),
            **STORE,
        )

    def _strategy(self) -> dict[str, str]:
        """Return the fields that every command about the strategy has."""
        return self._promotion.model_dump(include={"store_id", "world_id", "strategy_id"})

    # messages

    @workflow.signal
    async def approve(self, approval: ApprovalSignal) -> None:
        """Forward an approval to the apply that is under way."""
        await self._forward("approve", approval)

    @workflow.signal
    async def reject(self, approval: ApprovalSignal) -> None:
        """Forward a rejection to the apply that is under way."""
        await self._forward("reject", approval)

    async def _forward(self, verdict: str, approval: ApprovalSignal) -> None:
        if not self._apply_run:
            workflow.logger.info("no apply is under way to %s", verdict)
            return
        approval = approval.model_copy(update={"run_id": self._apply_run})
        await _signal_apply(self._promotion.world_id, verdict, approval)

    @workflow.signal
    def check(self) -> None:
        """Check the conditions now."""
        self._check_now = True

    @workflow.update
    async def end(self, request: EndPromotion) -> PromotionView:
        """End the promotion before its next apply. Idempotent: a repeated request waits for the same end."""
        self._end = self._end or request
        await workflow.wait_condition(lambda: bool(self._outcome))
        return self.gate()

    @end.validator
    def _validate_end(self, request: EndPromotion) -> None:
        if self._apply_run:
            raise ApplicationError(
                f"its apply {self._apply_run} is under way: abort that, and the promotion ends with it",
                type="E_APPLY_RUNNING",
            )

    @workflow.query
    def gate(self) -> PromotionView:
        """Return the promotion's progress and what it waits for."""
        return PromotionView(
            **self._promotion.model_dump(include={"world_id", "strategy_id", "to", "requested_by", "reason"}),
            progress=self._progress,
            apply_run=self._apply_run,
            waits_for=self._waits_for,
            outcome=self._outcome,
        )

    def _show(self, status: str, waits_for: str) -> None:
        self._waits_for = waits_for
        workflow.set_current_details(_details(status, waits_for, self._promotion, self._progress))
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(status)])


def _next_check(progress: PromotionProgress) -> timedelta:
    """How long to wait: until the unmet conditions are due, or a minute where one has no due time."""
    due_times = [condition.due for condition in progress.unmet if condition.due]
    if due_times and len(due_times) == len(progress.unmet):
        return max(max(due_times) - workflow.now(), timedelta(0)) + _AFTER_DUE
    return CHECK_EVERY


async def _signal_apply(world_id: str, verdict: str, approval: ApprovalSignal) -> None:
    try:
        await workflow.get_external_workflow_handle(apply_id(world_id)).signal(verdict, approval)
    except ApplicationError as error:
        workflow.logger.info("the apply has ended: %s", error)


def _details(
    status: str, waits_for: str, promotion: PromotionInput, progress: PromotionProgress | None
) -> str:
    """Build the details in the Temporal UI: what the promotion waits for, then the conditions."""
    title = f"{promotion.label} of world {promotion.world_id} to {promotion.to}"
    lines = [
        f"**{status}: {waits_for}**" if waits_for else f"**{status}**",
        with_reason(f"{title}, requested by {promotion.requested_by}", promotion.reason),
    ]
    if progress is not None and progress.target:
        rows = tuple(
            (condition.name, "met" if condition.met else "not met", condition.detail)
            for condition in progress.conditions
        )
        header = (f"condition of {progress.target} (now: {progress.stage})", "", "")
        lines.append(table(header, rows))
    lines.append(
        f"to end it: `qmtl world promote {promotion.world_id} {promotion.label} --end`;"
        f" all promotions: `qmtl world promotions {promotion.world_id}`"
    )
    return paragraphs(lines)
