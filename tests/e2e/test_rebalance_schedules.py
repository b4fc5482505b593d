"""Schedules of rebalancings at the command line and on the real server."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from temporalio.client import ScheduleDescription, ScheduleOverlapPolicy
from temporalio.service import RPCError

from activities.rebalancing.schedules import SqlRebalanceSchedules
from qmtl_sdk.contracts.access import Caller, Role
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.ledger import Booking
from qmtl_sdk.contracts.rebalance_schedules import Firing, RebalanceScheduleBody
from qmtl_sdk.contracts.worlds import WorldUpdate
from temporal.client import connect
from temporal.rebalance_schedules import RebalanceScheduleService
from tests.support.command import Person
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario
from tests.support.trades import traded
from workflows.ids import rebalance_schedule_id

D = Decimal
OLGA = Caller(subject="olga", token_id="", grants={"*": Role.OPERATOR})


@pytest.fixture(scope="module")
def stage(machine: Machine) -> Iterator[ApplyScenario]:
    """In paper trading, with a share of the capital and a capital of 10,000."""
    found = ApplyScenario(machine, "drifting", {"approvals": {"required": 1, "live": 1}})
    assert found.promote("dryrun", found.ana).state == "completed"
    change = WorldUpdate.model_validate({"capital": {"amount": "10000"}})
    found.client.update_world(found.world, change, live=True)
    traded(found, "IBM", "30")
    given = {"allocations": [{"world_id": found.world, "weight": "0.3"}]}
    found.client.set_allocations(AllocationUpdate.model_validate(given))
    yield found
    found.close()


def types(someone: Person, code: int, *words: str) -> str:
    return someone.says(code, "world", *words)


def scheduled(machine: Machine, name: str = "monthly") -> ScheduleDescription | None:
    """What Temporal knows of the schedule."""

    async def describe() -> ScheduleDescription | None:
        handle = (await connect(machine.config.temporal)).get_schedule_handle(schedule_id(machine, name))
        try:
            return await handle.describe()
        except RPCError:
            return None

    return asyncio.run(describe())


def schedule_id(machine: Machine, name: str = "monthly") -> str:
    with machine.client() as client:
        return rebalance_schedule_id(client.gateway_status()["store_id"], name)


def fired(stage: ApplyScenario) -> Firing:
    """Let the schedule fire now; what it decided."""

    async def trigger() -> None:
        temporal = await connect(stage.machine.config.temporal)
        await temporal.get_schedule_handle(schedule_id(stage.machine)).trigger()

    before = stage.client.rebalance_schedule("monthly").newest
    asyncio.run(trigger())

    def newest() -> Firing | None:
        found = stage.client.rebalance_schedule("monthly").newest
        return found if found != before else None

    return wait_for(newest, "the firing")


def earn(stage: ApplyScenario, amount: str) -> None:
    booking = {
        "booking_id": "dividend-1",
        "kind": "dividend",
        "strategy_id": stage.strategy,
        "account": "paper",
        "symbol": "IBM",
        "amount": amount,
        "reason": "a test",
    }
    stage.client.book(stage.world, Booking.model_validate(booking))


def test_a_schedule_from_its_setting_to_its_removal(
    stage: ApplyScenario, someone: Person, machine: Machine
) -> None:
    world = stage.world
    types(someone, 0, "allocations", f"{world}=0")
    words = ("rebalance-schedule", "set", "monthly", f"{world}=0.3:0.05", "--every", "30d")
    assert "E_LIVE_HEADER" in types(someone, 1, *words)
    refused = types(someone, 1, *words, "--live")
    assert f"the share of {world} is 0 [E_ALLOCATION_MISSING]" in refused
    assert f"qmtl world allocations {world}=0.3" in refused
    assert "there is no schedule" in types(someone, 0, "rebalance-schedule", "list")
    types(someone, 0, "allocations", f"{world}=0.3")
    said = types(someone, 0, *words, "--live", "--reason", "the committee wants it")
    assert "monthly: drift_bands every 30d, tolerance 0.01, cap 1;" in said
    known = scheduled(machine)
    assert known is not None
    assert known.schedule.spec.intervals[0].every == timedelta(days=30)
    assert known.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
    assert fired(stage).outcome == "unchanged"

    earn(stage, "2000")  # a fifth of its capital: 0.36 of 1.06
    firing = fired(stage)
    run = firing.run_id
    assert (firing.outcome, firing.reason) == ("requested", f"rebalance {world} 0.3 → 0.339622641509")
    waits = lambda: stage.client.rebalancing(run).state == "approval"  # noqa: E731
    wait_for(waits, "the wait for approvals", 30)
    assert "within its band 0.25 to 0.35" in stage.client.rebalance_schedule("monthly").newest.shares[0].why
    assert run in types(someone, 0, "rebalance-schedule", "list")
    assert "E_APPROVAL_OWN" in types(someone, 1, "rebalance-approve", run, "--yes", "--live")

    second = fired(stage)
    assert (second.outcome, second.run_id) == ("skipped", "")
    assert f"its run {run}, of {world}, has not ended" in second.reason
    assert second.reason in types(someone, 0, "rebalance-schedule", "list", "monthly")

    types(someone, 0, "rebalance-approve", run, "--yes", "--live", "--as", "ana")
    assert stage.client.rebalancing(run, wait_s=30).outcome == "completed"
    (share,) = [item.weight for item in stage.client.allocations().allocations if item.world_id == world]
    assert D("0.25") <= share == D("0.339622641509") <= D("0.35")
    assert fired(stage).outcome == "unchanged"

    assert "monthly is removed" in types(someone, 0, "rebalance-schedule", "remove", "monthly")
    assert scheduled(machine) is None
    assert "there is no schedule" in types(someone, 0, "rebalance-schedule", "list")
    assert "E_SCHEDULE_UNKNOWN" in types(someone, 1, "rebalance-schedule", "remove", "monthly")


@pytest.fixture
def store(machine: Machine) -> Iterator[SqlRebalanceSchedules]:
    """The schedules in the store, past the Gateway."""
    database = machine.database()
    yield SqlRebalanceSchedules(database)
    database.close()


def set_in_store(store: SqlRebalanceSchedules, world: str, **fields: object) -> None:
    """As a Gateway does that dies before it has told Temporal."""
    body = {"method": "equal_risk", "worlds": [{"world_id": world}], **fields}
    store.set("lost", RebalanceScheduleBody.model_validate(body), OLGA, True)


def test_temporal_gets_and_forgets_what_only_the_store_knows(
    stage: ApplyScenario, machine: Machine, store: SqlRebalanceSchedules
) -> None:
    """By the Gateway's loop of recovery."""
    set_in_store(store, stage.world, every="2h")
    wait_for(lambda: store.unsettled() == [], "the recovery", 60)
    first = scheduled(machine, "lost")
    assert first is not None
    assert first.schedule.spec.intervals[0].every == timedelta(hours=2)
    set_in_store(store, stage.world, every="3h", paused=True)
    assert not stage.client.rebalance_schedule("lost").is_running
    wait_for(lambda: store.unsettled() == [], "the recovery", 60)
    second = scheduled(machine, "lost")
    assert second is not None
    assert second.schedule.spec.intervals[0].every == timedelta(hours=3)
    assert second.schedule.state.paused
    store.remove("lost", OLGA)
    wait_for(lambda: store.names() == [], "the recovery", 60)
    assert scheduled(machine, "lost") is None


def test_a_worker_that_starts_tells_temporal_of_what_it_has_lost(
    stage: ApplyScenario, machine: Machine, store: SqlRebalanceSchedules
) -> None:
    set_in_store(store, stage.world)
    wait_for(lambda: store.unsettled() == [], "the recovery", 60)

    async def lose_and_restore() -> None:
        temporal = await connect(machine.config.temporal)
        await temporal.get_schedule_handle(schedule_id(machine, "lost")).delete()
        store_id = stage.client.gateway_status()["store_id"]
        await RebalanceScheduleService(temporal, store_id, store).restore()

    asyncio.run(lose_and_restore())
    assert scheduled(machine, "lost") is not None
    stage.client.remove_rebalance_schedule("lost")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("w=",), "is no world of a schedule"),
        (("w=0.5:",), "is no world of a schedule"),
        (("w=0.5", "v"), "takes a target"),
        (("w", "--every", "soon"), "not a duration"),
        (("w=2",), "a share is between 0 and 1"),
    ],
)
def test_what_no_schedule_may_be_is_said_in_a_line(
    someone: Person, words: tuple[Any, ...], wrong: str
) -> None:
    assert wrong in types(someone, 1, "rebalance-schedule", "set", "wrong", *words)
