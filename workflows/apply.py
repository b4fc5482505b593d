"""Two-phase apply: approval → freeze → drain → switch → unfreeze, and the way back from each.

1. The plan lies in the store, made when the apply was asked for: one list of named stages, shown to people and carried out here.
2. Approval: wait for enough people, or for one who rejects, or until the time is over. Nothing has changed so far.
3. Freeze: the fence refuses orders from here on, under a new epoch; sessions and Gateways are told and say that they have heard.
4. Drain: wait until no accepted order is open. Too long, or aborted: unfreeze, and nothing has changed.
5. Switch: activations, edges, queue bindings and the pinned fingerprint, in one transaction. Refused: restore, and stay frozen until an operator resumes the world.
6. Unfreeze, under a new epoch; again everyone says that they have heard.

Each step is done once for ever by the store, whatever is repeated here. An abort is taken at any moment before the switch.
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
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
        AwaitAcks,
        ConcludeApply,
        DirectApproval,
        DrainCommand,
        GateChange,
    )
    from activities.messages.stubs import ApplyActivityStubs
    from qmtl_sdk.contracts.applies import Approval
    from qmtl_sdk.contracts.durations import format_duration
    from qmtl_sdk.contracts.plans import AwaitApprovals, Drain, Freeze, Switch, Unfreeze
    from workflows.shared import FENCE, SEARCH_RUN, SEARCH_STAGE, STORE, WAIT, table


class EndedError(Exception):
    """The apply goes no further; `outcome` says what became of the world."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@workflow.defn
class ApplyWorkflow:
    @workflow.init
    def __init__(self, apply: ApplyInput) -> None:
        self._apply = apply
        self._plan: ApplyBrief | None = None
        self._votes: list[tuple[str, ApprovalSignal]] = []
        self._approvals: tuple[Approval, ...] = ()
        self._frozen: GateChange | None = None
        self._epoch = 0
        self._abort: AbortRequest | None = None
        self._draining: asyncio.Task[None] | None = None
        self._past_abort = False
        self._step, self._waits_for = "plan", ""
        self._notes: list[str] = []

    @workflow.run
    async def run(self, apply: ApplyInput) -> ApplyEnd:
        self._plan = await workflow.execute_local_activity_method(
            ApplyActivityStubs.apply_plan, apply, summary="read the plan", **STORE
        )
        try:
            for stage in self._plan.stages:
                await self._carry_out(stage)
            outcome, reason = "completed", ""
        except EndedError as end:
            outcome, reason = end.outcome, end.reason
        self._past_abort = True
        conclude = ConcludeApply(**apply.model_dump(), outcome=outcome, reason=reason)
        await workflow.execute_local_activity_method(
            ApplyActivityStubs.conclude_apply, conclude, summary=f"conclude: {outcome}", **STORE
        )
        self._show(outcome, reason)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return ApplyEnd(run_id=apply.run_id, outcome=outcome, reason=reason, epoch=self._epoch)

    async def _carry_out(self, stage: AwaitApprovals | Freeze | Drain | Switch | Unfreeze) -> None:
        self._give_way()
        self._show(stage.kind, stage.explain())
        if isinstance(stage, AwaitApprovals):
            await self._await_approvals(stage)
        elif isinstance(stage, Freeze):
            await self._freeze()
        elif isinstance(stage, Drain):
            await self._drain(stage)
        elif isinstance(stage, Switch):
            await self._switch()
        else:
            await self._unfreeze(stage)

    # approval

    async def _await_approvals(self, stage: AwaitApprovals) -> None:
        await workflow.execute_local_activity_method(
            ApplyActivityStubs.await_approval, self._apply, summary="wait for approvals", **STORE
        )
        deadline = workflow.now() + timedelta(seconds=stage.expires_s)
        await self._take_votes()  # what was said while an earlier run of this workflow was lost
        while not self._decided(stage):
            self._show("approval", self._missing(stage))
            left = deadline - workflow.now()
            try:
                await workflow.wait_condition(
                    lambda: bool(self._votes) or self._abort is not None,
                    timeout=max(left, timedelta(0)),
                    timeout_summary="waiting for approval",
                )
            except TimeoutError:
                raise EndedError(
                    "rolled_back", f"no approval within {format_duration(stage.expires_s)}"
                ) from None
            self._give_way()
            await self._take_votes()

    async def _take_votes(self) -> None:
        votes, self._votes = self._votes, []
        for verdict, vote in votes:
            if vote.approval_id.startswith("approval:"):
                continue  # the Gateway has stored it
            about = self._apply.model_dump()
            direct = DirectApproval(
                **about, approval_id=vote.approval_id, actor=vote.actor, verdict=verdict, reason=vote.reason
            )
            await workflow.execute_local_activity_method(
                ApplyActivityStubs.record_direct_approval,
                direct,
                summary="keep what came straight to Temporal",
                **STORE,
            )
        found = await workflow.execute_local_activity_method(
            ApplyActivityStubs.read_approvals, self._apply, summary="read what was said", **STORE
        )
        self._approvals = found.approvals

    def _decided(self, stage: AwaitApprovals) -> bool:
        """Whether enough have agreed. Raises EndedError where one who counts has said no."""
        no = next((vote for vote in self._approvals if vote.counts and vote.verdict == "reject"), None)
        if no is not None:
            raise EndedError("rolled_back", f"rejected by {no.actor}{f': {no.reason}' if no.reason else ''}")
        return len(self._agreed()) >= stage.required

    def _agreed(self) -> set[str]:
        return {vote.actor for vote in self._approvals if vote.counts and vote.verdict == "approve"}

    def _missing(self, stage: AwaitApprovals) -> str:
        left = stage.required - len(self._agreed())
        return f"waits for {left} more {'approval' if left == 1 else 'approvals'} by {' or '.join(stage.roles)} (not {stage.requested_by}): `qmtl world approve {self._apply.world_id} {self._apply.run_id}`"

    # freeze, drain, switch, unfreeze

    async def _freeze(self) -> None:
        try:
            self._frozen = await workflow.execute_activity_method(
                ApplyActivityStubs.freeze_world,
                self._apply,
                summary="freeze: refuse orders, raise the epoch",
                **FENCE,
            )
        except ActivityError as error:
            raise EndedError("rolled_back", f"not frozen: {_why(error)}") from error
        self._epoch = self._frozen.epoch

    async def _drain(self, stage: Drain) -> None:
        assert self._plan is not None and self._frozen is not None  # noqa: PT018  the stages before have run
        if self._abort is not None:
            await self._go_back(self._abort_reason())
        acks = next(item.ack_timeout_s for item in self._plan.stages if isinstance(item, Freeze))
        command = DrainCommand(
            **self._apply.model_dump(), frozen=self._frozen, timeout_s=stage.timeout_s, ack_timeout_s=acks
        )
        self._draining = asyncio.create_task(self._wait_drained(command))
        try:
            await self._draining
        except ActivityError as error:
            if not (is_cancelled_exception(error) and self._abort is not None):
                await self._go_back(f"not drained: {_why(error)}")
        except asyncio.CancelledError:
            if self._abort is None:
                raise
        self._draining = None
        if self._abort is not None:
            await self._go_back(self._abort_reason())

    async def _wait_drained(self, command: DrainCommand) -> None:
        heard = await workflow.execute_activity_method(
            ApplyActivityStubs.drain_world,
            command,
            summary="drain: wait for open orders and for who has heard",
            **WAIT,
        )
        if heard.missing:
            self._notes.append(f"not heard of the freeze in time: {', '.join(heard.missing[:10])}")

    async def _switch(self) -> None:
        self._past_abort = True
        try:
            await workflow.execute_activity_method(
                ApplyActivityStubs.switch_world,
                self._apply,
                summary="switch activations, edges, queues, fingerprint",
                **FENCE,
            )
        except ActivityError as error:
            self._show("restore", f"the switch was refused: {_why(error)}")
            await workflow.execute_activity_method(
                ApplyActivityStubs.restore_world, self._apply, summary="restore what was before", **FENCE
            )
            raise EndedError(
                "frozen",
                f"the switch was refused: {_why(error)}; what was before is restored, and the world stays frozen: `qmtl world resume {self._apply.world_id}`",
            ) from error

    async def _unfreeze(self, stage: Unfreeze) -> None:
        opened = await workflow.execute_activity_method(
            ApplyActivityStubs.unfreeze_world,
            self._apply,
            summary="unfreeze: take orders again, under a new epoch",
            **FENCE,
        )
        self._epoch = opened.epoch
        command = AwaitAcks(
            **self._apply.model_dump(), change=opened, phase="unfreeze", timeout_s=stage.ack_timeout_s
        )
        heard = await workflow.execute_activity_method(
            ApplyActivityStubs.await_acks, command, summary="wait for who has heard of the unfreeze", **WAIT
        )
        if heard.missing:
            self._notes.append(f"not heard of the unfreeze in time: {', '.join(heard.missing[:10])}")

    async def _go_back(self, reason: str) -> None:
        """Nothing was switched: open the world again as it was."""
        self._past_abort = True
        self._show("going back", reason)
        opened = await workflow.execute_activity_method(
            ApplyActivityStubs.unfreeze_world, self._apply, summary="unfreeze: nothing was switched", **FENCE
        )
        self._epoch = opened.epoch
        raise EndedError("rolled_back", reason)

    def _give_way(self) -> None:
        """Raises EndedError where an abort was asked for and nothing is frozen."""
        if self._abort is not None and self._frozen is None:
            raise EndedError("rolled_back", self._abort_reason())

    def _abort_reason(self) -> str:
        assert self._abort is not None  # the caller has looked
        return f"aborted by {self._abort.actor}{f': {self._abort.reason}' if self._abort.reason else ''}"

    # messages

    @workflow.update
    async def abort(self, request: AbortRequest) -> Aborted:
        self._abort = self._abort or request
        if self._draining is not None:
            self._draining.cancel()
        await workflow.wait_condition(lambda: self._past_abort)
        return Aborted(run_id=self._apply.run_id, step=self._step)

    @abort.validator
    def _may_abort(self, request: AbortRequest) -> None:
        if request.run_id != self._apply.run_id:
            raise ApplicationError(
                f"{request.run_id} is not under way, {self._apply.run_id} is", type="E_APPLY_ENDED"
            )
        if self._past_abort:
            raise ApplicationError(
                f"{self._apply.run_id} can't be aborted any more: it is at {self._step}",
                type="E_APPLY_SWITCHED",
            )

    @workflow.signal
    def approve(self, vote: ApprovalSignal) -> None:
        self._vote("approve", vote)

    @workflow.signal
    def reject(self, vote: ApprovalSignal) -> None:
        self._vote("reject", vote)

    def _vote(self, verdict: str, vote: ApprovalSignal) -> None:
        if vote.run_id and vote.run_id != self._apply.run_id:
            return  # for another apply
        if not vote.approval_id.startswith("approval:"):
            # Whatever id a hand-made signal claims, it gets one of its own: the same event of the history always the same.
            vote = vote.model_copy(
                update={
                    "approval_id": f"direct:{workflow.info().run_id}:{workflow.info().get_current_history_length()}:{len(self._votes)}"
                }
            )
        self._votes.append((verdict, vote))

    @workflow.query
    def plan(self) -> ApplyView:
        said = tuple(
            f"{vote.actor} {vote.verdict} ({vote.via}{'' if vote.counts else ', does not count'})"
            for vote in self._approvals
        )
        return ApplyView(
            run_id=self._apply.run_id,
            title=self._plan.title if self._plan else "",
            step=self._step,
            waits_for=self._waits_for,
            approvals=said,
        )

    # what people see

    def _show(self, step: str, waits_for: str) -> None:
        self._step, self._waits_for = step, waits_for
        plan = self._plan
        assert plan is not None  # read first
        said = (
            "; ".join(
                f"{vote.actor}: {vote.verdict}{f' ({vote.reason})' if vote.reason else ''}{'' if vote.counts else ', direct, does not count'}"
                for vote in self._approvals
            )
            or "none yet"
        )
        lines = [
            f"**{step}**: {waits_for}" if waits_for else f"**{step}**",
            f"approvals: {said}",
            f"{plan.title}, asked for by {plan.requested_by}{f': {plan.reason}' if plan.reason else ''}",
        ]
        lines += [
            table(("what", "before", "after"), plan.diff),
            *(f"- left out: {text}" for text in plan.left_out),
            *(f"- {note}" for note in self._notes),
        ]
        lines.append(
            table(("stage", "what happens"), tuple((stage.kind, stage.explain()) for stage in plan.stages))
        )
        workflow.set_current_details("\n\n".join(lines)[:18_000])
        workflow.upsert_search_attributes(
            [SEARCH_STAGE.value_set(step), SEARCH_RUN.value_set(self._apply.run_id)]
        )


def _why(error: ActivityError) -> str:
    cause = error.cause
    return f"{cause.message} [{cause.type}]" if isinstance(cause, ApplicationError) else str(cause or error)
