"""Two-phase apply: approval → freeze → drain → switch → unfreeze, and the way back from each step.

1. The plan is in the store since the apply was requested. It is one list of steps, which people read and this
   workflow carries out.
2. Approval: wait for enough people, until one rejects, or until the time limit. Nothing has changed so far.
3. Freeze: the fence refuses all orders under a new epoch; sessions and Gateways acknowledge it.
4. Drain: wait until no accepted order is open. On a timeout or an abort, unfreeze; nothing has changed.
5. Switch: change activations, edges, queue bindings and the pinned fingerprint in one transaction. If it is
   refused, restore the state before and stay frozen until an operator resumes the world.
6. Unfreeze: accept orders under a new epoch; sessions and Gateways acknowledge it again.

The store does each step once, however often an activity is repeated. A run that replaces a lost one repeats
the steps, or records the end where the world was restored or unfrozen without a switch. An abort is accepted
until the switch begins. A long wait for approvals continues as new. A cancellation through Temporal is an
abort: it reaches no step, and one that comes after the switch has begun changes nothing.
"""

import asyncio
from datetime import datetime, timedelta
from typing import assert_never

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.messages.apply import (
        Aborted,
        AbortRequest,
        ApplyBrief,
        ApplyEnd,
        ApplyInput,
        ApplyView,
        ApprovalSignal,
    )
    from activities.messages.stubs import ApplyActivityStubs
    from qmtl_sdk.contracts.applies import ApplyOutcome
    from qmtl_sdk.contracts.durations import format_duration
    from qmtl_sdk.contracts.plans import AwaitApprovals, Drain, Freeze, PlanStep, Switch, Unfreeze
    from workflows.apply_view import (
        ApplyMoment,
        apply_details,
        approval_text,
        missing_approvals,
        stays_frozen,
    )
    from workflows.approvals import Approvals
    from workflows.failures import EndedError, failure_code, failure_text
    from workflows.markdown import one_line, with_reason
    from workflows.options import STORE
    from workflows.search_attributes import SEARCH_RUN, SEARCH_STEP
    from workflows.waiting import run_to_the_end, wait_until
    from workflows.world_change import WorldChange


@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)
class ApplyWorkflow:
    """Carries out the plan of one apply."""

    @workflow.init
    def __init__(self, apply: ApplyInput) -> None:
        self._apply = apply
        self._plan: ApplyBrief | None = None
        self._approvals = Approvals(apply)
        self._world = WorldChange(apply)
        self._abort: AbortRequest | None = None
        self._draining: asyncio.Task[None] | None = None
        self._past_abort = False
        self._step = "plan"
        self._waits_for = ""

    @workflow.run
    async def run(self, apply: ApplyInput) -> ApplyEnd:
        """Carry out the plan. The result says how the apply ended, and under which epoch."""
        return await run_to_the_end(self._carry_out(apply), lambda: self._request_abort(_cancelled(apply)))

    async def _carry_out(self, apply: ApplyInput) -> ApplyEnd:
        """Perform the steps of the plan, and record the outcome."""
        self._plan = await workflow.execute_local_activity_method(
            ApplyActivityStubs.apply_plan, apply, summary="read the plan", **STORE
        )
        outcome: ApplyOutcome = "completed"
        reason = ""
        try:
            _end_if_restored(apply, self._plan)
            self._world.frozen = "freeze" in self._plan.done
            if "switch" in self._plan.done:
                self._past_abort = True
                self._abort = None
            for step in self._plan.steps:
                self._end_if_aborted()
                self._show(step.kind, step.explain())
                await self._perform(step)
        except EndedError as end:
            outcome = end.outcome
            reason = end.reason
        self._past_abort = True
        await self._world.conclude(outcome, reason)
        self._show(outcome, reason)
        await wait_until(workflow.all_handlers_finished)
        return ApplyEnd(run_id=apply.run_id, outcome=outcome, reason=reason, epoch=self._world.epoch)

    async def _perform(self, step: PlanStep) -> None:
        """Perform one step. A step of an unknown kind fails: it must never be taken for another one."""
        match step:
            case AwaitApprovals():
                await self._await_approvals(step)
            case Freeze():
                await self._freeze(step)
            case Drain():
                await self._drain(step)
            case Switch():
                await self._switch()
            case Unfreeze():
                await self._world.unfreeze_and_wait(step)
            case _:
                assert_never(step)

    # approval

    async def _await_approvals(self, step: AwaitApprovals) -> None:
        if self._world.frozen:
            return  # it was approved, to a run that this one replaces
        deadline = await self._approvals.begin(step)
        while not self._approvals.are_enough(step):
            await self._continue_as_new()
            await self._await_signal(step, deadline)
            self._end_if_aborted()
            await self._approvals.read()

    async def _continue_as_new(self) -> None:
        """Continue as new if the history is long: all that was given so far is in the store.

        Returns instead if there is an abort or a signal to act on.
        """
        if not workflow.info().is_continue_as_new_suggested():
            return
        await wait_until(lambda: self._abort is not None or workflow.all_handlers_finished())
        if self._abort is None and not self._approvals.unread:
            workflow.continue_as_new(self._apply)

    async def _await_signal(self, step: AwaitApprovals, deadline: datetime) -> None:
        missing = missing_approvals(self._apply, step, self._approvals.approved_by)
        self._show("approval", missing)
        try:
            await wait_until(
                lambda: self._approvals.unread or self._abort is not None,
                max(deadline - workflow.now(), timedelta(0)),
                one_line(missing),
            )
        except TimeoutError:
            raise EndedError("rolled_back", f"no approval within {format_duration(step.expires_s)}") from None

    # freeze, drain, switch

    async def _freeze(self, step: Freeze) -> None:
        try:
            await self._world.freeze(step)
        except ActivityError as error:
            raise EndedError("rolled_back", f"not frozen: {failure_text(error)}") from error

    async def _drain(self, step: Drain) -> None:
        if self._abort is not None:
            await self._roll_back(_abort_reason(self._abort))
        self._draining = asyncio.create_task(self._world.drain(step))
        try:
            await self._draining
        except ActivityError as error:
            if not (is_cancelled_exception(error) and self._abort is not None):
                await self._roll_back(f"not drained: {failure_text(error)}")
        except asyncio.CancelledError:
            if self._abort is None:
                raise
        self._draining = None
        if self._abort is not None:
            await self._roll_back(_abort_reason(self._abort))

    async def _roll_back(self, reason: str) -> None:
        """Unfreeze the world as it was: nothing was switched."""
        self._past_abort = True
        self._show("rolling back", reason)
        await self._world.unfreeze(f"unfreeze, nothing was switched: {reason}")
        raise EndedError("rolled_back", reason)

    async def _switch(self) -> None:
        self._past_abort = True
        try:
            await self._world.switch()
        except ActivityError as error:
            if failure_code(error) == "E_APPLY_ABORTED":
                await self._roll_back(failure_text(error))
            reason = f"the switch was refused: {failure_text(error)}"
            self._show("restore", reason)
            await self._world.restore()
            raise EndedError("frozen", stays_frozen(self._apply, reason)) from error

    def _end_if_aborted(self) -> None:
        """Raises EndedError if an abort was requested and the world is not frozen."""
        if self._abort is not None and not self._world.frozen:
            raise EndedError("rolled_back", _abort_reason(self._abort))

    # messages

    @workflow.update
    async def abort(self, request: AbortRequest) -> Aborted:
        """Abort the apply. Idempotent: a repeated request waits for the same end."""
        self._request_abort(request)
        await workflow.wait_condition(lambda: self._past_abort)
        return Aborted(run_id=self._apply.run_id, step=self._step)

    def _request_abort(self, request: AbortRequest) -> None:
        if self._past_abort:
            return
        self._abort = self._abort or request
        if self._draining is not None:
            self._draining.cancel()

    @abort.validator
    def _validate_abort(self, request: AbortRequest) -> None:
        run_id = self._apply.run_id
        if request.run_id != run_id:
            raise ApplicationError(f"{request.run_id} is not under way, {run_id} is", type="E_APPLY_ENDED")
        if self._past_abort:
            raise ApplicationError(
                f"{run_id} can't be aborted any more: it is at {self._step}", type="E_APPLY_SWITCHED"
            )

    @workflow.signal
    def approve(self, approval: ApprovalSignal) -> None:
        """Receive an approval."""
        self._approvals.receive("approve", approval)

    @workflow.signal
    def reject(self, approval: ApprovalSignal) -> None:
        """Receive a rejection."""
        self._approvals.receive("reject", approval)

    @workflow.query
    def plan(self) -> ApplyView:
        """Return the present step, and what it waits for."""
        return ApplyView(
            run_id=self._apply.run_id,
            title=self._plan.title if self._plan else "",
            step=self._step,
            waits_for=self._waits_for,
            approvals=tuple(approval_text(item) for item in self._approvals.stored),
        )

    def _show(self, step: str, waits_for: str) -> None:
        assert self._plan is not None  # read first
        self._step = step
        self._waits_for = waits_for
        moment = ApplyMoment(step, waits_for, self._approvals.stored, tuple(self._world.notes))
        workflow.set_current_details(apply_details(self._plan, moment))
        run_id = self._apply.run_id
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(step), SEARCH_RUN.value_set(run_id)])


def _end_if_restored(apply: ApplyInput, plan: ApplyBrief) -> None:
    """Raises EndedError if an earlier run of this workflow was lost after it had gone back."""
    if "switch" in plan.done:
        return
    if "restore" in plan.done:
        raise EndedError("frozen", stays_frozen(apply, "the switch was refused in an earlier run"))
    if "unfreeze" in plan.done:
        raise EndedError("rolled_back", "rolled back by an earlier run: nothing was switched")


def _abort_reason(abort: AbortRequest) -> str:
    return with_reason(f"aborted by {abort.actor}", abort.reason)


def _cancelled(apply: ApplyInput) -> AbortRequest:
    return AbortRequest(run_id=apply.run_id, actor="temporal", reason="the workflow was cancelled")
