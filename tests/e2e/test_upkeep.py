"""Upkeep on the real server: the schedule is there, and a run does its work."""

import asyncio
from datetime import UTC, datetime, timedelta

from activities.messages.upkeep import UpkeepDone, UpkeepInput
from activities.queues.store import SqliteQueues
from qmtl_sdk import Runner
from qmtl_sdk.contracts.sessions import QueueMessage
from temporal.client import connect
from temporal.schedules import UPKEEP_EVERY
from tests.support.machine import Machine
from tests.support.strategies import Trend
from workflows.ids import upkeep_id
from workflows.options import WORKFLOW_QUEUE
from workflows.upkeep import UpkeepWorkflow


def test_the_schedule_runs_upkeep_and_a_run_archives_and_drops(machine: Machine) -> None:
    result = Runner.submit(Trend("PG"), world="equities", config=machine.config)
    database = machine.database()
    store_id = database.store_id
    database.close()
    queues = SqliteQueues(machine.config.queues_path)
    with machine.client() as client:
        status = client.status(result.strategy_id, "equities")
        topic = next(
            target
            for target in client.queues_by_tag(
                ["PG"],
                86_400,
                "any",
                "equities",
                status.outcome.decision.effective_mode.replace("validate", "backtest"),
            )
        ).topic  # type: ignore[union-attr]
        queues.append(topic, (QueueMessage(key="k", ts=1, values={"close": 1.0}),))

        async def upkeep() -> tuple[timedelta, UpkeepDone]:
            temporal = await connect(machine.config.temporal)
            description = await temporal.get_schedule_handle(upkeep_id(store_id)).describe()
            later = (datetime.now(UTC) + timedelta(days=100)).isoformat()
            done = await temporal.execute_workflow(
                UpkeepWorkflow.run,
                UpkeepInput(store_id=store_id, now=later),
                id="upkeep-by-hand",
                task_queue=WORKFLOW_QUEUE,
            )
            return description.schedule.spec.intervals[0].every, done

        every, done = asyncio.run(upkeep())
        assert every == UPKEEP_EVERY
        assert done.archived >= 1
        assert done.dropped >= 1
        assert done.failed == ()
        assert done.rows > 0, "events are kept for 14 days"
        assert queues.read(topic, 0, 10)[0] == []
        assert topic not in [
            item.topic for item in client.queues_by_tag(["PG"], 86_400, "any", "equities", "backtest")
        ]
    queues.close()
