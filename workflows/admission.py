"""The admission of a submission: its run begins once; each request is answered, with a lease or not."""

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from activities.messages.stubs import SubmissionActivityStubs
from activities.messages.submission import AdmitRun, RunCommand
from qmtl_sdk.contracts.submission import Lease, SubmissionAck
from workflows.failures import refusal_of
from workflows.options import STORE


class Admission:
    """What the services decided about a run. `refusal` says why it could not begin."""

    def __init__(self, command: RunCommand, ack: SubmissionAck | None) -> None:
        self.ack = ack
        self.refusal: ApplicationError | None = None
        self._command = command

    async def admit(self, idempotency_key: str, lease: Lease | None) -> SubmissionAck:
        """Begin the run, and answer a request. Idempotent; call it under a lock.

        One transaction binds the strategy to the world, stores the diff and records the answer in the commit
        log: a retry after the end of the run starts no other run.

        Raises ApplicationError where the activity failed; `refusal` then ends the run, because a submission
        that can't begin must not wait for a runner.
        """
        if self.refusal is not None:
            raise self.refusal
        command = AdmitRun(
            **self._command.model_dump(),
            workflow_id=workflow.info().workflow_id,
            idempotency_key=idempotency_key,
            lease=lease,
        )
        try:
            ack = await workflow.execute_local_activity_method(
                SubmissionActivityStubs.admit_run,
                command,
                summary="bind to the world, add new nodes to the graph, record the answer",
                **STORE,
            )
        except ActivityError as error:
            if self.ack is not None:
                raise refusal_of(error) from error
            self.refusal = refusal_of(error)
            raise self.refusal from error
        self.ack = ack.model_copy(update={"lease": None})
        return ack
