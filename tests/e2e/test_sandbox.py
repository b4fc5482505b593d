"""Workflow modules are imported once a process, and the sandbox's restrictions hold all the same."""

import asyncio
import threading
import uuid
from pathlib import Path

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import RestrictedWorkflowAccessError

from temporal.sandbox import _Context, _importer
from tests.support.restricted import CALLS, Restricted
from tests.support.served import Served, served


async def refused(stage: Served, call: str) -> str:
    """Run the call in a workflow twice, so that the second run uses the modules of the first."""
    reasons = []
    for _ in range(2):
        with pytest.raises(WorkflowFailureError) as caught:
            await stage.client.execute_workflow(
                Restricted.run, call, id=uuid.uuid4().hex, task_queue="restricted"
            )
        assert isinstance(caught.value.cause, ApplicationError)
        reasons.append(caught.value.cause.type)
    return reasons[0] if reasons[0] == reasons[1] else str(reasons)


def test_a_workflow_that_reads_the_clock_a_random_number_or_a_file_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            served(tmp_path) as stage,
            Worker(
                stage.client,
                task_queue="restricted",
                workflows=[Restricted],
                workflow_failure_exception_types=[RestrictedWorkflowAccessError],
            ),
        ):
            found = {call: await refused(stage, call) for call in CALLS}
            assert found == dict.fromkeys(CALLS, "RestrictedWorkflowAccessError")

    asyncio.run(run())


def test_a_workflow_module_is_imported_once() -> None:
    assert _importer("workflows.submission") is _importer("workflows.submission")
    assert _importer("workflows.submission") is not _importer("workflows.apply")


def test_a_run_that_ends_in_one_thread_lifts_no_restriction_in_another() -> None:
    context = _Context()
    context.is_runtime = True
    thread = threading.Thread(target=lambda: setattr(context, "is_runtime", False))
    thread.start()
    thread.join()
    assert context.is_runtime
