"""The Gateway's calls to Temporal about submissions: write to the commit log first, then start the workflow.

A crash between the two loses nothing: `recover` starts what the log holds and no run has admitted. Heartbeats
and results of runners go to the lease. Every call may be repeated.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    AsyncActivityHandle,
    Client,
    WithStartWorkflowOperation,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.messages.evaluation import EvaluationInput, EvaluationRequest, RequestEvaluation
from activities.messages.submission import (
    Admit,
    Conclusion,
    RunContextBody,
    SubmissionInput,
    SubmissionProgress,
)
from activities.submissions.activities import AnsweredRequests
from activities.submissions.context import asks_for_shadow
from activities.submissions.store import CommitLogStore, RunStore
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import (
    EvidenceRef,
    Heartbeat,
    LeaseFailure,
    StrategySubmit,
    SubmissionAck,
    SubmissionOutcome,
)
from temporal.client import ended_is_unavailable, is_unavailable, retry_while_unavailable
from temporal.plugin import qmtl_error
from workflows.evaluation import CONTINUES_AS_NEW, EvaluationWorkflow
from workflows.ids import split_lease_id, submission_id_of
from workflows.options import WORKFLOW_QUEUE, evaluation_options, submission_options
from workflows.submission import SubmissionWorkflow

# Seconds in which the activity of a granted lease starts.
_LEASE_BEGINS_S = 15.0

_log = structlog.get_logger()


class SubmissionService:
    """Admits submissions, forwards what runners send, and reads how runs end."""

    def __init__(
        self,
        client: Client,
        store_id: str,
        log: CommitLogStore,
        runs: RunStore,
        decisions: AnsweredRequests,
        heartbeat_timeout_s: float,
    ) -> None:
        self._client = client
        self._store_id = store_id
        self._log = log
        self._runs = runs
        self._decisions = decisions
        self._heartbeat_s = heartbeat_timeout_s

    async def submit(self, submit: StrategySubmit, actor: str) -> SubmissionAck:
        """Admit a submission. Idempotent: the same key and body get the same answer.

        Raises QmtlError, also for a submission that was refused before.
        """
        entry = await asyncio.to_thread(self._log.append, submit, actor)
        if entry.ack is not None:
            return await self._lease_for(submit, entry.ack)
        if entry.refused is not None:
            raise QmtlError(
                entry.refused, "this submission was refused before", "submit again with a new idempotency key"
            )
        return await self._admit(submit)

    async def _lease_for(self, submit: StrategySubmit, ack: SubmissionAck) -> SubmissionAck:
        """Return the recorded answer; add a lease if a recovery, which requests none, admitted it."""
        if ack.lease is not None or not submit.runner:
            return ack
        handle = self._client.get_workflow_handle_for(
            SubmissionWorkflow.run, ack.workflow_id, run_id=ack.run_id
        )
        ask = Admit(idempotency_key=submit.idempotency_key, runner=submit.runner)
        try:
            return await retry_while_unavailable(
                lambda: handle.execute_update(
                    SubmissionWorkflow.admit, ask, id=f"{submit.idempotency_key}:{submit.runner}"
                )
            )
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return ack  # the run has ended: its outcome is stored

    async def recover(self) -> int:
        """Start submissions that an earlier Gateway logged and no run admitted. Returns their number."""
        waiting = await asyncio.to_thread(self._log.waiting)
        for entry in waiting:
            try:
                submit = await asyncio.to_thread(self._log.body, entry.idempotency_key)
                await self._admit(submit.model_copy(update={"runner": ""}))
            except QmtlError:
                pass  # a refusal is recorded in the log for the caller's retry
            except Exception as error:  # a body that cannot be read, or a refusal of Temporal
                _log.warning("a submission could not be started", key=entry.idempotency_key, why=repr(error))
        return len(waiting)

    async def _admit(self, submit: StrategySubmit) -> SubmissionAck:
        try:
            return await retry_while_unavailable(lambda: self._update_with_start(submit))
        except WorkflowUpdateFailedError as error:
            if not isinstance(error.cause, ApplicationError):
                raise
            refusal = qmtl_error(error.cause)
            await asyncio.to_thread(self._log.refuse, submit.idempotency_key, refusal.code)
            raise refusal from error

    async def _update_with_start(self, submit: StrategySubmit) -> SubmissionAck:
        start = _start_operation(self._store_id, self._heartbeat_s, submit)
        ask = Admit(idempotency_key=submit.idempotency_key, runner=submit.runner)
        try:
            return await self._client.execute_update_with_start_workflow(
                SubmissionWorkflow.admit, ask, start_workflow_operation=start, id=submit.idempotency_key
            )
        except RPCError as error:
            raise ended_is_unavailable(error) from error

    async def heartbeat(self, lease_id: str, heartbeat: Heartbeat) -> None:
        """Forward a runner's heartbeat. Raises QmtlError: E_LEASE_UNKNOWN, E_LEASE_LOST."""
        await self._on_lease(lease_id, lambda handle: handle.heartbeat(heartbeat))

    async def complete(self, lease_id: str, evidence: EvidenceRef) -> None:
        """Complete a lease with its evidence. Raises QmtlError: E_LEASE_UNKNOWN, E_LEASE_LOST."""
        await self._on_lease(lease_id, lambda handle: handle.complete(evidence))

    async def fail(self, lease_id: str, failure: LeaseFailure) -> None:
        """Give a lease back, or end it for good. Raises QmtlError: E_LEASE_UNKNOWN, E_LEASE_LOST."""
        error = ApplicationError(
            failure.message, failure.progress.json_dict(), type=failure.code, non_retryable=failure.final
        )
        await self._on_lease(lease_id, lambda handle: handle.fail(error))

    async def lease_run(self, lease_id: str) -> RunContextBody:
        """Return the run that a lease belongs to. Raises QmtlError (E_LEASE_UNKNOWN)."""
        run_id, _ = split_lease_id(lease_id)
        run = await asyncio.to_thread(self._runs.run, run_id)
        if run is None:
            raise _lease_unknown(lease_id)
        return run

    async def _on_lease(self, lease_id: str, call: Callable[[AsyncActivityHandle], Awaitable[None]]) -> None:
        run = await self.lease_run(lease_id)
        _, activity_id = split_lease_id(lease_id)
        handle = self._client.get_async_activity_handle(
            workflow_id=submission_id_of(run), run_id=run.run_id, activity_id=activity_id
        )
        deadline = time.monotonic() + _LEASE_BEGINS_S
        while True:
            try:
                return await retry_while_unavailable(lambda: call(handle))
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                progress = await self.progress(run)
                if progress is None or progress.lease_id != lease_id or time.monotonic() > deadline:
                    raise QmtlError(
                        "E_LEASE_LOST",
                        "the lease has ended: it timed out, was given back, or the submission is past it",
                        "submit again; the computation resumes where it stopped",
                    ) from error
            await asyncio.sleep(0.05)

    async def progress(self, run: RunContextBody) -> SubmissionProgress | None:
        """Query a run's progress. Returns None if its workflow can't answer now."""
        handle = self._client.get_workflow_handle_for(
            SubmissionWorkflow.run, submission_id_of(run), run_id=run.run_id
        )
        try:
            return await retry_while_unavailable(
                lambda: handle.query(SubmissionWorkflow.progress, rpc_timeout=timedelta(seconds=5)),
                limit_s=5.0,
            )
        except (RPCError, QmtlError) as error:
            _log.info("the progress of a run can't be read", run_id=run.run_id, why=str(error))
            return None

    async def outcome(self, run: RunContextBody, wait_s: float) -> SubmissionOutcome | None:
        """Wait for the outcome of a run, `wait_s` seconds at most. Returns None if it has not ended.

        Raises QmtlError: E_CANCELLED where its workflow ended without an outcome.
        """
        deadline = time.monotonic() + wait_s
        handle: WorkflowHandle[SubmissionWorkflow, object] = self._client.get_workflow_handle(
            submission_id_of(run), run_id=run.run_id
        )
        while True:
            outcome = await asyncio.to_thread(self._runs.outcome, run.run_id)
            left = deadline - time.monotonic()
            if outcome is not None or left <= 0:
                return outcome
            try:
                await asyncio.wait_for(handle.result(follow_runs=False), min(left, 5.0))
            except TimeoutError:
                continue
            except WorkflowFailureError as error:
                raise QmtlError(
                    "E_CANCELLED", f"the submission ended without a decision: {error.cause}", "submit again"
                ) from error
            except (RPCError, RuntimeError) as error:
                if not is_unavailable(error):
                    raise
                await asyncio.sleep(0.2)

    async def decide(
        self, world_id: str, request_id: str, reason: str, requested_by: str
    ) -> DecisionEnvelope:
        """Judge the world now. Idempotent: a repeated `request_id` returns the first decision."""
        command = RequestEvaluation(
            store_id=self._store_id,
            world_id=world_id,
            request=EvaluationRequest(request_id=request_id, reason=reason, requested_by=requested_by),
        )
        await retry_while_unavailable(lambda: _evaluate(self._client, command))
        decision = await asyncio.to_thread(self._decisions.answer, request_id)
        assert decision is not None  # the update has returned, so it is stored
        return decision

    async def workers(self) -> int:
        """Count the workers that poll for workflow tasks."""
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=WORKFLOW_QUEUE),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        answer = await retry_while_unavailable(
            lambda: self._client.workflow_service.describe_task_queue(request, timeout=timedelta(seconds=3)),
            limit_s=3.0,
        )
        return len(answer.pollers)


def _start_operation(
    store_id: str, heartbeat_timeout_s: float, submit: StrategySubmit
) -> WithStartWorkflowOperation[SubmissionWorkflow, Conclusion]:
    submission = SubmissionInput(
        store_id=store_id,
        log_key=submit.idempotency_key,
        world_id=submit.world_id,
        strategy_id=submit.dag.strategy_id,
        name=submit.meta.name,
        nodes=len(submit.dag.nodes),
        heartbeat_timeout_s=heartbeat_timeout_s,
    )
    options = submission_options(
        submit.world_id, submission.strategy_id, submission.label, asks_for_shadow(submit)
    )
    return WithStartWorkflowOperation(SubmissionWorkflow.run, submission, **options)


async def _evaluate(client: Client, command: RequestEvaluation) -> None:
    world = EvaluationInput(store_id=command.store_id, world_id=command.world_id)
    start = WithStartWorkflowOperation(EvaluationWorkflow.run, world, **evaluation_options(command.world_id))
    try:
        await client.execute_update_with_start_workflow(
            EvaluationWorkflow.evaluate,
            command.request,
            start_workflow_operation=start,
            id=command.request.request_id,
        )
    except WorkflowUpdateFailedError as error:
        if not isinstance(error.cause, ApplicationError) or error.cause.type != CONTINUES_AS_NEW:
            raise
        # The next run takes it.
        raise RPCError(error.cause.message, RPCStatusCode.UNAVAILABLE, b"") from error
    except RPCError as error:
        raise ended_is_unavailable(error) from error


def _lease_unknown(lease_id: str) -> QmtlError:
    return QmtlError("E_LEASE_UNKNOWN", f"there is no lease {lease_id[:80]!r}", "use the lease_id of the ack")
