"""What runs by itself, on Temporal Schedules of a store: the upkeep of its queues, and the renewal of decisions that something trades on."""

from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)

from activities.decisions.activities import RENEW_EVERY
from activities.messages.evaluation import RenewalInput
from activities.messages.upkeep import UpkeepInput
from temporal.client import retry_while_unavailable
from workflows.renewal import RenewalWorkflow
from workflows.shared import TASK_TIMEOUT, WORKFLOWS
from workflows.upkeep import UpkeepWorkflow

UPKEEP_EVERY = timedelta(hours=1)


def upkeep_id(store_id: str) -> str:
    """A schedule for each store, so that two stacks on one Temporal keep their own."""
    return f"upkeep:{store_id[:12]}"


def renewal_id(store_id: str) -> str:
    return f"renewal:{store_id[:12]}"


async def keep_schedules(client: Client, store_id: str) -> None:
    """Make the schedules, as far as they are not there."""
    upkeep, renewal = upkeep_id(store_id), renewal_id(store_id)
    keep = ScheduleActionStartWorkflow(
        UpkeepWorkflow.run,
        UpkeepInput(store_id=store_id),
        id=upkeep,
        task_queue=WORKFLOWS,
        task_timeout=TASK_TIMEOUT,
        static_summary="upkeep of queues",
    )
    renew = ScheduleActionStartWorkflow(
        RenewalWorkflow.run,
        RenewalInput(store_id=store_id),
        id=renewal,
        task_queue=WORKFLOWS,
        task_timeout=TASK_TIMEOUT,
        static_summary="renewal of decisions",
    )
    await _make(client, upkeep, keep, UPKEEP_EVERY)
    await _make(client, renewal, renew, RENEW_EVERY)


async def _make(client: Client, name: str, action: ScheduleActionStartWorkflow, every: timedelta) -> None:
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP),
    )

    async def create() -> None:
        try:
            await client.create_schedule(name, schedule)
        except ScheduleAlreadyRunningError:
            return  # an earlier worker of this store has made it

    await retry_while_unavailable(create)
