"""An apply workflow that is cancelled at any step leaves its world open, before or after the whole change."""

import asyncio
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType

from activities.messages.apply import ApplyInput
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.served import Served, served, until
from workflows.apply import ApplyWorkflow
from workflows.options import apply_options

ABORTED = ("rolled_back", "aborted by temporal: the workflow was cancelled", "validate")
COMPLETED = ("completed", "", "paper")


def mode_of(stage: Served) -> str:
    """The mode that the world's strategy trades in; it has none before its first apply."""
    found = stage.desk.fence.activations(stage.desk.world)
    return found[0].effective_mode if found else "validate"


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ("apply_plan", ABORTED),
        ("read_approvals", ABORTED),
        ("freeze_world", ABORTED),
        ("drain_world", ABORTED),
        ("switch_world", COMPLETED),
        ("unfreeze_world", COMPLETED),
        ("conclude_apply", COMPLETED),
    ],
)
def test_cancelled_at_a_step(tmp_path: Path, step: str, outcome: tuple[str, str, str], done: bool) -> None:
    async def run() -> None:
        async with served(tmp_path) as stage:
            world = stage.desk.world
            run_id = stage.desk.request("dryrun")
            stage.desk.approvals.record(world, run_id, "ana", "approve", ApprovalBody())
            command = ApplyInput(store_id=stage.store_id, world_id=world, run_id=run_id)
            reached = asyncio.Event()
            cancelled = asyncio.Event()

            async def hold() -> None:
                reached.set()
                await cancelled.wait()

            (stage.hooks.after if done else stage.hooks.before)[step] = hold
            handle = await stage.client.start_workflow(
                ApplyWorkflow.run, command, **apply_options(world, run_id, "t", 1)
            )
            await asyncio.wait_for(reached.wait(), 20)
            await handle.cancel()

            async def recorded() -> bool:
                kind = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
                history = await handle.fetch_history()
                position = [event.event_type for event in history.events]
                if kind not in position:
                    return False
                later = position[position.index(kind) :]
                return EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED in later

            await until(recorded, "cancellation that the workflow has seen")
            cancelled.set()
            ended = await asyncio.wait_for(handle.result(), 30)
            mode = mode_of(stage)
            assert (ended.outcome, ended.reason, mode) == outcome
            assert stage.desk.requests.find(world, run_id).outcome == outcome[0]
            assert stage.desk.fence_row().state == "open"
            with pytest.raises(QmtlError, match="neither halted nor frozen"):  # nothing is left to resume
                stage.desk.steps.resume(world, "olga", "check")

    asyncio.run(run())
