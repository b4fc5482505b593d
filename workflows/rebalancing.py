"""Rebalancing: approval → begin → reductions → increases → end. Several worlds, one plan.

1. The plan is in the store since the run was requested.
2. Approval: wait for as many people as the strictest world asks for. Nothing has changed so far.
3. Begin: in one transaction the worlds are locked against applies and other rebalancings, everything that the
   plan rests on is checked again, and the shares become the new ones. If anything has changed, the run is
   rolled back: nothing is.
4. Reductions, then increases: orders in batches through the fence, until all have ended. At the time limit,
   counted from the beginning, open ones are cancelled.
5. End: what each trade came to is written, and the worlds are unlocked. What is missing makes it partial.

An abort ends the run at any point: what is open is cancelled, what was filled stays. The store does each step
once, however often an activity is repeated; a run that replaces a lost one goes on where that was. A
cancellation through Temporal is an abort.
"""

from contextlib import suppress
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.messages.apply import AbortRequest, ApprovalSignal
    from activities.messages.rebalancing import (
        AbortRebalancing,
        AwaitRebalanceApproval,
        ConcludeRebalancing,
        OrderTrades,
        RebalanceEnd,
        RebalanceView,
        RebalancingBrief,
        RebalancingInput,
    )
    from activities.messages.stubs import RebalancingActivityStubs
    from qmtl_sdk.contracts.applies import Approval, approvers, rejection
    from qmtl_sdk.contracts.durations import format_duration
    from qmtl_sdk.contracts.rebalance_runs import RebalanceOutcome
    from workflows.apply_view import approval_text
    from workflows.failures import failure_text
    from workflows.markdown import one_line, with_reason
    from workflows.options import STORE, WAIT
    from workflows.rebalancing_view import missing_approvals, rebalancing_details
    from workflows.search_attributes import SEARCH_RUN, SEARCH_STEP
    from workflows.waiting import run_to_the_end, wait_until


class _EndedError(Exception):
    """The run ends before its worlds are locked."""

    def __init__(self, outcome: RebalanceOutcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome: RebalanceOutcome = outcome
        self.reason = reason


@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)
class RebalancingWorkflow:
    """Carries out the plan of one rebalancing."""

    @workflow.init
    def __init__(self, run: RebalancingInput) -> None:
        self._run = run
        self._plan: RebalancingBrief | None = None
        self._approvals: tuple[Approval, ...] = ()
        self._unread = False
        self._abort: AbortRequest | None = None
        self._cancelled = False
        self._step = "plan"
        self._waits_for = ""
        self._notes: list[str] = []

    @workflow.run
    async def run(self, run: RebalancingInput) -> RebalanceEnd:
        """Carry out the plan. The result says how the run ended, and what it has done."""
        return await run_to_the_end(self._carry_out(run), self._cancel)

    async def _carry_out(self, run: RebalancingInput) -> RebalanceEnd:
        plan = await workflow.execute_local_activity_method(
            RebalancingActivityStubs.rebalancing_plan, run, summary="read the plan", **STORE
        )
        self._plan = plan
        outcome: RebalanceOutcome = "completed"
        reason = ""
        try:
            begun_at = plan.begun_at or await self._begin(plan)
            until = begun_at + timedelta(seconds=plan.time_limit_s)
            await self._order("reductions", until)
            await self._order("increases", until)
        except _EndedError as ended:
            outcome, reason = ended.outcome, ended.reason
        if self._abort is not None:
            outcome, reason = "aborted", with_reason(f"aborted by {self._abort.actor}", self._abort.reason)
        end = await self._conclude(outcome, reason)
        self._show(end.outcome, end.reason)
        await wait_until(workflow.all_handlers_finished)
        return end

    async def _begin(self, plan: RebalancingBrief) -> datetime:
        """Wait for approvals, then lock the worlds. Returns when they were locked."""
        await self._await_approvals(plan)
        self._show("begin", "locks the worlds and changes their shares")
        try:
            begun = await workflow.execute_activity_method(
                RebalancingActivityStubs.begin_rebalancing,
                self._run,
                summary=one_line(f"lock {', '.join(plan.worlds)}, change their shares"),
                **WAIT,
            )
        except ActivityError as error:
            raise _EndedError("rolled_back", f"nothing was changed: {failure_text(error)}") from error
        return begun.at

    async def _await_approvals(self, plan: RebalancingBrief) -> None:
        until = workflow.now() + timedelta(seconds=plan.approve_within_s)
        while True:
            self._unread = False
            found = await workflow.execute_local_activity_method(
                RebalancingActivityStubs.await_rebalance_approval,
                AwaitRebalanceApproval(**self._run.model_dump(), until=until),
                summary="read the approvals",
                **STORE,
            )
            self._approvals, until = found.approvals, found.until
            if (rejected := rejection(self._approvals)) is not None:
                raise _EndedError(
                    "rolled_back", with_reason(f"rejected by {rejected.actor}", rejected.reason)
                )
            await self._end_if_aborted()
            missing = plan.approvals_required - len(approvers(self._approvals))
            if missing <= 0:
                return
            text = missing_approvals(self._run.run_id, plan, missing)
            self._show("approval", text)
            await self._continue_as_new()
            try:
                await wait_until(
                    lambda: self._unread or self._ends_now,
                    max(until - workflow.now(), timedelta(0)),
                    one_line(text),
                )
            except TimeoutError:
                limit = format_duration(plan.approve_within_s)
                raise _EndedError("rolled_back", f"no approval within {limit}") from None

    async def _continue_as_new(self) -> None:
        """Continue as new if the history is long: all that was given so far is in the store."""
        if not workflow.info().is_continue_as_new_suggested():
            return
        await wait_until(lambda: self._ends_now or workflow.all_handlers_finished())
        if not self._ends_now and not self._unread:
            workflow.continue_as_new(self._run)

    @property
    def _ends_now(self) -> bool:
        return self._abort is not None or self._cancelled

    async def _end_if_aborted(self) -> None:
        """Raises _EndedError if the run was aborted. A cancellation is stored as an abort first."""
        if self._cancelled and self._abort is None:
            request = AbortRequest(
                run_id=self._run.run_id, actor="temporal", reason="the workflow was cancelled"
            )
            await workflow.execute_local_activity_method(
                RebalancingActivityStubs.abort_rebalancing,
                AbortRebalancing(**self._run.model_dump(), actor=request.actor, reason=request.reason),
                summary="store the cancellation as an abort",
                **STORE,
            )
            self._abort = request
        if self._abort is not None:
            raise _EndedError("aborted", "")

    async def _order(self, step: str, until: datetime) -> None:
        """Order the trades of a step and wait for their ends; an abort ends the wait by the store."""
        await self._end_if_aborted()
        self._show(step, f"orders {step}, and waits for their fills until {until:%H:%M:%S} UTC")
        ordering = workflow.start_activity_method(
            RebalancingActivityStubs.order_trades,
            OrderTrades(**self._run.model_dump(), step=step, until=until),
            summary=one_line(f"order {step} and wait for their fills"),
            **WAIT,
        )
        while not ordering.done():
            await wait_until(lambda: ordering.done() or (self._cancelled and self._abort is None))
            if not ordering.done():
                with suppress(_EndedError):  # the activity sees the abort in the store, and ends
                    await self._end_if_aborted()
        try:
            done = ordering.result()
        except ActivityError as error:
            self._notes.append(f"{step} stopped: {failure_text(error)}")
            return
        if done.still_open:
            self._notes.append(f"{done.still_open} orders of the {step} had not ended")

    async def _conclude(self, outcome: RebalanceOutcome, reason: str) -> RebalanceEnd:
        text = "; ".join([*filter(None, [reason]), *self._notes])
        return await workflow.execute_activity_method(
            RebalancingActivityStubs.conclude_rebalancing,
            ConcludeRebalancing(**self._run.model_dump(), outcome=outcome, reason=text),
            summary=one_line(f"end the run as {outcome}, unlock its worlds"),
            **WAIT,
        )

    def _cancel(self) -> None:
        self._cancelled = True

    # messages

    @workflow.signal
    def abort(self, request: AbortRequest) -> None:
        """Abort the run. The store has it already, so that nothing is ordered any more."""
        self._abort = self._abort or request

    @workflow.signal
    def approve(self, _: ApprovalSignal) -> None:
        """Read the approvals: one was stored. What was not stored by a Gateway does not count."""
        self._unread = True

    @workflow.signal
    def reject(self, _: ApprovalSignal) -> None:
        """Read the approvals: a rejection was stored."""
        self._unread = True

    @workflow.query
    def plan(self) -> RebalanceView:
        """Return the present step, and what it waits for."""
        return RebalanceView(
            run_id=self._run.run_id,
            title=self._plan.title if self._plan else "",
            step=self._step,
            waits_for=self._waits_for,
            approvals=tuple(approval_text(item) for item in self._approvals),
        )

    def _show(self, step: str, waits_for: str) -> None:
        assert self._plan is not None  # read first
        self._step = step
        self._waits_for = waits_for
        now = f"{step}: {waits_for}" if waits_for else step
        workflow.set_current_details(rebalancing_details(self._plan, now, self._approvals, self._notes))
        run_id = self._run.run_id
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(step), SEARCH_RUN.value_set(run_id)])
