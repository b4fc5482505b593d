"""The activities of a submission after its admission: measure or reject, request the judgment, conclude."""

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.messages.evaluation import EvaluationRequest, RequestEvaluation
from activities.messages.stubs import EvaluationActivityStubs, SubmissionActivityStubs
from activities.messages.submission import (
    ConcludeSubmission,
    Conclusion,
    MeasureCommand,
    RejectCommand,
    RunCommand,
    SubmissionInput,
)
from qmtl_sdk.contracts.submission import EvidenceRef
from workflows.failures import RejectionError, final_rejection
from workflows.ids import submission_request_id
from workflows.markdown import one_line
from workflows.options import SLOW, STORE


class SubmissionSteps:
    """Calls the activities of one run. Each stores its result once for the run."""

    def __init__(self, submission: SubmissionInput, command: RunCommand) -> None:
        self._submission = submission
        self._command = command

    async def measure(self, evidence: EvidenceRef) -> dict[str, float | None]:
        """Measure the uploaded returns. Raises RejectionError where that would fail again."""
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

    async def reject(self, error: RejectionError, examined: bool) -> None:
        """Store why there are no metrics. `examined`: the service refuses the returns."""
        command = RejectCommand(
            **self._command.model_dump(),
            strategy_id=self._submission.strategy_id,
            error_code=error.code,
            error=error.message,
            examined=examined,
        )
        await workflow.execute_local_activity_method(
            SubmissionActivityStubs.reject,
            command,
            summary=one_line(f"store why there are no metrics: {error.message}"),
            **STORE,
        )

    async def request_judgment(self) -> None:
        """Request a judgment of the world, with a reply to this execution."""
        world_id = self._submission.world_id
        request = EvaluationRequest(
            request_id=submission_request_id(self._command.run_id),
            reason=f"{self._submission.label} was submitted",
            reply_to=workflow.info().workflow_id,
            reply_run=workflow.info().run_id,
        )
        await workflow.execute_local_activity_method(
            EvaluationActivityStubs.request_evaluation,
            RequestEvaluation(store_id=self._submission.store_id, world_id=world_id, request=request),
            summary=one_line(f"request a judgment of world {world_id}"),
            **STORE,
        )

    async def conclude(self, request_id: str, error: RejectionError | None) -> Conclusion:
        """Store the outcome: the decision of `request_id`, or the error."""
        command = ConcludeSubmission(
            store_id=self._submission.store_id,
            run_id=self._command.run_id,
            world_id=self._submission.world_id,
            strategy_id=self._submission.strategy_id,
            request_id=request_id,
            error_code=error.code if error else "",
            error=error.message if error else "",
        )
        return await workflow.execute_local_activity_method(
            SubmissionActivityStubs.conclude, command, summary="store the outcome", **STORE
        )
