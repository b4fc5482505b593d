"""`python -m tests.replay.record`: run every workflow on a real server and store the histories.

What was recorded before stays in `earlier/`, of the workflows that outlive releases: their runs go on under
new code, which a history of that code itself says nothing about.
"""

import asyncio
import hashlib
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import ScheduleActionExecutionStartWorkflow

from activities.messages.evaluation import RenewalInput
from activities.messages.upkeep import UpkeepInput
from api.cli.allocations import changed_request
from qmtl_sdk import QmtlError, Runner
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.rebalance_runs import RebalanceApply
from qmtl_sdk.contracts.rebalance_schedules import RebalanceScheduleBody
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.nodes.strategy import BuiltStrategy
from temporal.client import connect
from temporal.shutdown import exit_process
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario, PromotionScenario
from tests.support.strategies import LookAhead, Slow, Trend
from tests.support.trades import traded
from tests.support.worlds import POLICY, world
from workflows.ids import (
    apply_id,
    evaluation_id,
    promotion_id,
    rebalance_schedule_id,
    rebalancing_id,
    submission_id,
)
from workflows.options import WORKFLOW_QUEUE
from workflows.renewal import RenewalWorkflow
from workflows.upkeep import UpkeepWorkflow

HISTORIES = Path(__file__).parent / "histories"
EARLIER = Path(__file__).parent / "earlier"
FOLLOWING = ("evaluation", "promotion", "renewal")
"""How the histories of workflows begin that follow the current version (decision 0019)."""


def retain(histories: Path, earlier: Path) -> None:
    """Copy the histories of workflows that follow the current version, under the hash of their content."""
    earlier.mkdir(exist_ok=True)
    for file in sorted(histories.glob("*.json")):
        if file.stem.startswith(FOLLOWING):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
            (earlier / f"{file.stem}.{digest}.json").write_bytes(file.read_bytes())


async def save(machine: Machine, name: str, workflow: str, run_id: str | None = None) -> None:
    client = await connect(machine.config.temporal)
    history = await client.get_workflow_handle(workflow, run_id=run_id).fetch_history()
    body = json.loads(history.to_json(), object_hook=_without_stack_trace)
    (HISTORIES / f"{name}.json").write_text(json.dumps(body, indent=2))


def _without_stack_trace(item: dict[str, Any]) -> dict[str, Any]:
    """Drop what names the folders of this machine; a replay does not read it. (Any: JSON.)"""
    return {key: value for key, value in item.items() if key != "stackTrace"}


async def upkeep(machine: Machine) -> None:
    """Record upkeep as of a hundred days from now, when retention applies to every queue."""
    client = await connect(machine.config.temporal)
    with machine.client() as gateway:
        store_id = gateway.gateway_status()["store_id"]
    later = (datetime.now(UTC) + timedelta(days=100)).isoformat()
    await client.execute_workflow(
        UpkeepWorkflow.run, UpkeepInput(store_id=store_id, now=later), id="upkeep", task_queue=WORKFLOW_QUEUE
    )
    await save(machine, "upkeep", "upkeep")


def applies(machine: Machine) -> None:
    """Record applies that complete, are rejected, aborted, and refused in the switch; and a renewal."""
    stage = ApplyScenario(machine, "promoted")
    try:
        assert stage.promote("dryrun", stage.ana).outcome == "completed"
        asyncio.run(save(machine, "apply_completed", apply_id(stage.world)))
        run = stage.ask("live").run_id
        stage.at(run, "approval")
        stage.ana.reject(stage.world, run, ApprovalBody(reason="no"))
        stage.client.apply_status(stage.world, run, wait_s=30)
        asyncio.run(save(machine, "apply_rejected", apply_id(stage.world)))
        with stage.stuck_order() as unstick:
            run = stage.drains("live")
            stage.client.abort(stage.world, run, "changed my mind")
            asyncio.run(save(machine, "apply_aborted", apply_id(stage.world)))
            run = stage.drains("live")
            stage.client.update_world(stage.world, WorldUpdate(allow_live=False))
            unstick()
            stage.client.apply_status(stage.world, run, wait_s=30)
            asyncio.run(save(machine, "apply_frozen", apply_id(stage.world)))
        asyncio.run(renewal(machine))
    finally:
        stage.close()


def rebalancings(machine: Machine) -> None:
    """Record rebalancings that complete, are rejected, and are aborted."""
    stage = ApplyScenario(machine, "capital", {"approvals": {"required": 1, "live": 1}})
    try:
        assert stage.promote("dryrun", stage.ana).outcome == "completed"
        traded(stage, "IBM", "30")
        given = [{"world_id": stage.world, "weight": "0.3"}]
        stage.client.set_allocations(AllocationUpdate.model_validate({"allocations": given}))
        for run_id in ("rejected", "aborted", "completed"):
            wanted = changed_request(stage.client, [f"{stage.world}=0.2"], {"lot": "1"})
            asked = RebalanceApply(request=wanted.model_copy(update={"run_id": run_id}))
            stage.client.apply_rebalancing(asked, live=True)
            waits = lambda: stage.client.rebalancing(run_id).state == "approval"  # noqa: B023, E731
            wait_for(waits, "the wait for approvals")
            if run_id == "rejected":
                stage.ana.reject_rebalancing(run_id, ApprovalBody(reason="no"))
            elif run_id == "aborted":
                stage.client.abort_rebalancing(run_id, "changed my mind")
            else:
                stage.ana.approve_rebalancing(run_id, ApprovalBody(), live=True)
            found = stage.client.rebalancing(run_id, wait_s=30)
            assert found.outcome is not None
            asyncio.run(save(machine, f"rebalancing_{run_id}", rebalancing_id(run_id)))
    finally:
        stage.close()


def proposals(machine: Machine) -> None:
    """Record firings of a schedule that request a rebalancing, and that fail."""
    stage = ApplyScenario(machine, "scheduled")
    database = machine.database()
    try:
        given = [{"world_id": stage.world, "weight": "0.1"}]
        stage.client.set_allocations(AllocationUpdate.model_validate({"allocations": given}))
        body = {"method": "given", "worlds": [{"world_id": stage.world, "target": "0.2"}]}
        stage.client.set_rebalance_schedule("daily", RebalanceScheduleBody.model_validate(body), live=True)
        for name in ("requested", "failed"):
            if name == "failed":  # what no model holds, in the place of shares
                with database.write("test", bookkeeping=True) as tx:
                    tx.connection.exec_driver_sql("UPDATE allocation SET body = '{'")
            workflow = asyncio.run(fired(machine, "daily"))
            asyncio.run(save(machine, f"proposal_{name}", workflow))
    finally:
        database.close()
        stage.close()


async def fired(machine: Machine, name: str) -> str:
    """Let a schedule fire, and wait for the end. Returns the id of the workflow."""
    client = await connect(machine.config.temporal)
    with machine.client() as gateway:
        schedule_id = rebalance_schedule_id(gateway.gateway_status()["store_id"], name)
    schedule = client.get_schedule_handle(schedule_id)
    count = (await schedule.describe()).info.num_actions
    await schedule.trigger()
    while (found := (await schedule.describe()).info).num_actions == count:
        await asyncio.sleep(0.1)
    action = found.recent_actions[-1].action
    assert isinstance(action, ScheduleActionExecutionStartWorkflow)
    await client.get_workflow_handle(action.workflow_id).result()
    return action.workflow_id


def promotions(machine: Machine) -> None:
    """Record a promotion through both stages, and one that waits and is ended."""
    stage = PromotionScenario(
        machine, "campaign", {"campaign": {"dryrun": "2s"}, "approvals": {"required": 1, "live": 1}}
    )
    try:
        stage.promotion("live")
        first = stage.asked().run_id
        stage.ana.approve(stage.world, first, ApprovalBody())
        stage.waits("no session runs it now")
        stage.run()
        stage.promotion("live")
        stage.ana.approve(stage.world, stage.asked(first).run_id, ApprovalBody(), live=True)
        stage.ended()
        workflow = promotion_id(stage.world, stage.strategy)
        asyncio.run(save(machine, "promotion_completed", workflow))
        stage.client.apply_status(stage.world, stage.ask(None, rollback_of=first).run_id, wait_s=30)
        stage.client.update_world(stage.world, WorldUpdate(allow_live=False))
        stage.promotion("live")
        run = stage.asked().run_id
        stage.ana.approve(stage.world, run, ApprovalBody())
        stage.waits("does not allow live")
        stage.client.end_promotion(stage.world, stage.strategy, "no")
        asyncio.run(save(machine, "promotion_ended", workflow))
    finally:
        stage.close()


async def renewal(machine: Machine) -> None:
    client = await connect(machine.config.temporal)
    with machine.client() as gateway:
        store_id = gateway.gateway_status()["store_id"]
    await client.execute_workflow(
        RenewalWorkflow.run, RenewalInput(store_id=store_id), id="renewal", task_queue=WORKFLOW_QUEUE
    )
    await save(machine, "renewal", "renewal")


def submissions(machine: Machine) -> None:
    """Record submissions that are decided, rejected, and lose their lease; and an evaluation."""
    config = machine.config
    plain = Runner.submit(Trend, world="equities", config=config)
    asyncio.run(save(machine, "submission_decided", plain.workflow_id, plain.run_id))
    with suppress(QmtlError):
        Runner.submit(LookAhead, world="equities", config=config)
    strategy_id = BuiltStrategy(LookAhead).dag.strategy_id
    with machine.client() as client:
        client.status(strategy_id, "equities", wait_s=30)
    asyncio.run(save(machine, "submission_rejected", submission_id("equities", strategy_id)))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(Runner.submit, Slow(0.003), world="equities", config=config)
        wait_for(lambda: list((machine.home / "cache").rglob("*.partial")), "partial output")
        machine.kill("gateway")  # no heartbeat arrives, so the lease times out and another is granted
        time.sleep(2)
        machine.start_gateway()
        result = slow.result(60)
    asyncio.run(save(machine, "submission_lease_lost", result.workflow_id, result.run_id))
    asyncio.run(save(machine, "evaluation", evaluation_id("equities")))


def main() -> int:
    """Record all histories. Returns the exit code."""
    HISTORIES.mkdir(exist_ok=True)
    retain(HISTORIES, EARLIER)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), heartbeat_s=1.0)
        try:
            machine.up()
            with machine.client() as client:
                client.create_world(world(), POLICY)
            submissions(machine)
            asyncio.run(upkeep(machine))
            applies(machine)
            rebalancings(machine)
            promotions(machine)
            proposals(machine)
        finally:
            machine.close()
    return 0


if __name__ == "__main__":
    exit_process(main())
