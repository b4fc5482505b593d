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
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationRequest, RequestEvaluation
    from activities.messages.stubs import EvaluationActivityStubs, SubmissionActivityStubs
    from activities.messages.submission import (
        Admit,
        ConcludeSubmission,
        Conclusion,
        MeasureCommand,
        RejectCommand,
        RunCommand,
        SubmissionInput,
        SubmissionProgress,
    )
    from qmtl_sdk.contracts.domains import Domain
    from qmtl_sdk.contracts.submission import EvidenceRef, SubmissionAck
    from workflows.admission import Admission
    from workflows.compute_lease import ComputeLease
    from workflows.failures import RejectionError, final_rejection
    from workflows.ids import submission_request_id
    from workflows.markdown import one_line
    from workflows.options import SLOW, STORE
    from workflows.search_attributes import SEARCH_STEP
    from workflows.submission_view import (
        acknowledgement,
        conclusion_text,
        submission_details,
        waiting_text,
    )

# A judgment that does not come is requested again: its workflow may have been terminated by hand.
REQUEST_AGAIN_AFTER = timedelta(minutes=1)


@workflow.defn
class SubmissionWorkflow:
    """One run of a submission, from its admission to its outcome."""

    @workflow.init
    def __init__(self, submission: SubmissionInput) -> None:
        self._submission = submission
        self._command = RunCommand(
            store_id=submission.store_id,
            run_id=workflow.info().run_id,
            log_key=submission.log_key,
            world_id=submission.world_id,
        )
        self._admission = Admission(self._command)
        self._lease = ComputeLease(self._command, submission.heartbeat_timeout_s)
        self._admitting = asyncio.Lock()  # two updates at once must not both begin the run
        self._judged = False
        self._past_computing = False
        self._status = "waiting to be admitted"
        self._metrics: dict[str, float | None] = {}

    @workflow.run
    async def run(self, submission: SubmissionInput) -> Conclusion:
        """Run the submission to its outcome. Fails only if it could not be admitted."""
        try:
            error = await self._compute_and_measure()
        except TimeoutError:
            limit = timedelta(seconds=submission.abandon_after_s)
            error = RejectionError("E_ABANDONED", f"no runner computed it within {limit}")
        self._past_computing = True
        if self._admission.refusal is not None:
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise self._admission.refusal
        evaluated = self._admission.run is not None and not self._lease.cancelled and not self._shadow
        request_id = await self._evaluate() if evaluated else ""
        conclusion = await self._conclude(request_id, error)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return conclusion

    async def _compute_and_measure(self) -> RejectionError | None:
        """Compute and measure. Returns None when the metrics are stored, otherwise why there are none."""
        try:
            while (evidence := await self._compute()) is None:
                pass
            self._show("measuring", "measuring the returns")
            self._metrics = await self._measure(evidence)
            return None
        except RejectionError as error:
            self._past_computing = True  # no runner gets a lease while the rejection is judged
            if self._admission.run is not None and not self._lease.cancelled:
                await self._reject(error)
            return error

    async def _compute(self) -> EvidenceRef | None:
        """Wait for a runner and its evidence. Returns None if the runner is gone; its progress stays."""
        if not self._lease.runner:
            self._show("waiting", waiting_text(self._submission, self._lease.reached))
        await workflow.wait_condition(
            lambda: bool(self._lease.runner) or self._admission.refusal is not None or self._lease.cancelled,
            timeout=timedelta(seconds=self._submission.abandon_after_s),
            timeout_summary=one_line(waiting_text(self._submission, self._lease.reached)),
        )
        if self._admission.refusal is not None:
            raise RejectionError(self._admission.refusal.type or "E_INTERNAL", str(self._admission.refusal))
        if self._lease.cancelled:
            raise RejectionError.cancelled()
        self._show("computing", f"{self._lease.runner} computes {self._submission.nodes} nodes")
        return await self._lease.hold()

    async def _measure(self, evidence: EvidenceRef) -> dict[str, float | None]:
        try:
            return await workflow.execute_activity_method(
                SubmissionActivityStubs.measure,
                MeasureCommand(**self._command.model_dump(), evidence=evidence),
                summary="compute the metrics from the returns",
                **SLOW,
            )
        except ActivityError as error:
            if (rejection := final_rejection(error, "E_RETURNS_INVALID")) is not None:
                raise rejection from error
            raise

    async def _reject(self, error: RejectionError) -> None:
        command = RejectCommand(
            **self._command.model_dump(),
            strategy_id=self._submission.strategy_id,
            error_code=error.code,
            error=error.message,
        )
        await workflow.execute_local_activity_method(
            SubmissionActivityStubs.reject,
            command,
            summary=one_line(f"store why there are no metrics: {error.message}"),
            **STORE,
        )

    async def _evaluate(self) -> str:
        """Have the world judged. Returns the request_id under which the decision is found."""
        world_id = self._submission.world_id
        self._show("evaluating", f"waiting for the judgment of world {world_id}")
        request = EvaluationRequest(
            request_id=submission_request_id(self._command.run_id),
            reason=f"{self._submission.label} was submitted",
            reply_to=workflow.info().workflow_id,
            reply_run=self._command.run_id,
        )
        command = RequestEvaluation(store_id=self._submission.store_id, world_id=world_id, request=request)
        while not self._judged:  # a repeated request gets the same judgment
            await workflow.execute_activity_method(
                EvaluationActivityStubs.request_evaluation,
                command,
                summary=one_line(f"request a judgment of world {world_id}"),
                **SLOW,
            )
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._judged,
                    timeout=REQUEST_AGAIN_AFTER,
                    timeout_summary=one_line(f"waiting for the judgment of world {world_id}"),
                )
        return request.request_id

    async def _conclude(self, request_id: str, error: RejectionError | None) -> Conclusion:
        command = ConcludeSubmission(
            store_id=self._submission.store_id,
            run_id=self._command.run_id,
            world_id=self._submission.world_id,
            strategy_id=self._submission.strategy_id,
            request_id=request_id,
            error_code=error.code if error else "",
            error=error.message if error else "",
        )
        conclusion = await workflow.execute_local_activity_method(
            SubmissionActivityStubs.conclude, command, summary="store the outcome", **STORE
        )
        self._show(conclusion.status, conclusion_text(conclusion))
        return conclusion

    # messages

    @workflow.update
    async def admit(self, request: Admit) -> SubmissionAck:
        """Admit the submission and grant a lease if a runner is needed. Idempotent for the same runner."""
        async with self._admitting:
            if not self._admission.begun and self._admission.refusal is None:
                self._show("admitting", "binding the strategy and its data to the world")
            run, diff = await self._admission.begin()
            if request.runner and self._needs_runner:
                self._lease.grant(request.runner)
            lease = self._lease.lease_of(request.runner)
            ack = acknowledgement(run, diff, workflow.info().workflow_id, lease)
            await self._admission.record(request.idempotency_key, ack)
            return ack

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
            step=self._status,
            needs_runner=self._needs_runner,
            lease_id=self._lease.lease_id,
            reached=self._lease.reached,
        )

    @property
    def _needs_runner(self) -> bool:
        return not self._lease.runner and not self._past_computing

    @property
    def _shadow(self) -> bool:
        """Whether it runs in shadow: computed and measured, but no evidence, so nothing is judged."""
        return (
            self._admission.run is not None and self._admission.run.context.execution_domain is Domain.SHADOW
        )

    def _show(self, step: str, status: str) -> None:
        self._status = status
        workflow.set_current_details(
            submission_details(
                status, self._submission, self._admission.run, self._admission.diff, self._metrics
            )
        )
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(step)])
