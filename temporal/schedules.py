"""Temporal Schedules of a store: the upkeep of its queues, and the renewal of its worlds' decisions.

Those of rebalancings, which people set and remove, are in `temporal/rebalance_schedules.py`.
"""

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
from workflows.ids import renewal_id, upkeep_id
from workflows.options import renewal_options, upkeep_options
from workflows.renewal import RenewalWorkflow
from workflows.upkeep import UpkeepWorkflow

# Retention is given in days, so an hour's delay does not matter.
UPKEEP_EVERY = timedelta(hours=1)


async def create_schedules(client: Client, store_id: str) -> None:
    """Create the schedules of a store. Idempotent."""
    upkeep = ScheduleActionStartWorkflow(
        UpkeepWorkflow.run, UpkeepInput(store_id=store_id), **upkeep_options(store_id)
    )
    renewal = ScheduleActionStartWorkflow(
        RenewalWorkflow.run, RenewalInput(store_id=store_id), **renewal_options(store_id)
    )
    await _create(client, upkeep_id(store_id), upkeep, UPKEEP_EVERY)
    await _create(client, renewal_id(store_id), renewal, RENEW_EVERY)


async def _create(
    client: Client, schedule_id: str, action: ScheduleActionStartWorkflow, every: timedelta
) -> None:
    schedule = Schedule(
        action=action,
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP),
    )

    async def create() -> None:
        try:
            await client.create_schedule(schedule_id, schedule)
        except ScheduleAlreadyRunningError:
            return  # another worker of this store created it

    await retry_while_unavailable(create)
