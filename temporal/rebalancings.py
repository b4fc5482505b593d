"""The Gateway's calls to Temporal about rebalancings: write to the store, then start or signal the workflow.

A crash between the two loses nothing: `recover` starts and signals what the store holds.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from activities.messages.apply import AbortRequest, ApprovalSignal, ApprovalVerdict
from activities.messages.rebalancing import RebalancingInput
from activities.rebalancing.activities import CANCEL_WAIT_S, RebalancingStores
from qmtl_sdk.contracts.access import Caller
from qmtl_sdk.contracts.applies import Approval, ApprovalBody
from qmtl_sdk.contracts.rebalance_runs import RebalanceApply, RebalanceStatus
from temporal.client import newest_run, retry_while_unavailable
from temporal.polling import poll_until_ended
from temporal.recorded import recorded
from temporal.recovery import Attempt, Recovery, each
from workflows.ids import rebalancing_id
from workflows.options import rebalancing_options
from workflows.rebalancing import RebalancingWorkflow

# Seconds of retries while Temporal is unavailable, in calls that a person waits for.
_LIMIT_S = 10.0

_log = structlog.get_logger()


class RebalancingService:
    """Starts workflows of rebalancings and sends them approvals and aborts."""

    def __init__(self, client: Client, store_id: str, stores: RebalancingStores) -> None:
        self._client = client
        self._store_id = store_id
        self._stores = stores
        self._requests = stores.requests
        self._recovery = Recovery("a rebalancing")
        self._terminated: dict[str, float] = {}

    async def request(self, requested: RebalanceApply, caller: Caller) -> RebalanceStatus:
        """Request a run. If Temporal is unavailable, the request is stored and `recover` starts it later.

        Raises QmtlError, as SqlRebalancings.request, and E_RECORDED.
        """
        found = await asyncio.to_thread(self._requests.request, requested, caller.subject, caller.token_id)
        if found.outcome is None:
            said = f"the rebalancing is recorded as {found.run_id}; it starts when Temporal is back"
            async with recorded(said, f"qmtl world rebalance-abort {found.run_id} takes it back"):
                await self.start(found.run_id)
        return found

    async def start(self, run_id: str) -> None:
        """Start the workflow of an unfinished run, unless it runs.

        One that somebody terminated is not started again: its open orders are cancelled and its end recorded.
        """
        newest = await newest_run(self._client, rebalancing_id(run_id), _LIMIT_S)
        if newest is not None and newest.status is WorkflowExecutionStatus.RUNNING:
            return
        if newest is not None and newest.status is WorkflowExecutionStatus.TERMINATED:
            await asyncio.to_thread(self._end_terminated, run_id)
            return
        found = await asyncio.to_thread(self._requests.find, run_id, False)
        await retry_while_unavailable(
            lambda: self._client.start_workflow(
                RebalancingWorkflow.run,
                RebalancingInput(store_id=self._store_id, run_id=run_id),
                **rebalancing_options(run_id, found.title, found.approvals_required),
            ),
            limit_s=_LIMIT_S,
        )

    def _end_terminated(self, run_id: str) -> None:
        """Abort a run, and end it once its orders have; a venue may be away, so not later than a minute."""
        why = "its workflow was terminated"
        if not self._requests.find(run_id, whole=False).aborted_by:
            self._requests.record_abort(run_id, "temporal", why)
        self._stores.ends.cancel(run_id, why)
        since = self._terminated.setdefault(run_id, time.monotonic())
        if not self._stores.ends.settle(run_id) or time.monotonic() > since + CANCEL_WAIT_S:
            self._stores.ends.conclude(run_id, "aborted", why)
            self._terminated.pop(run_id, None)

    async def record_approval(
        self, run_id: str, caller: Caller, verdict: ApprovalVerdict, body: ApprovalBody
    ) -> Approval:
        """Store the caller's approval or rejection, then signal the workflow.

        Raises QmtlError, as SqlRebalanceApprovals.record, and E_RECORDED.
        """
        found = await asyncio.to_thread(
            self._stores.approvals.record, run_id, caller.subject, verdict, body, caller.token_id
        )
        what = "approval" if verdict == "approve" else "rejection"
        said = f"the {what} of {run_id} is recorded; it counts when Temporal is back"
        async with recorded(said, f"qmtl world rebalance-abort {run_id} takes the rebalancing back"):
            await self._signal(run_id, found)
        return found

    async def _signal(self, run_id: str, approval: Approval) -> None:
        method = RebalancingWorkflow.approve if approval.verdict == "approve" else RebalancingWorkflow.reject
        signal = ApprovalSignal(run_id=run_id, approval_id=approval.approval_id)
        await self._send(run_id, lambda handle: handle.signal(method, signal))

    async def abort(self, run_id: str, actor: str, reason: str) -> RebalanceStatus:
        """Abort a run. It is stored first; from then on nothing is ordered.

        Raises QmtlError: E_REBALANCE_UNKNOWN, E_REBALANCE_ENDED, E_RECORDED.
        """
        request = await asyncio.to_thread(self._requests.record_abort, run_id, actor, reason)
        said = f"the abort of {run_id} is recorded: it orders no more, and ends when Temporal is back"
        if request is not None:
            async with recorded(said, f"qmtl world rebalance-status {run_id} shows when it has ended"):
                await self._abort(run_id, request)
        return await self.ended(run_id)

    async def _abort(self, run_id: str, request: AbortRequest) -> None:
        await self.start(run_id)
        await self._send(run_id, lambda handle: handle.signal(RebalancingWorkflow.abort, request))

    async def _send(self, run_id: str, send: Callable[[WorkflowHandle[Any, Any]], Awaitable[None]]) -> None:
        """Signal the workflow of a run. (Any: its types, which a signal does not need.)"""
        handle = self._client.get_workflow_handle_for(RebalancingWorkflow.run, rebalancing_id(run_id))
        try:
            await retry_while_unavailable(lambda: send(handle), limit_s=_LIMIT_S)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            _log.warning("the rebalancing has no workflow to signal; recovery starts it again", run_id=run_id)

    async def ended(self, run_id: str, limit_s: float = 30.0) -> RebalanceStatus:
        """Wait until a run has ended, `limit_s` seconds at most, and return its status."""
        await poll_until_ended(lambda: self._requests.find(run_id, whole=False), limit_s)
        return await asyncio.to_thread(self._requests.find, run_id)

    async def recover(self) -> int:
        """Start runs that do not run, and send unread approvals and aborts. Returns how many succeeded."""
        steps = defaultdict[str, list[Attempt]](list)
        for run_id, abort in await asyncio.to_thread(self._requests.unfinished):
            step = partial(self._abort, run_id, abort) if abort else partial(self.start, run_id)
            steps[run_id].append(step)
        for run_id, approval in await asyncio.to_thread(self._stores.approvals.unread):
            steps[run_id].append(partial(self._signal, run_id, approval))
        return await self._recovery.run({key: partial(each, found) for key, found in steps.items()})
