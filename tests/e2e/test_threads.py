"""What is slow takes no thread of an acknowledgement or of an apply's steps."""

import asyncio
import threading
from pathlib import Path

from activities.messages.apply import ApplyInput
from activities.messages.upkeep import UpkeepInput
from qmtl_sdk.contracts.applies import ApprovalBody
from tests.support.served import served
from workflows.apply import ApplyWorkflow
from workflows.options import WORKFLOW_QUEUE, apply_options
from workflows.upkeep import UpkeepWorkflow

# More than the worker has threads.
BUSY = 20
SLOW_THREADS = 8


def test_an_apply_is_carried_out_while_every_thread_of_slow_activities_is_busy(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as stage:
            world = stage.desk.world
            free, busy = threading.Event(), threading.Semaphore(0)

            def hold() -> None:
                busy.release()
                free.wait()

            stage.hooks.in_thread["queues_due"] = hold
            try:
                upkeep = [
                    await stage.client.start_workflow(
                        UpkeepWorkflow.run,
                        UpkeepInput(store_id=stage.store_id),
                        id=f"upkeep-{number}",
                        task_queue=WORKFLOW_QUEUE,
                    )
                    for number in range(BUSY)
                ]

                for _ in range(SLOW_THREADS):
                    assert await asyncio.to_thread(busy.acquire, timeout=60)
                run_id = stage.desk.request("dryrun")
                stage.desk.approvals.record(world, run_id, "ana", "approve", ApprovalBody())
                ended = await asyncio.wait_for(
                    stage.client.execute_workflow(
                        ApplyWorkflow.run,
                        ApplyInput(store_id=stage.store_id, world_id=world, run_id=run_id),
                        **apply_options(world, run_id, "t", 1),
                    ),
                    60,
                )
                assert ended.outcome == "completed"
            finally:
                free.set()
            for handle in upkeep:
                await handle.result()

    asyncio.run(run())
