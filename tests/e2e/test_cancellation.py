"""Workflows that are cancelled or terminated at any step leave what one command, or none, brings back."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.service import RPCError

from activities.messages.apply import ApplyInput, ApprovalSignal
from activities.messages.promotion import PromotionInput
from benchmarks.submit import submission
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.author import Author
from tests.support.desk import Desk, policy
from tests.support.served import Served, served, until
from workflows.apply import ApplyWorkflow
from workflows.ids import apply_id, evaluation_id, submission_id
from workflows.options import apply_options, promotion_options
from workflows.promotion import PromotionWorkflow

ABORTED = ("rolled_back", "aborted by temporal: the workflow was cancelled", "validate")
COMPLETED = ("completed", "", "paper")


def mode_of(stage: Served) -> str:
    """The mode that the world's strategy trades in; it has none before its first apply."""
    found = stage.desk.fence.activations(stage.desk.world)
    return found[0].effective_mode if found else "validate"


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_apply_that_is_cancelled_at_a_step_is_aborted_unless_it_switches(
    tmp_path: Path, done: bool
) -> None:
    async def run() -> None:
        async with served(tmp_path) as stage:
            for step, outcome in CANCELLED.items():
                await cancelled_at(of_its_own(stage, step), step, outcome, done)

    asyncio.run(run())


CANCELLED = {
    "apply_plan": ABORTED,
    "read_approvals": ABORTED,
    "freeze_world": ABORTED,
    "drain_world": ABORTED,
    "switch_world": COMPLETED,
    "unfreeze_world": COMPLETED,
    "conclude_apply": COMPLETED,
}


def of_its_own(stage: Served, world: str) -> Served:
    """The same stores and server with another world."""
    stage.hooks.before.clear()
    stage.hooks.after.clear()
    return replace(stage, desk=Desk(stage.stores.database, world))


async def cancelled_at(stage: Served, step: str, outcome: tuple[str, str, str], done: bool) -> None:
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
    assert (step, ended.outcome, ended.reason, mode) == (step, *outcome)
    assert stage.desk.requests.find(world, run_id).outcome == outcome[0]
    assert stage.desk.fence_row().state == "open"
    with pytest.raises(QmtlError, match="neither halted nor frozen"):  # nothing is left to resume
        stage.desk.steps.resume(world, "olga", "check")


ROLLED_BACK = ("rolled_back", "validate", "open")
FROZEN = ("frozen", "validate", "frozen")
SWITCHED = ("frozen", "paper", "frozen")
DONE = ("completed", "paper", "open")


TERMINATED = {  # before and after the step is done
    "apply_plan": (ROLLED_BACK, ROLLED_BACK),
    "read_approvals": (ROLLED_BACK, ROLLED_BACK),
    "freeze_world": (ROLLED_BACK, FROZEN),
    "drain_world": (FROZEN, FROZEN),
    "switch_world": (FROZEN, SWITCHED),
    "unfreeze_world": (SWITCHED, DONE),
    "await_acks": (DONE, DONE),
    "conclude_apply": (DONE, DONE),
}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_apply_that_was_terminated_ends_where_it_stood(tmp_path: Path, done: bool) -> None:
    """Recovery started it again with its votes, and an approval that came later took it live."""

    async def run() -> None:
        async with served(tmp_path) as stage:
            for step, expected in TERMINATED.items():
                await terminated_at(of_its_own(stage, step), step, expected[done], done)

    asyncio.run(run())


async def terminated_at(stage: Served, step: str, expected: tuple[str, str, str], done: bool) -> None:
    desk, world = stage.desk, stage.desk.world
    run_id = desk.request("dryrun")
    desk.approvals.record(world, run_id, "ana", "approve", ApprovalBody())
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        reached.set()
        await go_on.wait()

    (stage.hooks.after if done else stage.hooks.before)[step] = hold
    await stage.applies.start(world, run_id)
    await asyncio.wait_for(reached.wait(), 60)
    await stage.client.get_workflow_handle(apply_id(world)).terminate("by hand")

    def state() -> tuple[str, str | None, str, str]:
        fence = desk.fence_row().state
        outcome = desk.requests.find(world, run_id).outcome
        return step, outcome, mode_of(stage), "frozen" if fence == "draining" else fence

    try:
        await stage.applies.recover()
        assert state() == (step, *expected)
    finally:
        go_on.set()  # the worker waits for its activities to end
    for late in ("freeze", "drain", "switch", "unfreeze"):  # under way when the workflow ended
        with contextlib.suppress(QmtlError):
            getattr(desk.steps, late)(world, run_id)
    assert state() == (step, *expected)
    if expected[2] == "frozen":
        assert "terminated in Temporal" in desk.requests.find(world, run_id).reason
        desk.steps.resume(world, "olga", "checked")
    assert state()[2:] == (expected[1], "open")
    if expected[1] == "validate":
        again = desk.request("dryrun")
        desk.approvals.record(world, again, "ana", "approve", ApprovalBody())
        stage.hooks.before.clear()
        stage.hooks.after.clear()
        await stage.applies.recover()
        assert (await stage.applies.ended(world, again)).outcome == "completed"


@pytest.mark.parametrize("end", ["cancel", "terminate"])
def test_a_submission_that_is_ended_at_any_step_can_be_submitted_again(tmp_path: Path, end: str) -> None:
    async def run() -> None:
        async with served(tmp_path) as stage:
            author = Author(stage)
            for number, step in enumerate(("admit_run", "", "measure", "request_evaluation", "conclude")):
                reached, go_on = asyncio.Event(), asyncio.Event()

                async def hold(reached: asyncio.Event = reached, go_on: asyncio.Event = go_on) -> None:
                    reached.set()
                    await go_on.wait()

                if step:
                    stage.hooks.before[step] = hold
                first = asyncio.create_task(author.submits(number))
                if step != "admit_run":
                    ack = await first
                    if step:
                        assert ack.lease is not None
                        await author.service.complete(ack.lease.lease_id, author.proof)
                if step:
                    await asyncio.wait_for(reached.wait(), 60)
                name = submission_id("equities", submission(number).dag.strategy_id)
                handle = stage.client.get_workflow_handle(name)
                await (handle.cancel() if end == "cancel" else handle.terminate("by hand"))
                stage.hooks.before.clear()
                go_on.set()
                if end == "cancel":
                    ack = await first
                    found = await author.outcome(ack)
                    late = step in ("measure", "request_evaluation", "conclude")
                    assert (step, found.status) == (step, "decided" if late else "failed")
                    assert late or found.error_code == "E_CANCELLED"
                else:
                    with contextlib.suppress(QmtlError, WorkflowUpdateFailedError, RPCError):
                        await first  # its answer was never recorded, or it is one of the run that is gone
                again = await author.submits(number)
                assert (step, (await author.completes(again)).status) == (step, "decided")

    asyncio.run(run())


@pytest.mark.parametrize("end", ["cancel", "terminate"])
def test_an_evaluation_that_is_ended_is_begun_by_the_next_request(tmp_path: Path, end: str) -> None:
    async def run() -> None:
        async with served(tmp_path) as stage:
            author = Author(stage)
            reached, go_on = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                reached.set()
                await go_on.wait()

            stage.hooks.before["judge"] = hold
            first = asyncio.create_task(author.service.decide(stage.desk.world, "r1", "", "pia"))
            await asyncio.wait_for(reached.wait(), 60)
            handle = stage.client.get_workflow_handle(evaluation_id(stage.desk.world))
            await (handle.cancel() if end == "cancel" else handle.terminate("by hand"))
            stage.hooks.before.clear()
            go_on.set()
            with contextlib.suppress(QmtlError, WorkflowUpdateFailedError, RPCError):
                await first
            assert (
                await author.service.decide(stage.desk.world, "r2", "", "pia")
            ).world_id == stage.desk.world

    asyncio.run(run())


@pytest.mark.parametrize("at", ["waiting", "approval", "drain_world", "switch_world"])
def test_a_promotion_that_is_cancelled_ends_and_aborts_its_apply_unless_it_has_switched(
    tmp_path: Path, at: str
) -> None:
    async def run() -> None:
        found = policy(campaign={"backtest": "30d", "dryrun": "60d"}) if at == "waiting" else None
        async with served(tmp_path, found) as stage:
            desk, strategy = stage.desk, stage.desk.strategies[0]
            reached, go_on = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                reached.set()
                await go_on.wait()

            stage.hooks.before[at] = hold
            handle = await stage.client.start_workflow(
                PromotionWorkflow.run,
                PromotionInput(
                    store_id=stage.store_id,
                    world_id=desk.world,
                    strategy_id=strategy,
                    to="dryrun",
                    requested_by="olga",
                ),
                **promotion_options(desk.world, strategy, "s", "dryrun"),
            )

            async def waits() -> bool:
                applies = desk.requests.newest(desk.world, 1)
                return bool((await handle.query(PromotionWorkflow.gate)).waits_for) and (
                    at == "waiting" or (bool(applies) and applies[0].state == "approval")
                )

            await until(waits, "the wait")
            if at in ("drain_world", "switch_world"):
                apply = desk.requests.newest(desk.world, 1)[0].run_id
                stored = desk.approvals.record(desk.world, apply, "ana", "approve", ApprovalBody())
                signal = ApprovalSignal(run_id=apply, approval_id=stored.approval_id)
                await stage.client.get_workflow_handle(apply_id(desk.world)).signal("approve", signal)
                await asyncio.wait_for(reached.wait(), 60)
            await handle.cancel()
            if at in ("drain_world", "switch_world"):
                child = stage.client.get_workflow_handle(apply_id(desk.world))

                async def cancelled() -> bool:
                    kind = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
                    return any(item.event_type == kind for item in (await child.fetch_history()).events)

                await until(cancelled, "cancellation of the apply")
            go_on.set()
            ended = await asyncio.wait_for(handle.result(), 60)
            if at == "switch_world":
                assert (ended.outcome, mode_of(stage)) == ("completed", "paper")
            else:
                assert (ended.outcome, mode_of(stage)) == ("stopped", "validate")
                assert "temporal" in ended.reason
            assert desk.fence_row().state == "open"
            assert desk.requests.unfinished() == []

    asyncio.run(run())
