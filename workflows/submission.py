"""A submission: admit → compute under a lease → measure → evaluate → conclude.

1. `admit`, an update that is sent together with the start, begins the run, stores the diff and answers with
   the queue map, the context and a lease. The same runner may send it again and gets the same lease; another
   runner gets no lease while the first computes. The answer is recorded in the commit log before it is
   returned, so that a retry after the end of the run starts no other run.
2. The lease is an activity that a runner outside completes (workflows.compute_lease). Its heartbeats carry
   progress.
3. A lease ends without evidence when it times out (the runner is gone) or is given back. The workflow then
   waits for another runner, and grants it a new lease with the last progress. If the strategy can't be
   computed at all, the submission is judged as rejected.
4. The service measures the uploaded returns. Returns that don't match the run are rejected in the same way.
5. One judgment of the world serves all submissions that wait for it. Then the outcome is stored.

A run that waits long, for runners or for its judgment, continues as new. It keeps its run_id, which is that
of the first execution. A cancellation through Temporal is the signal `cancel`.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.messages.submission import (
        Admit,
        Conclusion,
        RunCommand,
        SubmissionInput,
        SubmissionProgress,
        SubmissionProgressSoFar,
    )
    from qmtl_sdk.contracts.domains import Domain
    from qmtl_sdk.contracts.submission import EvidenceRef, SubmissionAck
    from workflows.admission import Admission
    from workflows.compute_lease import ComputeLease
    from workflows.failures import RejectionError
    from workflows.ids import submission_request_id
    from workflows.markdown import one_line
    from workflows.search_attributes import SEARCH_DOMAIN, SEARCH_STEP
    from workflows.submission_steps import SubmissionSteps
    from workflows.submission_view import conclusion_text, submission_details, waiting_text
    from workflows.waiting import run_to_the_end, wait_until

# A judgment that does not come is requested again: its workflow may have been terminated by hand.
REQUEST_AGAIN_AFTER = timedelta(minutes=1)


@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)
class SubmissionWorkflow:
    """One run of a submission, from its admission to its outcome."""

    @workflow.init
    def __init__(self, submission: SubmissionInput) -> None:
        self._submission = submission
        so_far = submission.so_far
        self._command = RunCommand(
            store_id=submission.store_id,
            run_id=so_far.run_id if so_far else workflow.info().run_id,
            log_key=submission.log_key,
            world_id=submission.world_id,
        )
        self._admission = Admission(self._command, so_far.ack if so_far else None)
        self._lease = ComputeLease(self._command, submission.heartbeat_timeout_s)
        self._steps = SubmissionSteps(submission, self._command)
        self._admitting = asyncio.Lock()  # two updates at once must not both begin the run
        self._judged = False
        self._past_computing = False
        self._status = "waiting to be admitted"
        self._metrics: dict[str, float | None] = {}
        self._error: RejectionError | None = None
        if so_far is not None:
            self._lease.granted = so_far.leases
            self._lease.reached = so_far.reached
            self._past_computing = so_far.judging
            self._metrics = so_far.metrics
            self._error = RejectionError(so_far.error_code, so_far.error) if so_far.error_code else None

    @workflow.run
    async def run(self, submission: SubmissionInput) -> Conclusion:
        """Run the submission to its outcome. Fails only if it could not be admitted."""
        return await run_to_the_end(self._carry_out(), self._lease.cancel)

    async def _carry_out(self) -> Conclusion:
        if not self._past_computing:
            self._error = await self._compute_and_measure()
        self._past_computing = True
        if self._admission.refusal is not None:
            await wait_until(workflow.all_handlers_finished)
            raise self._admission.refusal
        request_id = await self._evaluate() if self._is_judged else ""
        conclusion = await self._steps.conclude(request_id, self._error)
        self._show(conclusion.status, conclusion_text(conclusion))
        await wait_until(workflow.all_handlers_finished)
        return conclusion

    async def _compute_and_measure(self) -> RejectionError | None:
        """Compute and measure. Returns None when the metrics are stored, otherwise why there are none."""
        evidence: EvidenceRef | None = None
        try:
            while (evidence := await self._compute()) is None:
                await self._continue_as_new()
            self._show("measuring", "measuring the returns")
            self._metrics = await self._steps.measure(evidence)
            return None
        except RejectionError as error:
            self._past_computing = True  # no runner gets a lease while the rejection is judged
            if self._admission.ack is not None and not self._lease.cancelled:
                await self._steps.reject(error, examined=evidence is not None)
            return error

    async def _compute(self) -> EvidenceRef | None:
        """Wait for a runner and its evidence. Returns None if the runner is gone; its progress stays."""
        waiting = waiting_text(self._submission, self._lease.reached)
        if not self._lease.runner and self._admission.ack is not None:
            self._show("waiting", waiting)
        limit = timedelta(seconds=self._submission.abandon_after_s)
        try:
            await wait_until(
                lambda: bool(self._lease.runner or self._admission.refusal or self._lease.cancelled),
                limit,
                one_line(waiting),
            )
        except TimeoutError:
            raise RejectionError("E_ABANDONED", f"no runner computed it within {limit}") from None
        if self._admission.refusal is not None:
            raise RejectionError(self._admission.refusal.type or "E_INTERNAL", str(self._admission.refusal))
        if self._lease.cancelled:
            raise RejectionError.cancelled()
        self._show("computing", f"{self._lease.runner} computes {self._submission.nodes} nodes")
        return await self._lease.hold()

    async def _evaluate(self) -> str:
        """Have the world judged. Returns the request_id under which the decision is found."""
        world_id = self._submission.world_id
        self._show("evaluating", f"waiting for the judgment of world {world_id}")
        while not self._judged:  # a repeated request gets the same judgment
            await self._steps.request_judgment()
            with suppress(TimeoutError):
                await wait_until(
                    lambda: self._judged,
                    REQUEST_AGAIN_AFTER,
                    one_line(f"waiting for the judgment of world {world_id}"),
                )
            if not self._judged:
                await self._continue_as_new()
        return submission_request_id(self._command.run_id)

    async def _continue_as_new(self) -> None:
        """Continue as new if the history is long. Returns instead if there is something to do here."""
        ack = self._admission.ack
        if ack is None or not workflow.info().is_continue_as_new_suggested():
            return
        await wait_until(workflow.all_handlers_finished)
        if self._lease.runner or self._lease.cancelled or self._judged:
            return
        so_far = SubmissionProgressSoFar(
            run_id=self._command.run_id,
            ack=ack,
            leases=self._lease.granted,
            reached=self._lease.reached,
            judging=self._past_computing,
            metrics=self._metrics,
            error_code=self._error.code if self._error else "",
            error=self._error.message if self._error else "",
        )
        workflow.continue_as_new(self._submission.model_copy(update={"so_far": so_far}))

    # messages

    @workflow.update
    async def admit(self, request: Admit) -> SubmissionAck:
        """Admit the submission and grant a lease if a runner is needed. Idempotent for the same runner."""
        async with self._admitting:
            first = self._admission.ack is None
            granted = bool(request.runner) and self._needs_runner
            lease = self._lease.offer if granted else self._lease.lease_of(request.runner)
            ack = await self._admission.admit(request.idempotency_key, lease)
            if first:
                workflow.upsert_search_attributes(
                    [SEARCH_DOMAIN.value_set(ack.context.execution_domain.value)]
                )
            if granted and self._needs_runner:
                self._lease.grant(request.runner)
            return ack

    @admit.validator
    def _validate_admit(self, request: Admit) -> None:
        if request.run_id and request.run_id != self._command.run_id:
            raise ApplicationError(f"run {request.run_id} has ended", type="E_LEASE_LOST")

    @workflow.signal
    def judged(self, request_id: str) -> None:
        """Receive the reply of the evaluation: the decision is stored."""
        self._judged = True

    @workflow.signal
    def cancel(self) -> None:
        """End the submission without a judgment."""
        self._lease.cancel()

    @workflow.query
    def progress(self) -> SubmissionProgress:
        """Return the present status, and whether a runner is needed."""
        return SubmissionProgress(
            run_id=self._command.run_id,
            step=self._status,
            needs_runner=self._needs_runner,
            lease_id=self._lease.lease_id,
            reached=self._lease.reached,
        )

    @property
    def _needs_runner(self) -> bool:
        return not self._lease.runner and not self._past_computing

    @property
    def _is_judged(self) -> bool:
        """Whether the world is judged: not for a shadow run, nor for one that was cancelled in time."""
        ack = self._admission.ack
        cancelled = self._error is not None and self._error.code == "E_CANCELLED"
        return ack is not None and ack.context.execution_domain is not Domain.SHADOW and not cancelled

    def _show(self, step: str, status: str) -> None:
        self._status = status
        workflow.set_current_details(
            submission_details(status, self._submission, self._admission.ack, self._metrics)
        )
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(step)])
