"""What a Gateway asks Temporal for its health: whether it answers, and which workflows cannot go on.

A workflow whose task keeps failing waits for ever, and nothing else reports it. Temporal's list does not say
so (this version has no search attribute for it), so running workflows are described, a few each time.
"""

import asyncio
from datetime import timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    GetSystemInfoRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from workflows.options import WORKFLOW_QUEUE

LIMIT_S = 2.0
"""Seconds that Temporal has to answer."""

FAILING_AFTER = 3
"""Attempts of a workflow task from which on it counts as failing."""

# Running workflows that are described in one look.
_PAGE = 40

# Failing workflows that are remembered.
_MOST = 20

# Requests to Temporal at a time.
_AT_A_TIME = 8

# Times in a row that a workflow is tried. At the second it is among the first that are asked about.
_TRIES = 2

_RUNNING = f'ExecutionStatus = "Running" AND TaskQueue = "{WORKFLOW_QUEUE}"'


class TemporalProbe:
    """Asks Temporal, within `LIMIT_S` seconds each time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._next_page = b""
        self._waiting = dict[str, int]()
        """Workflows that are still to be described, in this order, and how often each was tried."""
        self.failing: dict[str, str] = {}
        """What is wrong with each workflow whose task keeps failing, by its id; `look` updates it."""

    async def answers(self) -> bool:
        """Return whether Temporal answers."""
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._client.workflow_service.get_system_info(
                    GetSystemInfoRequest(), timeout=timedelta(seconds=LIMIT_S)
                )
        except (RPCError, RuntimeError, TimeoutError):
            return False
        return True

    async def look(self) -> None:
        """Describe the next page of running workflows, and those that failed before.

        What Temporal does not answer in time is described first next time, so that a slow one shows all
        workflows as well, only later. What it does not answer then either waits for the next round.
        """
        self._waiting = {name: tries for name, tries in self._waiting.items() if tries < _TRIES}
        try:
            async with asyncio.timeout(LIMIT_S):
                if not self._waiting:
                    self._waiting = dict.fromkeys((*self.failing, *await self._list()), 0)
                places = asyncio.Semaphore(_AT_A_TIME)
                await asyncio.gather(*(self._describe(workflow_id, places) for workflow_id in self._waiting))
        except (RPCError, RuntimeError, TimeoutError):
            pass  # whether Temporal answers is another question, which `answers` asks

    async def _list(self) -> list[str]:
        """Return the ids of the next page of running workflows. Raises RPCError."""
        request = ListWorkflowExecutionsRequest(
            namespace=self._client.namespace,
            page_size=_PAGE,
            next_page_token=self._next_page,
            query=_RUNNING,
        )
        try:
            found = await self._client.workflow_service.list_workflow_executions(request)
        except RPCError:
            self._next_page = b""  # the token may have become invalid
            raise
        self._next_page = found.next_page_token
        return [item.execution.workflow_id for item in found.executions]

    async def _describe(self, workflow_id: str, places: asyncio.Semaphore) -> None:
        """Note whether the task of a workflow keeps failing."""
        request = DescribeWorkflowExecutionRequest(
            namespace=self._client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
        )
        async with places:
            self._waiting[workflow_id] = self._waiting.get(workflow_id, 0) + 1
            try:
                found = await self._client.workflow_service.describe_workflow_execution(request)
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                self.failing.pop(workflow_id, None)
                self._waiting.pop(workflow_id, None)
                return
        self._waiting.pop(workflow_id, None)
        # A workflow that was terminated before a worker took its task keeps that task for ever.
        running = (
            found.workflow_execution_info.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
        )
        attempt = found.pending_workflow_task.attempt if running else 0  # 0 without a task
        if attempt < FAILING_AFTER:
            self.failing.pop(workflow_id, None)
        elif workflow_id in self.failing or len(self.failing) < _MOST:
            self.failing[workflow_id] = (
                f"its workflow task has failed {attempt - 1} times; see the Temporal UI"
            )
