"""The Gateway's calls to Temporal about submissions: write to the commit log first, then start the workflow.

A crash between the two loses nothing: `recover` starts what the log holds and no run has admitted. Heartbeats
and results of runners go to the lease. Every call may be repeated.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import structlog
from temporalio.client import (
    AsyncActivityHandle,
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.messages.evaluation import EvaluationRequest, RequestEvaluation
from activities.messages.submission import (
    Admit,
    RunContextBody,
    SubmissionProgress,
)
from activities.submissions.activities import AnsweredRequests
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
from temporal.admission import admit
from temporal.client import is_unavailable, retriable_update_error, retry_while_unavailable
from temporal.evaluations import evaluate
from temporal.plugin import qmtl_error
from temporal.recorded import recorded
from temporal.recovery import Recovery
from workflows.ids import split_lease_id, submission_id_of, update_id
from workflows.submission import SubmissionWorkflow

# Seconds of retries of an update of a run that may have ended.
_LIMIT_S = 10.0

# Seconds in which the activity of a granted lease starts.
_LEASE_BEGINS_S = 15.0

# Seconds of retries while Temporal is unavailable, before a submission is left to `recover`.
_AWAY_LIMIT_S = 30.0

# The same for one that is recovered: it has one of few places, and is tried again later.
_RECOVER_LIMIT_S = 2.0

# Seconds in which a worker admits a submission; a client waits longer.
_ADMIT_LIMIT_S = 75.0

# What to do about a submission that is recorded.
_SUBMIT_AGAIN = "submit again then to compute it; without a runner it ends by itself and changes nothing"
# Submissions that one recovery takes. Those that fail are so few that there is always room for others.
_RECOVER_MOST = 10_000

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
        self._recovery = Recovery("a submission")
        self._admitting = Counter[str]()

    async def submit(self, submit: StrategySubmit, actor: str) -> SubmissionAck:
        """Admit a submission. Idempotent: the same key and body get the same answer.

        Raises QmtlError, also for a submission that was refused before; E_RECORDED where it is in the log and
        cannot be started now: `recover` does that later.
        """
        entry = await asyncio.to_thread(self._log.append, submit, actor)
        if entry.ack is not None:
            return await self._lease_for(submit, entry.ack, actor)
        if entry.refused is not None:
            raise QmtlError(
                entry.refused, "this submission was refused before", "submit again with a new idempotency key"
            )
        said = f"the submission is recorded as {submit.idempotency_key}; it starts once Temporal takes it"
        self._admitting[submit.idempotency_key] += 1  # `recover` leaves it alone meanwhile
        try:
            async with recorded(said, _SUBMIT_AGAIN, _ADMIT_LIMIT_S):
                ack = await self._admit(submit, actor, _AWAY_LIMIT_S)
        finally:
            self._admitting[submit.idempotency_key] -= 1
            if not self._admitting[submit.idempotency_key]:
                del self._admitting[submit.idempotency_key]
        return ack

    async def _lease_for(self, submit: StrategySubmit, ack: SubmissionAck, actor: str) -> SubmissionAck:
        """Return the recorded answer; add a lease if a recovery, which requests none, admitted it."""
        if ack.lease is not None or not submit.runner:
            return ack
        handle = self._client.get_workflow_handle_for(SubmissionWorkflow.run, ack.workflow_id)
        ask = Admit.of(submit, actor, ack.run_id)

        async def lease() -> SubmissionAck:
            try:
                return await handle.execute_update(SubmissionWorkflow.admit, ask, id=update_id(ask))
            except RPCError as error:
                if await asyncio.to_thread(self._runs.outcome, ack.run_id) is not None:
                    raise
                raise retriable_update_error(error) from error

        try:
            return await retry_while_unavailable(lease, limit_s=_LIMIT_S)
        except (RPCError, WorkflowUpdateFailedError) as error:
            _log.info("the run of a submission has ended", run_id=ack.run_id, why=str(error))
            return ack

    async def recover(self) -> int:
        """Start submissions that the log holds, no run has admitted, and this Gateway is not admitting now.

        Returns how many it started.

        One that is refused is done: the refusal is in the log, for the caller's retry.
        """
        waiting = await asyncio.to_thread(self._log.waiting, _RECOVER_MOST)
        lost = [key for key in waiting if key not in self._admitting]
        return await self._recovery.run({key: partial(self._start, key) for key in lost})

    async def _start(self, key: str) -> None:
        submit = await asyncio.to_thread(self._log.body, key)
        try:
            await self._admit(submit.model_copy(update={"runner": ""}), "", _RECOVER_LIMIT_S)
        except QmtlError as error:
            if error.code == "E_UNAVAILABLE":
                raise

    async def _admit(self, submit: StrategySubmit, actor: str, limit_s: float) -> SubmissionAck:
        try:
            return await retry_while_unavailable(
                lambda: admit(self._client, self._store_id, self._heartbeat_s, submit, actor), limit_s
            )
        except WorkflowUpdateFailedError as error:
            if not isinstance(error.cause, ApplicationError):
                raise
            refusal = qmtl_error(error.cause)
            await asyncio.to_thread(self._log.refuse, submit.idempotency_key, refusal.code)
            raise refusal from error

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
            workflow_id=submission_id_of(run), run_id=None, activity_id=activity_id
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
        """Query a run's progress. Returns None if its workflow can't answer now, or a later run has begun."""
        handle = self._client.get_workflow_handle_for(SubmissionWorkflow.run, submission_id_of(run))
        try:
            found = await retry_while_unavailable(
                lambda: handle.query(SubmissionWorkflow.progress, rpc_timeout=timedelta(seconds=5)),
                limit_s=5.0,
            )
            return found if found.run_id == run.run_id else None
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
                await asyncio.wait_for(handle.result(), min(left, 5.0))
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
        await retry_while_unavailable(lambda: evaluate(self._client, command))
        decision = await asyncio.to_thread(self._decisions.answer, request_id)
        assert decision is not None  # the update has returned, so it is stored
        return decision


def _lease_unknown(lease_id: str) -> QmtlError:
    return QmtlError("E_LEASE_UNKNOWN", f"there is no lease {lease_id[:80]!r}", "use the lease_id of the ack")
