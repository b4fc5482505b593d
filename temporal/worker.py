"""The worker: every workflow and activity, over one store. `python -m temporal.worker` runs it until SIGTERM."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Interceptor, Worker

from activities.applies.activities import ApplyActivities
from activities.decisions.activities import DecisionActivities
from activities.promotions.activities import PromotionActivities
from activities.promotions.sql import SqlPromotions
from activities.queues.activities import QueueActivities
from activities.queues.upkeep import QueueKeeper
from activities.stores import Stores
from activities.submissions.activities import SubmissionActivities
from activities.submissions.lease import compute_lease
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.config import Settings, settings
from temporal.client import connect
from temporal.evaluations import EvaluationActivities
from temporal.schedules import keep_schedules
from temporal.shutdown import exit_process
from workflows.shared import ORDERS, WORKFLOWS, WORLD

# A workflow whose worker was killed waits so long before another takes it over (10 s unless set).
STICKY = timedelta(seconds=1)
_THREADS = 16


@asynccontextmanager
async def working(
    client: Client, stores: Stores, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[None]:
    """Workers on every task queue, for as long as the block runs. The client must carry the plugin with the store's id."""
    submissions = SubmissionActivities(stores.for_submissions)
    decisions = DecisionActivities(stores.for_decisions)
    applies = ApplyActivities(stores.for_applies)
    promotions = PromotionActivities(
        SqlPromotions(stores.database, stores.apply_requests), stores.apply_requests
    )
    queues = QueueActivities(QueueKeeper(stores.database, stores.queues, stores.artifacts))
    evaluations = EvaluationActivities()
    local = [
        submissions.begin_run,
        submissions.diff,
        submissions.record_admission,
        submissions.reject,
        submissions.conclude,
        decisions.judge,
        decisions.worlds_to_renew,
        promotions.check_conditions,
        promotions.request_apply,
        promotions.publish_promotion,
        applies.apply_plan,
        applies.await_approval,
        applies.read_approvals,
        applies.record_direct_approval,
        applies.conclude_apply,
    ]
    fence = [
        applies.freeze_world,
        applies.drain_world,
        applies.switch_world,
        applies.restore_world,
        applies.unfreeze_world,
        applies.await_acks,
        promotions.apply_ended,
    ]
    remote = [
        compute_lease,
        submissions.measure,
        evaluations.request_evaluation,
        queues.queues_due,
        queues.apply_retention,
    ]
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
        common = {"activity_executor": pool, "interceptors": list(interceptors)}
        await stack.enter_async_context(Worker(client, task_queue=WORLD, activities=remote, **common))  # type: ignore[arg-type]  # one mapping for both workers
        await stack.enter_async_context(Worker(client, task_queue=ORDERS, activities=fence, **common))  # type: ignore[arg-type]  # likewise
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=WORKFLOWS,
                activities=local,
                sticky_queue_schedule_to_start_timeout=STICKY,
                **common,
            )
        )  # type: ignore[arg-type]  # likewise
        yield


async def run(config: Settings, interceptors: Sequence[Interceptor] = ()) -> None:
    stores = Stores.open(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        client = await connect(config.temporal, stores.database.store_id)
        await keep_schedules(client, stores.database.store_id)
        async with working(client, stores, interceptors):
            print("worker: ready", flush=True)
            await stop.wait()
    finally:
        stores.close()


def main(interceptors: Sequence[Interceptor] = ()) -> None:
    try:
        config = settings()
        config.require_profile()
        asyncio.run(run(config, interceptors))
        code = 0
    except QmtlError as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
        code = 1
    exit_process(code)


if __name__ == "__main__":
    main()
