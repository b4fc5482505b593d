"""A workflow whose update runs one empty local activity: the least that an acknowledgement takes.

`python -m benchmarks.empty_workflow ADDRESS` serves it until SIGTERM, and says when it is ready.
"""

import asyncio
import signal
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client, WithStartWorkflowOperation
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.worker import Worker

_QUEUE = "empty"


@activity.defn
def nothing() -> None:
    """Do nothing."""


@workflow.defn
class EmptyWorkflow:
    """Ends once its update was answered."""

    def __init__(self) -> None:
        self._admitted = False

    @workflow.run
    async def run(self) -> None:
        """Wait for the update."""
        await workflow.wait_condition(lambda: self._admitted and workflow.all_handlers_finished())

    @workflow.update
    async def admit(self) -> None:
        """Run the activity."""
        await workflow.execute_local_activity(nothing, start_to_close_timeout=timedelta(seconds=30))
        self._admitted = True


async def admit(client: Client) -> None:
    """Start the workflow and wait for its update, in one request."""
    start = WithStartWorkflowOperation(
        EmptyWorkflow.run,
        id=uuid.uuid4().hex,
        task_queue=_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )
    await client.execute_update_with_start_workflow(EmptyWorkflow.admit, start_workflow_operation=start)


async def serve(address: str) -> None:
    """Run the worker until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await Client.connect(address)
    with ThreadPoolExecutor(8) as threads:
        async with Worker(
            client,
            task_queue=_QUEUE,
            workflows=[EmptyWorkflow],
            activities=[nothing],
            activity_executor=threads,
            max_concurrent_local_activities=8,
            max_concurrent_activities=8,
        ):
            print("ready", flush=True)
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
