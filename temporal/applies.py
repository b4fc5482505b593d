"""What the Gateway does with Temporal about applies: store first, then the workflow. A crash between the two loses nothing: `recover` starts and tells what the store holds."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.applies.approvals import ApprovalVerdict, SqlApprovals
from activities.applies.requests import SqlApplyRequests
from activities.messages.apply import AbortRequest, ApplyInput, ApprovalSignal
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, Approval, ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan
from temporal.client import retry_while_unavailable
from temporal.plugin import refused
from workflows.apply import ApplyWorkflow
from workflows.shared import SEARCH_RUN, SEARCH_WORLD, TASK_TIMEOUT, WORKFLOWS, apply_id

_PREDECESSOR_S = 15.0
_log = structlog.get_logger()


class ApplyService:
    """Starts apply workflows and sends them what people decide. The store comes first: a crash in between loses nothing."""

    def __init__(
        self, client: Client, store_id: str, requests: SqlApplyRequests, approvals: SqlApprovals
    ) -> None:
        self._client = client
        self._store_id = store_id
        self._requests = requests
        self._approvals = approvals

    async def request(
        self, world_id: str, request: ApplyRequest, actor: str, check: Callable[[ApplyPlan], None]
    ) -> ApplyStatus:
        """Raises QmtlError, as the store. With Temporal away the request is kept, and started when it comes back."""
        found = await asyncio.to_thread(self._requests.request, world_id, request, actor, check)
        if found.outcome is None:
            await self.start(world_id, request.run_id)
        return found

    async def start(self, world_id: str, run_id: str) -> None:
        """See to it that the workflow of an unfinished apply runs. Raises QmtlError (E_UNAVAILABLE)."""
        attributes = TypedSearchAttributes(
            [SearchAttributePair(SEARCH_WORLD, world_id), SearchAttributePair(SEARCH_RUN, run_id)]
        )
        deadline = time.monotonic() + _PREDECESSOR_S
        while True:
            try:
                await retry_while_unavailable(
                    lambda: self._client.start_workflow(
                        ApplyWorkflow.run,
                        ApplyInput(store_id=self._store_id, world_id=world_id, run_id=run_id),
                        id=apply_id(world_id),
                        task_queue=WORKFLOWS,
                        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                        task_timeout=TASK_TIMEOUT,
                        search_attributes=attributes,
                        static_summary=f"apply {run_id} in world {world_id}"[:190],
                    ),
                    limit_s=10.0,
                )
                return
            except WorkflowAlreadyStartedError:
                if await self._running(world_id) == run_id:
                    return
                if time.monotonic() > deadline:
                    raise QmtlError(
                        "E_UNAVAILABLE",
                        f"an earlier apply of {world_id} does not end in Temporal",
                        "look at its workflow in the Temporal UI",
                    ) from None
                await asyncio.sleep(0.02)  # the one before has concluded in the store and is about to end

    async def _running(self, world_id: str) -> str:
        """The run_id of the workflow that runs now, as its search attributes say."""
        try:
            found = await retry_while_unavailable(
                lambda: self._client.get_workflow_handle(apply_id(world_id)).describe(), limit_s=10.0
            )
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return ""
        return found.typed_search_attributes.get(SEARCH_RUN) or ""

    async def record_approval(
        self, world_id: str, run_id: str, actor: str, verdict: ApprovalVerdict, body: ApprovalBody
    ) -> Approval:
        """Keep what an authenticated person says, and tell the workflow. What Temporal does not hear now it is told later."""
        found = await asyncio.to_thread(self._approvals.record, world_id, run_id, actor, verdict, body)
        try:
            await self._signal(world_id, run_id, found)
        except QmtlError as error:
            _log.warning("an approval waits for Temporal", run_id=run_id, why=str(error))
        return found

    async def _signal(self, world_id: str, run_id: str, approval: Approval) -> None:
        handle = self._client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(world_id))
        signal = ApplyWorkflow.approve if approval.verdict == "approve" else ApplyWorkflow.reject
        try:
            await retry_while_unavailable(
                lambda: handle.signal(
                    signal, ApprovalSignal(run_id=run_id, approval_id=approval.approval_id)
                ),
                limit_s=10.0,
            )
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            _log.warning("no apply workflow to tell; it is started again", run_id=run_id)

    async def abort(self, world_id: str, run_id: str, actor: str, reason: str) -> ApplyStatus:
        """Raises QmtlError: E_APPLY_UNKNOWN, E_APPLY_ENDED, E_APPLY_SWITCHED."""
        await asyncio.to_thread(self._requests.record_abort, world_id, run_id, actor, reason)
        await self.start(world_id, run_id)
        handle = self._client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(world_id))
        try:
            await retry_while_unavailable(
                lambda: handle.execute_update(
                    ApplyWorkflow.abort, AbortRequest(run_id=run_id, actor=actor, reason=reason)
                )
            )
        except WorkflowUpdateFailedError as error:
            raise refused(error) from error.cause
        return await self.ended(world_id, run_id)

    async def ended(self, world_id: str, run_id: str, limit_s: float = 30.0) -> ApplyStatus:
        """The apply once it has ended, or as it is after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while True:
            found = await asyncio.to_thread(self._requests.find, world_id, run_id)
            if found.outcome is not None or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(0.02)

    async def recover(self) -> int:
        """Start what was asked for and does not run, and tell of approvals that were not heard; how many applies are under way."""
        unfinished = await asyncio.to_thread(self._requests.unfinished)
        for world_id, run_id in unfinished:
            await self._try(self.start(world_id, run_id), run_id)
        for world_id, run_id, approval in await asyncio.to_thread(self._approvals.unread):
            await self._try(self._signal(world_id, run_id, approval), run_id)
        return len(unfinished)

    @staticmethod
    async def _try(call: Coroutine[Any, Any, None], run_id: str) -> None:
        """One that can't be helped now must not keep the others waiting. (Any: a coroutine's other types.)"""
        try:
            await call
        except QmtlError as error:
            _log.warning("an apply waits", run_id=run_id, why=str(error))
