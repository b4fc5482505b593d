"""Every time limit, on Temporal's time-skipping server; the machine's clock follows the server's."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import tenacity
import time_machine
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.messages.apply import ApplyInput, ApprovalSignal
from activities.messages.evaluation import EvaluationInput, EvaluationRequest
from activities.messages.promotion import PromotionInput
from activities.settings import Settings, settings
from activities.storage.tables import GatewayRow
from activities.stores import Stores
from qmtl_sdk.contracts.applies import ApplyStatus, ApprovalBody
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.promotions import PromotionView
from temporal.plugin import QmtlPlugin
from temporal.worker import serving
from tests.support.desk import Desk, policy, stuck_order
from tests.support.time_skipping import launcher
from workflows.apply import ApplyWorkflow
from workflows.evaluation import EvaluationWorkflow
from workflows.ids import apply_id, promotion_id
from workflows.options import WORKFLOW_QUEUE, evaluation_options
from workflows.promotion import PromotionWorkflow
from workflows.search_attributes import SEARCH_ATTRIBUTES

T = TypeVar("T")
DAY = timedelta(days=1)


@pytest.fixture(scope="session")
def server() -> Path:
    found = launcher(settings().tools_dir)
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("the time-skipping server takes Java and Maven")
    assert found is not None, "the time-skipping server takes Java and Maven"
    return found


class Follow(Interceptor):
    """Set the machine's clock to the server's before each activity."""

    def __init__(self, env: WorkflowEnvironment, clock: time_machine.Traveller) -> None:
        self.env = env
        self.clock = clock

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Following(next, self)


class _Following(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, follow: Follow) -> None:
        super().__init__(next)
        self._follow = follow

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        self._follow.clock.move_to(await self._follow.env.get_current_time())
        return await super().execute_activity(input)


@dataclass
class Skipping:
    """A world in a store, a worker over it, and the time-skipping server."""

    env: WorkflowEnvironment
    stores: Stores
    desk: Desk
    clock: time_machine.Traveller

    async def now(self) -> datetime:
        return await self.env.get_current_time()

    async def passes(self, span: timedelta) -> None:
        await self.env.sleep(span)
        self.clock.move_to(await self.now())

    async def apply(self, run: str) -> WorkflowHandle[Any, Any]:
        command = ApplyInput(store_id=self.stores.database.store_id, world_id=self.desk.world, run_id=run)
        return await self.env.client.start_workflow(
            ApplyWorkflow.run, command, id=apply_id(self.desk.world), task_queue=WORKFLOW_QUEUE
        )

    async def until(self, condition: Callable[[], Awaitable[T]], what: str, limit_s: float = 30.0) -> T:
        """The condition's first true answer; no time is skipped meanwhile."""
        deadline = time.monotonic() + limit_s
        while not (answer := await condition()):
            assert time.monotonic() < deadline, f"no {what} within {limit_s} s"
            await asyncio.sleep(0.02)
        return answer

    async def waiting(self) -> ApplyStatus:
        """The apply that waits for approval."""

        async def found() -> ApplyStatus | None:
            applies = await asyncio.to_thread(self.desk.requests.newest, self.desk.world, 1)
            return applies[0] if applies and applies[0].state == "approval" else None

        return await self.until(found, "apply that waits for approval")

    async def agree(self) -> str:
        """To the apply that waits, as the Gateway does it: kept, then told. Its run."""
        run = (await self.waiting()).run_id
        kept = self.desk.approvals.record(self.desk.world, run, "ana", "approve", ApprovalBody())
        await self.env.client.get_workflow_handle(apply_id(self.desk.world)).signal(
            "approve", ApprovalSignal(run_id=run, approval_id=kept.approval_id)
        )
        return run

    async def approve(self) -> None:
        """Agree, and see it through."""
        run = await self.agree()

        async def ended() -> bool:
            return self.desk.requests.find(self.desk.world, run).outcome == "completed"

        await self.until(ended, "end of the apply")


@tenacity.retry(
    retry=tenacity.retry_if_exception_message(match=".*did not start within"),
    stop=tenacity.stop_after_attempt(6),
    reraise=True,
)
async def started(server: Path, plugin: QmtlPlugin) -> WorkflowEnvironment:
    """Start the server with retries: the library gives its JVM five seconds, too little on a slow disk."""
    return await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(server), plugins=[plugin]
    )


@asynccontextmanager
async def skipping(server: Path, home: Path, found: Policy) -> AsyncIterator[Skipping]:
    with closing(Stores.open(Settings(home=home))) as stores:
        desk = Desk(stores.database, found=found)
        async with await started(server, QmtlPlugin(stores.database.store_id)) as env:
            kinds = dict.fromkeys(
                (key.name for key in SEARCH_ATTRIBUTES), IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
            )
            await env.client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace="default", search_attributes=kinds)
            )
            with time_machine.travel(await env.get_current_time(), tick=True) as clock:
                async with serving(env.client, stores, [Follow(env, clock)]):
                    yield Skipping(env, stores, desk, clock)


def test_an_approval_that_does_not_come_ends_the_apply_after_its_limit(server: Path, tmp_path: Path) -> None:
    async def run() -> None:
        async with skipping(
            server, tmp_path, policy(approvals={"required": 1, "live": 1, "expires": "7d"})
        ) as stage:
            began = await stage.now()
            handle = await stage.apply(stage.desk.request("dryrun"))
            await stage.passes(6 * DAY)
            assert (await stage.waiting()).outcome is None, "six days are not seven"
            ended = await handle.result()
            assert (ended.outcome, ended.reason) == ("rolled_back", "no approval within 7d")
            assert timedelta(days=7) <= await stage.now() - began < timedelta(days=7, hours=1)
            assert stage.desk.fence_row().state == "open"

    asyncio.run(run())


def test_a_run_that_replaces_a_lost_one_waits_for_approvals_no_longer(server: Path, tmp_path: Path) -> None:
    """The limit started anew with each run."""

    async def run() -> None:
        async with skipping(
            server, tmp_path, policy(approvals={"required": 1, "live": 1, "expires": "7d"})
        ) as stage:
            began = await stage.now()
            run = stage.desk.request("dryrun")
            stage.desk.steps.await_approval(
                stage.desk.world, run, began + timedelta(days=1)
            )  # by the lost one
            ended = await (await stage.apply(run)).result()
            assert (ended.outcome, ended.reason) == ("rolled_back", "no approval within 7d")
            assert timedelta(days=1) <= await stage.now() - began < timedelta(days=1, hours=1)

    asyncio.run(run())


def test_an_open_order_holds_a_drain_up_no_longer_than_its_limit(server: Path, tmp_path: Path) -> None:
    async def run() -> None:
        limits = {"freeze_timeout_ms": 1000, "drain_timeout_ms": 86_400_000}
        async with skipping(server, tmp_path, policy(apply=limits)) as stage:
            with stage.stores.database.write("test", bookkeeping=True) as tx:
                tx.session.add(stuck_order(stage.desk.world))
            handle = await stage.apply(stage.desk.request("dryrun"))
            await stage.agree()

            async def drains() -> bool:
                return stage.desk.fence_row().state == "draining"

            await stage.until(drains, "drain")
            stage.clock.shift(0.9 * DAY)
            await asyncio.sleep(0.2)
            assert stage.desk.fence_row().state == "draining", "nine tenths of the limit are not the limit"
            stage.clock.shift(0.2 * DAY)
            ended = await handle.result()
            assert ended.outcome == "rolled_back"
            assert ended.reason.startswith("not drained: 1 orders were still open after 86400 s")
            assert stage.desk.fence_row().state == "open"

    asyncio.run(run())


@pytest.mark.parametrize("back", ["restore", "unfreeze"])
def test_an_apply_whose_run_is_lost_on_its_way_back_is_concluded_by_the_next(
    server: Path, tmp_path: Path, back: str
) -> None:
    """Traps: it switched after all, or failed for ever, with the world between two states."""

    async def run() -> None:
        async with skipping(server, tmp_path, policy()) as stage:
            desk = stage.desk
            lost = desk.request("dryrun")
            desk.freeze(lost)
            for step in ("drain", back):
                getattr(desk.steps, step)(desk.world, lost)
            ended = await asyncio.wait_for((await stage.apply(lost)).result(), 30)
            world = desk.fence_row().state
            if back == "restore":
                assert (ended.outcome, world) == ("frozen", "draining")
                assert "qmtl world resume" in ended.reason
                desk.steps.resume(desk.world, "olga", "")
            else:
                assert (ended.outcome, world) == ("rolled_back", "open")
            assert desk.requests.find(desk.world, lost).outcome == ended.outcome
            assert desk.fence.activations(desk.world)[0].effective_mode == "validate"
            assert desk.requests.unfinished() == []
            desk.apply("dryrun")

    asyncio.run(run())


def test_who_does_not_acknowledge_is_waited_for_no_longer_than_the_limit(
    server: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        async with skipping(
            server, tmp_path, policy(apply={"freeze_timeout_ms": 3_600_000, "drain_timeout_ms": 7_200_000})
        ) as stage:
            with stage.stores.database.write("test", bookkeeping=True) as tx:
                tx.session.add(GatewayRow(gateway_id="gateway:mute", started_at="", expires_at="9999"))
            handle = await stage.apply(stage.desk.request("dryrun"))
            run = await stage.agree()

            def state() -> str:
                return stage.desk.requests.find(stage.desk.world, run).state

            for step in ("drain", "unfreeze"):

                async def there(step: str = step) -> bool:
                    return state() == step

                async def past(step: str = step) -> bool:
                    stage.clock.shift(timedelta(hours=1.1))  # an activity that begins meanwhile sets it back
                    return state() != step

                await stage.until(there, step)
                await asyncio.sleep(0.3)
                assert state() == step, "it waits for the Gateway that says nothing"
                await stage.until(past, f"end of {step}")
            assert (await handle.result()).outcome == "completed"
            assert [item.at for item in stage.desk.requests.find(stage.desk.world, run).acks] == [None, None]

    asyncio.run(run())


def test_a_campaign_takes_its_windows(server: Path, tmp_path: Path) -> None:
    async def run() -> None:
        gating = {
            "campaign": {"backtest": "30d", "dryrun": "60d"},
            "approvals": {"required": 1, "live": 1, "expires": "7d"},
        }
        found = policy(**gating).model_copy(update={"decision_ttl": 400 * 86_400})
        async with skipping(server, tmp_path, found) as stage:
            stage.desk.decide(ttl=400 * 86_400)
            began = await stage.now()
            strategy = stage.desk.strategies[0]
            promotion = PromotionInput(
                store_id=stage.stores.database.store_id,
                world_id=stage.desk.world,
                strategy_id=strategy,
                to="live",
                requested_by="olga",
            )
            handle = await stage.env.client.start_workflow(
                PromotionWorkflow.run, promotion, id=promotion_id("w", strategy), task_queue=WORKFLOW_QUEUE
            )

            async def waits(word: str) -> PromotionView:
                async def said() -> PromotionView | None:
                    view = await handle.query(PromotionWorkflow.gate)
                    return view if word in view.waits_for else None

                return await stage.until(said, word)

            await waits("active in backtest for")
            await stage.passes(29 * DAY)
            await waits("active in backtest for")
            assert stage.desk.requests.newest(stage.desk.world) == [], "29 days are not 30"
            await stage.passes(2 * DAY)
            stage.desk.sessions.lease_s = 400.0 * 86_400
            stage.desk.session(strategy)
            await stage.approve()
            assert stage.desk.fence.activations(stage.desk.world)[0].effective_mode == "paper"
            await waits("run in dryrun for")
            await stage.passes(59 * DAY)
            await waits("run in dryrun for")
            assert len(stage.desk.requests.newest(stage.desk.world)) == 1, "59 days are not 60"
            await stage.passes(2 * DAY)
            await stage.approve()
            assert timedelta(days=91) <= await stage.now() - began < timedelta(days=93)
            assert (await handle.result()).outcome == "completed"
            assert stage.desk.fence.activations(stage.desk.world)[0].effective_mode == "live"
            history = await handle.fetch_history()
            assert len(history.events) < 150, "a window is one timer, not a look every minute"

    asyncio.run(run())


def test_a_strategy_dwells_as_long_as_the_policy_wants(server: Path, tmp_path: Path) -> None:
    async def run() -> None:
        body = policy().model_dump(by_alias=True)
        body["selection"] |= {"gates": {"and": ["sharpe >= 0.5"]}, "hysteresis": {"min_dwell": "3h"}}
        async with skipping(server, tmp_path, Policy.model_validate(body)) as stage:
            strategy = stage.desk.strategies[0]

            async def active() -> bool:
                options = evaluation_options(stage.desk.world)
                handle = await stage.env.client.start_workflow(
                    EvaluationWorkflow.run,
                    EvaluationInput(store_id=stage.stores.database.store_id, world_id=stage.desk.world),
                    **options,
                )
                await handle.execute_update(
                    EvaluationWorkflow.evaluate, EvaluationRequest(request_id=uuid.uuid4().hex)
                )
                found = stage.desk.decisions.decision(stage.desk.world)
                assert found is not None
                return found.strategies[0].active

            assert not await active(), "three hours out before it may come in"
            await stage.passes(timedelta(hours=2.9))
            assert not await active()
            await stage.passes(timedelta(hours=0.2))
            assert await active()
            stage.desk.evidence(strategy, sharpe=0.1)
            await stage.passes(timedelta(hours=2.9))
            assert await active(), "it fails, and dwells"
            await stage.passes(timedelta(hours=0.2))
            assert not await active()

    asyncio.run(run())
