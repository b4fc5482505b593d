"""The worker: every workflow and activity, over one store. `python -m temporal.worker` runs it until SIGTERM.

To add an activity to a class that `_activities` lists, add it to the class and to its stub class: it is found
by its signature there. A new class of activities is added to `_activities`; a new workflow is found in the
package `workflows`. Every worker serves all activities on all three task queues; workflows.options says
which queue an activity is sent to.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import Interceptor, Worker

from activities import end_loading
from activities.applies.activities import ApplyActivities
from activities.decisions.activities import DecisionActivities
from activities.promotions.activities import PromotionActivities
from activities.promotions.sql import SqlPromotions
from activities.queues.activities import QueueActivities
from activities.queues.upkeep import QueueRetention
from activities.rebalancing.activities import RebalancingActivities
from activities.rebalancing.proposing import ProposalActivities
from activities.retention.activities import RetentionActivities
from activities.settings import Settings, settings
from activities.storage.heartbeats import HeartbeatWriter
from activities.stores import Stores
from activities.submissions.activities import SubmissionActivities
from activities.submissions.lease import compute_lease
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.roots import restrict
from temporal.client import connect
from temporal.evaluations import EvaluationActivities
from temporal.rebalance_schedules import RebalanceScheduleService
from temporal.schedules import create_schedules
from temporal.shutdown import exit_process
from temporal.versions import Versions, build_id, deployment
from workflows.options import ORDER_QUEUE, WORKFLOW_QUEUE, WORLD_QUEUE

# The cached workflows of a killed worker go to another one after this long (Temporal's default is 10 s).
_STICKY_TIMEOUT = timedelta(seconds=1)

# Threads for the synchronous activities of each task queue, and the local activities that it runs at a time.
# Short calls of the store and the steps of an apply have their own, so that nothing slow delays an
# acknowledgement or a freeze.
_THREADS = {WORLD_QUEUE: 8, ORDER_QUEUE: 4, WORKFLOW_QUEUE: 8}

# Workflow tasks that a worker takes at a time. The others wait at the server, where their time limit does not
# run: it is short (`TASK_TIMEOUT`), and counts the local activities of a task.
_WORKFLOW_TASKS = 20

# Seconds between two notes for the heartbeat that the event loop and the pollers run.
_NOTE_S = 1.0

# An activity. (Any: each takes a message of its own.)
Activity = Callable[..., Any]


def _activities(stores: Stores) -> list[Activity]:
    """List every activity, over the stores."""
    promotions = SqlPromotions(stores.database, stores.apply_requests)
    instances: tuple[object, ...] = (
        SubmissionActivities(stores.for_submissions),
        DecisionActivities(stores.for_decisions),
        EvaluationActivities(),
        ApplyActivities(stores.for_applies),
        PromotionActivities(promotions, stores.apply_requests),
        RebalancingActivities(stores.rebalancings),
        ProposalActivities(stores.firings),
        QueueActivities(QueueRetention(stores.database, stores.queues, stores.artifacts)),
        RetentionActivities(stores.retention),
    )
    return [compute_lease, *(activity for instance in instances for activity in activities_of(instance))]


def activities_of(instance: object) -> list[Activity]:
    """List the activities of an instance: the methods that its stub class declares."""
    names = {name for stub in type(instance).__bases__ for name in getattr(stub, "__abstractmethods__", ())}
    return [getattr(instance, name) for name in sorted(names)]


@asynccontextmanager
async def serving(
    client: Client, stores: Stores, interceptors: Sequence[Interceptor] = (), build: str | None = None
) -> AsyncIterator[Sequence[Worker]]:
    """Serve every task queue while the block runs. The client must carry the plugin with the store's id.

    `build`: the worker's deployment version; without one it serves what no version is responsible for.
    """
    workers = []
    async with AsyncExitStack() as stack:
        activities = _activities(stores)
        for queue, threads in _THREADS.items():
            worker = Worker(
                client,
                task_queue=queue,
                activities=activities,
                activity_executor=stack.enter_context(ThreadPoolExecutor(threads)),
                max_concurrent_workflow_tasks=_WORKFLOW_TASKS,
                max_concurrent_local_activities=threads,
                deployment_config=deployment(build) if build else None,
                interceptors=interceptors,
                sticky_queue_schedule_to_start_timeout=_STICKY_TIMEOUT,
            )
            workers.append(await stack.enter_async_context(worker))
        yield workers


async def run(config: Settings, interceptors: Sequence[Interceptor] = ()) -> None:
    """Serve until SIGTERM or SIGINT. Raises QmtlError: E_CONFIG, E_UNAVAILABLE."""
    stores = Stores.open(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        client = await connect(config.temporal, stores.database.store_id)
        await create_schedules(client, stores.database.store_id)
        rebalancings = RebalanceScheduleService(client, stores.database.store_id, stores.rebalance_schedules)
        await rebalancings.restore()
        build = build_id()
        with HeartbeatWriter(stores.database, "worker") as heartbeat:
            async with serving(client, stores, interceptors, build) as workers:
                versions = Versions(client, build)
                await versions.begin()
                upgrades = asyncio.create_task(versions.repeat_checks())
                end_loading()
                print("worker: ready", flush=True)
                while not stop.is_set():
                    if all(worker.is_running for worker in workers):
                        heartbeat.worked(stores.retention.fault)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), _NOTE_S)
                upgrades.cancel()
    finally:
        stores.close()


def main(interceptors: Sequence[Interceptor] = ()) -> None:
    """Run the worker as a process."""
    try:
        config = settings()
        config.require_profile()
        restrict(config.data_roots)
        asyncio.run(run(config, interceptors))
        code = 0
    except QmtlError as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
        code = 1
    exit_process(code)


if __name__ == "__main__":
    main()
