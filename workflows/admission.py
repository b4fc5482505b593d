"""The admission of a submission: begin its run, store its diff, record the answer. Each is done once."""

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from activities.messages.stubs import SubmissionActivityStubs
from activities.messages.submission import (
    DiffCommand,
    DiffResult,
    RecordAdmission,
    RunCommand,
    RunContextBody,
)
from qmtl_sdk.contracts.submission import SubmissionAck
from workflows.failures import refusal_of
from workflows.options import STORE
from workflows.search_attributes import SEARCH_DOMAIN


class Admission:
    """What the services decided about a run. `refusal` says why it could not begin."""

    def __init__(self, command: RunCommand) -> None:
        self.run: RunContextBody | None = None
        self.diff: DiffResult | None = None
        self.refusal: ApplicationError | None = None
        self._command = command

    @property
    def begun(self) -> bool:
        """Whether the run has its context and its diff."""
        return self.run is not None and self.diff is not None

    async def begin(self) -> tuple[RunContextBody, DiffResult]:
        """Bind the run to the world and store its diff. Idempotent; call it under a lock.

        Raises ApplicationError where an activity failed; `refusal` then ends the run, because a submission
        that can't begin must not wait for a runner.
        """
        if self.refusal is not None:
            raise self.refusal
        if self.run is not None and self.diff is not None:
            return self.run, self.diff
        try:
            return await self._bind_and_diff()
        except ActivityError as error:
            self.refusal = refusal_of(error)
            raise self.refusal from error

    async def _bind_and_diff(self) -> tuple[RunContextBody, DiffResult]:
        self.run = await workflow.execute_local_activity_method(
            SubmissionActivityStubs.begin_run,
            self._command,
            summary="bind to the world, decide the context",
            **STORE,
        )
        domain = self.run.context.execution_domain.value
        self.diff = await workflow.execute_local_activity_method(
            SubmissionActivityStubs.diff,
            DiffCommand(**self._command.model_dump(), execution_domain=domain),
            summary="add new nodes to the graph, plan queues",
            **STORE,
        )
        workflow.upsert_search_attributes([SEARCH_DOMAIN.value_set(domain)])
        return self.run, self.diff

    async def record(self, idempotency_key: str, ack: SubmissionAck) -> None:
        """Record in the commit log which run admitted a submission, and the answer."""
        admission = RecordAdmission(
            store_id=self._command.store_id,
            idempotency_key=idempotency_key,
            run_id=self._command.run_id,
            ack=ack,
        )
        await workflow.execute_local_activity_method(
            SubmissionActivityStubs.record_admission,
            admission,
            summary="record the answer in the commit log",
            **STORE,
        )
