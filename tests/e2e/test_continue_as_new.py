"""Workflows that continue as new lose no request and leave no waiter, on a real server with a low limit."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from activities.messages.apply import ApplyInput, ApprovalSignal
    from activities.messages.evaluation import EvaluationInput, EvaluationRequest
    from activities.messages.promotion import EndPromotion, PromotionInput
    from qmtl_sdk.contracts.applies import ApprovalBody
    from temporal.submissions import SubmissionService
    from tests.support.desk import policy
    from tests.support.served import Served, served, until
    from workflows.apply import ApplyWorkflow
    from workflows.evaluation import EvaluationWorkflow
    from workflows.ids import apply_id, evaluation_id, promotion_id
    from workflows.options import apply_options, evaluation_options, promotion_options
    from workflows.promotion import PromotionWorkflow

# Events after which the server suggests to continue as new: some three judgments.
LIMIT = 15

FAR = datetime(2099, 1, 1, tzinfo=UTC)


@workflow.defn
class Waiter:
    """Waits for the signal that EvaluationWorkflow sends when the judgment is made."""

    def __init__(self) -> None:
        self._judged = ""

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: bool(self._judged))
        return self._judged

    @workflow.signal
    def judged(self, request_id: str) -> None:
        self._judged = request_id


async def request(stage: Served, request: EvaluationRequest) -> None:
    """Request a judgment as a submission does."""
    await stage.client.start_workflow(
        EvaluationWorkflow.run,
        EvaluationInput(store_id=stage.store_id, world_id=stage.desk.world),
        start_signal="request",
        start_signal_args=[request],
        **evaluation_options(stage.desk.world),
    )


async def runs(stage: Served, workflow_id: str) -> list[str]:
    """The runs of a workflow, as each of them ended."""
    found = stage.client.list_workflows(f"WorkflowId = '{workflow_id}'")
    return [item.status.name if item.status else "" async for item in found]


def test_a_request_that_comes_during_the_last_judgment_is_answered_by_the_next_run(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path, history_limit=LIMIT) as stage:
            sent = 0

            async def one_more() -> None:
                nonlocal sent
                if sent < 12:
                    sent += 1
                    await request(stage, EvaluationRequest(request_id=f"r{sent}"))

            stage.hooks.before["judge"] = one_more  # so that there is no judgment without one that waits
            await request(stage, EvaluationRequest(request_id="r0"))
            ids = tuple(f"r{n}" for n in range(13))

            async def answered() -> bool:
                return len(await asyncio.to_thread(stage.stores.decisions.answered, ids)) == len(ids)

            await until(answered, "answer to every request")
            ended = await until_ended(stage, evaluation_id(stage.desk.world))
            assert ended.count("CONTINUED_AS_NEW") >= 2

    asyncio.run(run())


async def until_ended(stage: Served, workflow_id: str) -> list[str]:
    """Wait for the last run's end. The states of all runs."""
    await asyncio.wait_for(stage.client.get_workflow_handle(workflow_id).result(), 30)

    async def listed() -> list[str]:
        found = await runs(stage, workflow_id)
        return found if "RUNNING" not in found else []

    return await until(listed, "end of every run")


def test_every_waiter_is_answered_while_the_evaluation_crosses_many_runs(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            served(tmp_path, history_limit=LIMIT) as stage,
            Worker(stage.client, task_queue="waiters", workflows=[Waiter]),
        ):
            waiters = [
                await stage.client.start_workflow(Waiter.run, id=f"waiter-{n}", task_queue="waiters")
                for n in range(60)
            ]

            async def by_signal(n: int) -> None:
                waiter = waiters[n]
                await asyncio.sleep(n * 0.1)  # a stream of submissions, not one batch
                reply = {"reply_to": waiter.id, "reply_run": waiter.result_run_id or ""}
                await request(stage, EvaluationRequest(request_id=f"s{n}", **reply))

            async def by_update() -> int:
                """A person, who asks again until the evaluation has continued as new twice."""
                stores = stage.stores
                service = SubmissionService(
                    stage.client, stage.store_id, stores.log, stores.runs, stores.decisions, 10.0
                )
                turns = 0
                while (await runs(stage, evaluation_id(stage.desk.world))).count("CONTINUED_AS_NEW") < 2:
                    turns += 1
                    await service.decide(stage.desk.world, f"u{turns}", "a person asks", "pia")
                return turns

            await request(stage, EvaluationRequest(request_id="first"))
            async with asyncio.timeout(120):
                person = asyncio.create_task(by_update())
                await asyncio.gather(*(by_signal(n) for n in range(len(waiters))))
                assert [await waiter.result() for waiter in waiters] == [f"s{n}" for n in range(60)]
                assert await person > 0
            ended = await until_ended(stage, evaluation_id(stage.desk.world))
            assert ended.count("CONTINUED_AS_NEW") >= 2
            assert set(ended) == {"CONTINUED_AS_NEW", "COMPLETED"}

    asyncio.run(run())


def promotion(stage: Served) -> PromotionInput:
    return PromotionInput(
        store_id=stage.store_id,
        world_id=stage.desk.world,
        strategy_id=stage.desk.strategies[0],
        to="dryrun",
        requested_by="olga",
    )


def test_a_promotion_that_is_ended_when_it_would_continue_as_new_ends(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path, history_limit=LIMIT) as stage:
            stage.desk.request("dryrun")  # an apply that runs already, so the promotion can't request one
            strategy = stage.desk.strategies[0]
            tried = asyncio.Semaphore(0)
            go_on = asyncio.Semaphore(0)

            async def hold() -> None:
                tried.release()
                await go_on.acquire()

            stage.hooks.before["request_apply"] = hold
            handle = await stage.client.start_workflow(
                PromotionWorkflow.run,
                promotion(stage),
                **promotion_options(stage.desk.world, strategy, "s", "dryrun"),
            )
            await tried.acquire()
            # Each is an event or more. After hundreds of them a run has begun again before its step was done.
            for _ in range(LIMIT):
                await handle.signal(PromotionWorkflow.check)

            async def is_long() -> bool:
                return (await handle.describe()).history_length >= LIMIT

            await until(is_long, "a long history")
            end = asyncio.create_task(
                stage.client.get_workflow_handle_for(
                    PromotionWorkflow.run, promotion_id(stage.desk.world, strategy)
                ).execute_update(PromotionWorkflow.end, EndPromotion(actor="olga", reason="no more"))
            )

            async def accepted() -> bool:
                history = await handle.fetch_history()
                kind = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
                return any(event.event_type == kind for event in history.events)

            await until(accepted, "acceptance of the end")
            for _ in range(100):
                go_on.release()
            view = await asyncio.wait_for(end, 20)
            assert view.outcome == "stopped"
            assert (await asyncio.wait_for(handle.result(), 20)).reason == "ended by olga: no more"

    asyncio.run(run())


def test_a_promotion_keeps_its_run_and_its_count_over_runs(tmp_path: Path) -> None:
    async def run() -> None:
        found = policy(campaign={"backtest": "30d", "dryrun": "60d"})
        async with served(tmp_path, found, history_limit=LIMIT) as stage:
            strategy = stage.desk.strategies[0]
            options = promotion_options(stage.desk.world, strategy, "s", "dryrun")
            await stage.client.start_workflow(PromotionWorkflow.run, promotion(stage), **options)
            handle = stage.client.get_workflow_handle_for(
                PromotionWorkflow.run, promotion_id(stage.desk.world, strategy)
            )

            async def crossed() -> bool:
                await handle.signal(PromotionWorkflow.check)
                return (await runs(stage, handle.id)).count("CONTINUED_AS_NEW") >= 2

            await until(crossed, "second continue-as-new")
            view = await handle.execute_update(PromotionWorkflow.end, EndPromotion(actor="olga"))
            assert view.outcome == "stopped"
            assert view.requested_by == "olga"

    asyncio.run(run())


def test_an_apply_that_crosses_runs_counts_every_approval_within_one_time_limit(tmp_path: Path) -> None:
    async def run() -> None:
        found = policy(approvals={"required": 2, "live": 2, "direct_signals": True})
        async with served(tmp_path, found, history_limit=LIMIT) as stage:
            world = stage.desk.world
            run_id = stage.desk.request("dryrun")
            options = apply_options(world, run_id, "t", 2)
            command = ApplyInput(store_id=stage.store_id, world_id=world, run_id=run_id)
            await stage.client.start_workflow(ApplyWorkflow.run, command, **options)
            handle = stage.client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(world))

            async def crossed() -> bool:
                """One person approves again and again, which counts once."""
                signal = ApprovalSignal(run_id=run_id, actor="ana")
                await handle.signal(ApplyWorkflow.approve, signal)
                return (await runs(stage, handle.id)).count("CONTINUED_AS_NEW") >= 2

            await until(crossed, "second continue-as-new", 60)
            limit = stage.desk.steps.await_approval(world, run_id, FAR).until
            assert limit < FAR, "the first run's limit stands"
            stored = stage.desk.approvals.record(world, run_id, "ben", "approve", ApprovalBody())
            signal = ApprovalSignal(run_id=run_id, approval_id=stored.approval_id)
            await handle.signal(ApplyWorkflow.approve, signal)
            assert (await asyncio.wait_for(handle.result(), 30)).outcome == "completed"
            ended = await runs(stage, handle.id)
            assert set(ended) <= {"CONTINUED_AS_NEW", "COMPLETED"}

    asyncio.run(run())


def test_an_abort_that_comes_while_an_apply_crosses_runs_ends_it(tmp_path: Path) -> None:
    async def run() -> None:
        found = policy(approvals={"required": 2, "live": 2, "direct_signals": True})
        async with served(tmp_path, found, history_limit=LIMIT) as stage:
            world = stage.desk.world
            run_id = stage.desk.request("dryrun")
            options = apply_options(world, run_id, "t", 2)
            command = ApplyInput(store_id=stage.store_id, world_id=world, run_id=run_id)
            await stage.client.start_workflow(ApplyWorkflow.run, command, **options)
            handle = stage.client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(world))
            signals = [
                handle.signal(ApplyWorkflow.approve, ApprovalSignal(run_id=run_id, actor="ana"))
                for _ in range(40)
            ]
            _, answer = await asyncio.gather(
                asyncio.gather(*signals, return_exceptions=True),  # those after the end are refused
                stage.applies.abort(world, run_id, "olga", "enough"),
                return_exceptions=True,
            )
            # Where the runs change for too long, the person is told that the abort is recorded.
            assert not isinstance(answer, BaseException) or "E_RECORDED" in str(answer)
            async with asyncio.timeout(60):
                while not (ended := await stage.applies.ended(world, run_id)).outcome:
                    await asyncio.sleep(0.1)
            assert ended.outcome == "rolled_back"
            assert "aborted by olga: enough" in ended.reason
            assert stage.desk.fence_row().state == "open"

    asyncio.run(run())
