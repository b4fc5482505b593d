"""Upkeep on the real server: the schedule is there, and a run does its work."""

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from activities.messages.upkeep import UpkeepDone, UpkeepInput
from activities.queues.store import SqliteQueues
from qmtl_sdk import Runner
from qmtl_sdk.contracts.sessions import QueueMessage
from temporal.client import connect
from temporal.schedules import UPKEEP_EVERY
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Trend
from workflows.ids import upkeep_id
from workflows.options import WORKFLOW_QUEUE
from workflows.upkeep import UpkeepWorkflow


def test_the_schedule_runs_upkeep_and_a_run_archives_and_drops(machine: Machine) -> None:
    result = Runner.submit(Trend("PG"), world="equities", config=machine.config)
    database = machine.database()
    store_id = database.store_id
    with database.write("test", bookkeeping=True) as tx:  # rows go by the clock of the worker
        past = (datetime.now(UTC) - timedelta(days=30)).isoformat(timespec="microseconds")
        outbox = text("UPDATE outbox SET at = :past WHERE published_at IS NOT NULL")
        tx.connection.execute(outbox, {"past": past})
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


def test_what_fails_keeps_no_other_kind_back_and_is_shown(own_machine: Machine) -> None:
    """A kind whose attempts fail for ever was tried for ever, and only Temporal's UI showed what failed."""
    own_machine.up()
    wait_for(lambda: own_machine.health()["status"] == "ok", "health")
    with closing(own_machine.database()) as database:
        Desk(database, "broken").apply("dryrun")
        past = (datetime.now(UTC) - timedelta(days=30)).isoformat(timespec="microseconds")
        with database.write("test", bookkeeping=True) as tx:
            for statement in (
                "INSERT INTO order_seal VALUES ('broken', 1, 1, 999999, 1, 'x', '2025')",
                f"UPDATE outbox SET at = '{past}', published_at = '{past}'",
                "ALTER TABLE rule_change RENAME TO away",
            ):
                tx.connection.exec_driver_sql(statement)
        store_id = database.store_id

    async def upkeep() -> UpkeepDone:
        temporal = await connect(own_machine.config.temporal)
        return await temporal.execute_workflow(
            UpkeepWorkflow.run, UpkeepInput(store_id=store_id), id="by-hand", task_queue=WORKFLOW_QUEUE
        )

    done = asyncio.run(asyncio.wait_for(upkeep(), 120))
    assert [failed.partition(":")[0] for failed in done.failed] == ["orders", "rule changes"]
    assert done.rows > 0, "the kinds after those that failed"
    wait_for(lambda: own_machine.health()["status"] == "degraded", "degraded health")
    assert "retention of orders E_AUDIT_BROKEN" in own_machine.health()["faults"].values()
    with own_machine.client() as client:
        shown = client.gateway_status()["faults"].values()
    assert any("the order log of broken has been changed" in fault for fault in shown)
