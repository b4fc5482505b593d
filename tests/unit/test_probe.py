"""Which workflows cannot go on, asked of a Temporal that is slow, or refuses a page."""

import asyncio
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflow.v1 import PendingWorkflowTaskInfo, WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    ListWorkflowExecutionsRequest,
    ListWorkflowExecutionsResponse,
)
from temporalio.service import RPCError, RPCStatusCode

from temporal import probe as module
from temporal.probe import TemporalProbe

WORKFLOWS = [f"workflow-{number}" for number in range(200)]
STUCK = WORKFLOWS[-1]
RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING


class SlowTemporal:
    """200 running workflows, the last of which cannot go on. `answers`: how many it still describes."""

    namespace = "default"

    def __init__(self) -> None:
        self.workflow_service = self
        self.answers = 0
        self.generation = 0  # of page tokens
        self.hangs: set[str] = set()
        self.described: set[str] = set()

    async def list_workflow_executions(
        self, request: ListWorkflowExecutionsRequest
    ) -> ListWorkflowExecutionsResponse:
        generation, start = map(int, (request.next_page_token or f"{self.generation} 0".encode()).split())
        if generation != self.generation:
            raise RPCError("invalid page token", RPCStatusCode.INVALID_ARGUMENT, b"")
        end = start + request.page_size
        return ListWorkflowExecutionsResponse(
            executions=[
                WorkflowExecutionInfo(execution=WorkflowExecution(workflow_id=name))
                for name in WORKFLOWS[start:end]
            ],
            next_page_token=f"{self.generation} {end}".encode() if end < len(WORKFLOWS) else b"",
        )

    async def describe_workflow_execution(
        self, request: DescribeWorkflowExecutionRequest
    ) -> DescribeWorkflowExecutionResponse:
        name = request.execution.workflow_id
        if not self.answers or name in self.hangs:
            await asyncio.Event().wait()
        self.answers -= 1
        self.described.add(name)
        return DescribeWorkflowExecutionResponse(
            workflow_execution_info=WorkflowExecutionInfo(status=RUNNING),
            pending_workflow_task=PendingWorkflowTaskInfo(attempt=50 if name == STUCK else 1),
        )

    async def looks(self, probe: TemporalProbe, times: int, answers: int) -> None:
        for _ in range(times):
            self.answers = answers
            await probe.look()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.1)


def probed(temporal: Any) -> TemporalProbe:
    return TemporalProbe(temporal)


def test_a_slow_temporal_shows_all_workflows_as_well() -> None:
    """Each time-out began again with the first page: a workflow on the last one was never seen."""

    async def run() -> None:
        temporal = SlowTemporal()
        probe = probed(temporal)
        await temporal.looks(probe, 20, answers=10)
        assert temporal.described == set(WORKFLOWS)
        assert list(probe.failing) == [STUCK]

    asyncio.run(run())


def test_workflows_that_are_never_described_hold_up_no_others() -> None:
    async def run() -> None:
        temporal = SlowTemporal()
        probe = probed(temporal)
        temporal.hangs = set(WORKFLOWS[:8])  # as many as are asked about at a time
        await temporal.looks(probe, 12, answers=40)
        assert temporal.described == set(WORKFLOWS[8:])
        assert list(probe.failing) == [STUCK]

    asyncio.run(run())


def test_a_page_that_temporal_refuses_begins_with_the_first_one_again() -> None:
    async def run() -> None:
        temporal = SlowTemporal()
        probe = probed(temporal)
        await temporal.looks(probe, 1, answers=40)
        temporal.generation = 1
        await temporal.looks(probe, 6, answers=40)
        assert temporal.described == set(WORKFLOWS)
        assert list(probe.failing) == [STUCK]

    asyncio.run(run())
