"""The Gateway's calls to Temporal about applies: write to the store first, then start or signal the workflow.

A crash between the two loses nothing: `recover` starts and signals what the store holds.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import structlog
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.applies.approvals import SqlApprovals
from activities.applies.requests import SqlApplyRequests
from activities.applies.steps import SqlApplySteps
from activities.messages.apply import AbortRequest, ApplyInput, ApprovalSignal, ApprovalVerdict
from qmtl_sdk.contracts.access import Caller
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, Approval, ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan
from temporal.client import newest_run, retriable_update_error, retry_while_unavailable
from temporal.plugin import update_refusal
from temporal.polling import poll_until_ended
from temporal.recorded import recorded
from temporal.recovery import Attempt, Recovery, each
from workflows.apply import ApplyWorkflow
from workflows.ids import apply_id
from workflows.options import apply_options
from workflows.search_attributes import SEARCH_RUN

# Seconds that an apply waits for the workflow of the one before, which has concluded in the store, to end.
_PREDECESSOR_S = 15.0

# Seconds of retries while Temporal is unavailable, in calls that a person waits for.
_LIMIT_S = 10.0

# Seconds between two polls of Temporal.
_POLL_S = 0.02

_log = structlog.get_logger()


class ApplyService:
    """Starts apply workflows and sends them approvals and aborts."""

    def __init__(
        self,
        client: Client,
        store_id: str,
        requests: SqlApplyRequests,
        approvals: SqlApprovals,
        steps: SqlApplySteps,
    ) -> None:
        self._client = client
        self._store_id = store_id
        self._requests = requests
        self._approvals = approvals
        self._steps = steps
        self._recovery = Recovery("an apply")

    async def request(
        self, world_id: str, request: ApplyRequest, caller: Caller, check: Callable[[ApplyPlan], None]
    ) -> ApplyStatus:
        """Request an apply. If Temporal is unavailable, the request is stored and `recover` starts it later.

        Raises QmtlError, as SqlApplyRequests.request, and E_RECORDED.
        """
        issuers = await asyncio.to_thread(self._requests.issuers, caller.token_id)
        found = await asyncio.to_thread(
            self._requests.request, world_id, request, caller.subject, check, issuers
        )
        if found.outcome is None:
            said = f"the apply is recorded as {request.run_id}; it starts when Temporal is back"
            async with recorded(said, f"qmtl world abort {world_id} {request.run_id} takes it back"):
                await self.start(world_id, request.run_id)
        return found

    async def start(self, world_id: str, run_id: str) -> None:
        """Start the workflow of an unfinished apply, unless it runs.

        One that somebody terminated is not started again: its end is recorded.

        Raises QmtlError: E_UNAVAILABLE where Temporal can't be reached or an earlier apply's workflow does
        not end.
        """
        plan = (await asyncio.to_thread(self._requests.find, world_id, run_id)).plan
        newest = await newest_run(self._client, apply_id(world_id), _LIMIT_S)
        if newest and _run_of(newest) == run_id:
            if newest.status is WorkflowExecutionStatus.RUNNING:
                return
            if newest.status is WorkflowExecutionStatus.TERMINATED:
                await asyncio.to_thread(self._steps.end_terminated, world_id, run_id)
                return
        deadline = time.monotonic() + _PREDECESSOR_S
        while True:
            try:
                await retry_while_unavailable(
                    lambda: self._client.start_workflow(
                        ApplyWorkflow.run,
                        ApplyInput(store_id=self._store_id, world_id=world_id, run_id=run_id),
                        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                        **apply_options(world_id, run_id, plan.title, plan.approval.required),
                    ),
                    limit_s=_LIMIT_S,
                )
                return
            except WorkflowAlreadyStartedError:
                if _run_of(await newest_run(self._client, apply_id(world_id), _LIMIT_S)) == run_id:
                    return
                if time.monotonic() > deadline:
                    raise QmtlError(
                        "E_UNAVAILABLE",
                        f"the workflow of an earlier apply of {world_id} does not end",
                        f"open workflow {apply_id(world_id)} in the Temporal UI",
                    ) from None
                await asyncio.sleep(_POLL_S)

    async def record_approval(
        self, world_id: str, run_id: str, caller: Caller, verdict: ApprovalVerdict, body: ApprovalBody
    ) -> Approval:
        """Store the caller's approval or rejection, then signal the workflow.

        If Temporal is unavailable, `recover` signals it later.

        Raises QmtlError, as SqlApprovals.record, and E_RECORDED.
        """
        found = await asyncio.to_thread(
            self._approvals.record, world_id, run_id, caller.subject, verdict, body, caller.token_id
        )
        what = "approval" if verdict == "approve" else "rejection"
        said = f"the {what} of {run_id} is recorded; it counts when Temporal is back"
        async with recorded(said, f"qmtl world abort {world_id} {run_id} takes the apply back"):
            await self._signal(world_id, run_id, found)
        return found

    async def _signal(self, world_id: str, run_id: str, approval: Approval) -> None:
        handle = self._client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(world_id))
        method = ApplyWorkflow.approve if approval.verdict == "approve" else ApplyWorkflow.reject
        signal = ApprovalSignal(run_id=run_id, approval_id=approval.approval_id)
        try:
            await retry_while_unavailable(lambda: handle.signal(method, signal), limit_s=_LIMIT_S)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            _log.warning(
                "the apply has no workflow to signal; recovery starts it again, or records its end",
                run_id=run_id,
            )

    async def abort(self, world_id: str, run_id: str, actor: str, reason: str) -> ApplyStatus:
        """Abort an apply that has not switched.

        The abort is stored first; from then on nothing is frozen or switched. If Temporal is unavailable,
        `recover` ends the apply later.

        Raises QmtlError: E_APPLY_UNKNOWN, E_APPLY_ENDED, E_APPLY_SWITCHED, E_RECORDED.
        """
        request = await asyncio.to_thread(self._requests.record_abort, world_id, run_id, actor, reason)
        said = (
            f"the abort of {run_id} is recorded: it freezes and switches nothing any more, and ends when "
            "Temporal and a worker are back"
        )
        try:
            async with recorded(said, f"qmtl world applies {world_id} {run_id} shows when it has ended"):
                await self._abort(world_id, request)
        except QmtlError as error:
            if error.code == "E_RECORDED":
                raise
            found = await self.ended(world_id, run_id)
            if found.outcome != "rolled_back":
                raise
            return found  # the store refused a step, and the workflow ended before the update came
        return await self.ended(world_id, run_id)

    async def _abort(self, world_id: str, request: AbortRequest) -> None:
        await self.start(world_id, request.run_id)
        handle = self._client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(world_id))

        async def update() -> None:
            try:
                await handle.execute_update(ApplyWorkflow.abort, request)
            except RPCError as error:
                found = await asyncio.to_thread(self._requests.find, world_id, request.run_id)
                if found.outcome is not None:
                    raise
                raise retriable_update_error(error) from error

        try:
            async with asyncio.timeout(_LIMIT_S):
                await retry_while_unavailable(update)
        except WorkflowUpdateFailedError as error:
            raise update_refusal(error) from error.cause
        except TimeoutError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                "no worker takes the abort",
                "qmtl status shows the workers; qmtl up starts one",
            ) from error
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            raise QmtlError(
                "E_APPLY_ENDED", f"{request.run_id} has ended", "see qmtl world applies W"
            ) from error

    async def ended(self, world_id: str, run_id: str, limit_s: float = 30.0) -> ApplyStatus:
        """Wait until an apply has ended, `limit_s` seconds at most, and return its status."""
        return await poll_until_ended(lambda: self._requests.find(world_id, run_id), limit_s)

    async def recover(self) -> int:
        """Start applies that do not run, and send unread approvals and aborts. Returns how many succeeded.

        What belongs to one apply is sent in this order; applies do not wait for each other.
        """
        steps = defaultdict[str, list[Attempt]](list)
        for world_id, run_id in await asyncio.to_thread(self._requests.unfinished):
            steps[f"{world_id}/{run_id}"].append(partial(self.start, world_id, run_id))
        for world_id, abort in await asyncio.to_thread(self._requests.unfinished_aborts):
            steps[f"{world_id}/{abort.run_id}"].append(partial(self._abort, world_id, abort))
        for world_id, run_id, approval in await asyncio.to_thread(self._approvals.unread):
            steps[f"{world_id}/{run_id}"].append(partial(self._signal, world_id, run_id, approval))
        return await self._recovery.run({key: partial(each, found) for key, found in steps.items()})


def _run_of(found: WorkflowExecutionDescription | None) -> str:
    """Return the run_id of the apply that a workflow carries out, by its search attributes."""
    return (found.typed_search_attributes.get(SEARCH_RUN) or "") if found else ""
