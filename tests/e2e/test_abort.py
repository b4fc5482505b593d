"""An abort that is stored stops the apply at its next change, whether or not the workflow hears of it."""

import asyncio
from pathlib import Path

import pytest

from activities.messages.apply import ApplyInput
from qmtl_sdk.contracts.applies import ApprovalBody
from tests.support.served import Served, served
from tests.support.trail import audit_trail
from workflows.apply import ApplyWorkflow
from workflows.options import apply_options


def approved(stage: Served) -> str:
    run_id = stage.desk.request("dryrun")
    stage.desk.approvals.record(stage.desk.world, run_id, "ana", "approve", ApprovalBody())
    return run_id


def left_as_it_was(stage: Served) -> bool:
    modes = [item.effective_mode for item in stage.desk.fence.activations(stage.desk.world)]
    return stage.desk.fence_row().state == "open" and set(modes) <= {"validate"}


@pytest.mark.parametrize("step", ["freeze_world", "drain_world", "switch_world"])
def test_an_abort_that_the_workflow_has_not_received_stops_the_next_change(tmp_path: Path, step: str) -> None:
    """Temporal was away when it was stored; an approval came first when it was back."""

    async def run() -> None:
        async with served(tmp_path) as stage:
            world = stage.desk.world
            run_id = approved(stage)

            async def abort() -> None:
                stage.desk.requests.record_abort(world, run_id, "olga", "enough")

            stage.hooks.before[step] = abort
            ended = await stage.client.execute_workflow(
                ApplyWorkflow.run,
                ApplyInput(store_id=stage.store_id, world_id=world, run_id=run_id),
                **apply_options(world, run_id, "t", 1),
            )
            assert ended.outcome == "rolled_back"
            assert "aborted by olga: enough" in ended.reason
            assert left_as_it_was(stage)
            assert stage.desk.requests.unfinished() == []

    asyncio.run(run())


@pytest.mark.parametrize("lost_after", [(), ("freeze",), ("freeze", "drain")])
def test_an_abort_of_an_apply_whose_run_was_lost_opens_the_world(
    tmp_path: Path, lost_after: tuple[str, ...]
) -> None:
    """The run that replaced it ended without an unfreeze, and tried to record that for ever."""

    async def run() -> None:
        async with served(tmp_path) as stage:
            run_id = approved(stage)
            for step in lost_after:
                getattr(stage.desk.steps, step)(stage.desk.world, run_id)
            ended = await asyncio.wait_for(
                stage.applies.abort(stage.desk.world, run_id, "olga", "enough"), 60
            )
            assert ended.outcome == "rolled_back"
            assert "aborted by olga: enough" in ended.reason
            assert left_as_it_was(stage)

    asyncio.run(run())


def test_of_two_aborts_the_first_is_carried_out_and_both_are_in_the_audit_trail(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as stage:
            world = stage.desk.world
            run_id = approved(stage)
            stage.desk.requests.record_abort(world, run_id, "olga", "enough")
            ended = await stage.applies.abort(world, run_id, "paul", "mine")
            assert "aborted by olga: enough" in ended.reason
            entries = audit_trail(stage.stores.database).page(world, 0, 1000).entries
            asked = [entry.actor for entry in entries if entry.action == "apply.abort_requested"]
            assert asked == ["olga", "paul"]

    asyncio.run(run())
