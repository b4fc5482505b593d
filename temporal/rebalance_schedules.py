"""The Gateway's calls to Temporal about schedules of rebalancings: write to the store, then tell Temporal.

Temporal holds when a schedule fires, and nothing else: each firing reads the rest from the store. A crash
between the two loses nothing: `recover` tells Temporal what the store holds, and a worker that starts does so
for all schedules, in case that Temporal has lost them. One that only Temporal has is forgotten when it fires.
"""

import asyncio
from datetime import timedelta
from functools import partial

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
)
from temporalio.service import RPCError, RPCStatusCode

from activities.messages.proposals import ProposalInput
from activities.rebalancing.schedules import SqlRebalanceSchedules
from qmtl_sdk.contracts.access import Caller
from qmtl_sdk.contracts.rebalance_schedules import RebalanceSchedule, RebalanceScheduleBody
from temporal.client import retry_while_unavailable
from temporal.recorded import recorded
from temporal.recovery import Recovery
from workflows.ids import rebalance_schedule_id
from workflows.options import proposal_options
from workflows.proposal import ProposalWorkflow

# Seconds of retries while Temporal is unavailable, in calls that a person waits for.
_LIMIT_S = 10.0

# A firing that was missed for longer, since Temporal was away, is left out: the next one sees newer figures.
_CATCH_UP = timedelta(hours=1)


class RebalanceScheduleService:
    """Sets and removes schedules of rebalancings, in the store and in Temporal."""

    def __init__(self, client: Client, store_id: str, schedules: SqlRebalanceSchedules) -> None:
        self._client = client
        self._store_id = store_id
        self._schedules = schedules
        self._recovery = Recovery("a schedule of rebalancings")

    async def set(
        self, name: str, body: RebalanceScheduleBody, caller: Caller, live: bool
    ) -> RebalanceSchedule:
        """Set a schedule, or replace it. Raises QmtlError, as SqlRebalanceSchedules.set, and E_RECORDED."""
        await asyncio.to_thread(self._schedules.set, name, body, caller, live)
        said = f"the schedule {name} is recorded; it fires when Temporal is back"
        async with recorded(said, f"qmtl world rebalance-schedule remove {name} takes it back"):
            await self._settle(name)
        return await asyncio.to_thread(self._schedules.find, name)

    async def remove(self, name: str, caller: Caller) -> None:
        """Remove a schedule. Raises QmtlError, as SqlRebalanceSchedules.remove, and E_RECORDED."""
        await asyncio.to_thread(self._schedules.remove, name, caller)
        said = f"the schedule {name} is removed: it requests nothing more"
        async with recorded(said, "Temporal forgets it when it is back"):
            await self._settle(name)

    async def recover(self) -> int:
        """Tell Temporal of the schedules that it has not got as they are. Returns how many succeeded."""
        names = await asyncio.to_thread(self._schedules.unsettled)
        return await self._recovery.run({name: partial(self._settle, name) for name in names})

    async def restore(self) -> None:
        """Tell Temporal of all schedules."""
        names = await asyncio.to_thread(self._schedules.names)
        await self._recovery.run({name: partial(self._settle, name) for name in names})

    async def _settle(self, name: str) -> None:
        """Let Temporal have a schedule as the store has it now, or forget it."""
        settled = False
        while not settled:
            set_at, body = await asyncio.to_thread(self._schedules.wanted, name)
            change = self._delete(name) if body is None else self._put(name, self._schedule(name, body))
            await change
            settled = await asyncio.to_thread(self._schedules.settle, name, set_at)

    async def _put(self, name: str, schedule: Schedule) -> None:
        schedule_id = rebalance_schedule_id(self._store_id, name)

        async def put() -> None:
            try:
                await self._client.create_schedule(schedule_id, schedule)
            except ScheduleAlreadyRunningError:
                handle = self._client.get_schedule_handle(schedule_id)
                await handle.update(lambda _: ScheduleUpdate(schedule))

        await retry_while_unavailable(put, limit_s=_LIMIT_S)

    async def _delete(self, name: str) -> None:
        handle = self._client.get_schedule_handle(rebalance_schedule_id(self._store_id, name))
        try:
            await retry_while_unavailable(handle.delete, limit_s=_LIMIT_S)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise

    def _schedule(self, name: str, body: RebalanceScheduleBody) -> Schedule:
        """Return the schedule as Temporal has it."""
        return Schedule(
            action=ScheduleActionStartWorkflow(
                ProposalWorkflow.run,
                ProposalInput(store_id=self._store_id, name=name),
                **proposal_options(self._store_id, name),
            ),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=body.every))]),
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCH_UP),
            state=ScheduleState(paused=body.paused),
        )
