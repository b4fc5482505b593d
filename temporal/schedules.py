"""What runs by itself: one Temporal Schedule for the upkeep of a store."""

from datetime import timedelta

from temporalio.client import Client, Schedule, ScheduleActionStartWorkflow, ScheduleAlreadyRunningError, ScheduleIntervalSpec, ScheduleOverlapPolicy, SchedulePolicy, ScheduleSpec

from activities.commands import UpkeepInput
from temporal.client import again
from workflows.shared import WORKFLOWS
from workflows.upkeep import UpkeepWorkflow

UPKEEP_EVERY = timedelta(hours=1)


def upkeep_id(store_id: str) -> str:
    """A schedule for each store, so that two stacks on one Temporal keep their own."""
    return f"upkeep:{store_id[:12]}"


async def keep_schedules(client: Client, store_id: str) -> None:
    """Make the schedule, if it is not there."""
    name = upkeep_id(store_id)
    action = ScheduleActionStartWorkflow(UpkeepWorkflow.run, UpkeepInput(store_id=store_id), id=name, task_queue=WORKFLOWS, task_timeout=timedelta(seconds=3), static_summary="upkeep of queues")
    policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP)
    schedule = Schedule(action=action, spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=UPKEEP_EVERY)]), policy=policy)

    async def create() -> None:
        try:
            await client.create_schedule(name, schedule)
        except ScheduleAlreadyRunningError:
            return  # an earlier worker of this store has made it

    await again(create)
