"""Rebalancings at the command line, by their workflow, with the paper broker."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.rebalance_runs import RebalanceExecute
from tests.support.command import Person
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario, person
from tests.support.trades import traded


@pytest.fixture(scope="module")
def stage(machine: Machine) -> Iterator[ApplyScenario]:
    """In paper trading, with a share of the capital."""
    found = ApplyScenario(machine, "shares")
    assert found.promote("dryrun", found.ana).state == "completed"
    yield found
    found.close()


def types(someone: Person, code: int, *words: str) -> str:
    return someone.says(code, "world", *words)


def shown(someone: Person, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(types(someone, 0, *words, "-o", "json"))
    return found


def held(stage: ApplyScenario, symbol: str = "IBM") -> Decimal:
    found = {item.symbol: item.position.quantity for item in stage.client.positions(stage.world)}
    return found.get(symbol, Decimal(0))


def begin(stage: ApplyScenario, someone: Person) -> None:
    """A share of 0.3, and 30 units."""
    shares = {item.world_id: item.weight for item in stage.client.allocations().allocations}
    if stage.world not in shares:
        types(someone, 0, "allocations", f"{stage.world}=0.3")
    elif shares[stage.world] != Decimal("0.3"):
        run = f"back-{uuid4().hex}"
        types(someone, 0, "rebalance-apply", f"{stage.world}=0.3", "--run-id", run, "--live")
        for name in ("ana", "ben"):
            types(someone, 0, "rebalance-approve", run, "--yes", "--live", "--as", name)
    if missing := 30 - held(stage):
        traded(stage, "IBM", str(missing))


def test_a_rebalancing_from_its_plan_to_its_end(stage: ApplyScenario, someone: Person) -> None:
    world = stage.world
    begin(stage, someone)
    said = types(someone, 0, "rebalance-apply", f"{world}=0.2", "--run-id", "first", "--live")
    assert "0.3 → 0.2" in said
    assert "waits for 2 more approvals" in said, "as many as the world asks for before live"
    assert "E_APPROVAL_OWN" in types(someone, 1, "rebalance-approve", "first", "--yes", "--live")
    assert "E_LIVE_HEADER" in types(someone, 1, "rebalance-approve", "first", "--yes", "--as", "ana")
    types(someone, 0, "rebalance-approve", "first", "--yes", "--live", "--as", "ana")
    said = types(someone, 0, "rebalance-approve", "first", "--yes", "--live", "--as", "ben")
    assert "first: rebalance shares 0.3 → 0.2: completed" in said
    assert "1 of 1 orders filled" in said
    (strategy,) = {item.name for item in stage.client.bindings(world)}
    assert strategy in said, "its name, not its id"
    assert held(stage) == 20
    found = shown(someone, "rebalance-status", "first")
    assert (found["outcome"], found["report"]["tracking_error"]) == ("completed", 0.0)
    assert "first" in types(someone, 0, "rebalance-status")
    assert "0.2" in types(someone, 0, "allocations")
    assert "weights times 2/3, by rebalancings" in types(someone, 0, "status", world)
    again = types(someone, 1, "rebalance-apply", f"{world}=0.1", "--run-id", "first", "--live")
    assert "E_RUN_ID_REUSED" in again
    assert "E_REBALANCE_ENDED" in types(someone, 1, "rebalance-abort", "first")
    assert "E_REBALANCE_UNKNOWN" in types(someone, 1, "rebalance-status", "nothing")
    assert "no share is given" in types(someone, 1, "rebalance-apply")
    assert "E_LIVE_HEADER" in types(someone, 1, "rebalance-apply", f"{world}=0.1")


def test_a_rejected_and_an_aborted_rebalancing_change_nothing(stage: ApplyScenario, someone: Person) -> None:
    begin(stage, someone)
    before = held(stage)
    for run, words, outcome in (
        (
            "rejected",
            ("rebalance-approve", "rejected", "--reject", "--as", "ana", "--reason", "no"),
            "rolled_back",
        ),
        ("aborted", ("rebalance-abort", "aborted", "--reason", "enough"), "aborted"),
    ):
        types(someone, 0, "rebalance-apply", f"{stage.world}=0.1", "--run-id", run, "--live")
        said = types(someone, 0, *words)
        assert f"{outcome}: " in said
        assert shown(someone, "rebalance-status", run)["outcome"] == outcome
    assert held(stage) == before
    assert "0.3" in types(someone, 0, "allocations")


def test_what_changed_after_the_plan_rolls_it_back(stage: ApplyScenario, someone: Person) -> None:
    begin(stage, someone)
    types(someone, 0, "rebalance-apply", f"{stage.world}=0.1", "--run-id", "stale", "--live")
    traded(stage, "IBM", "1")
    before = held(stage)
    types(someone, 0, "rebalance-approve", "stale", "--yes", "--live", "--as", "ana")
    said = types(someone, 1, "rebalance-approve", "stale", "--yes", "--live", "--as", "ben")
    assert "rolled_back: nothing was changed" in said
    assert "E_ETAG" in said
    assert held(stage) == before


def test_execute_shows_trades_and_submits_them_only_for_operators_with_the_live_header(
    stage: ApplyScenario, someone: Person, machine: Machine
) -> None:
    begin(stage, someone)
    held_now = held(stage)
    position = {
        "world_id": stage.world,
        "strategy_id": stage.strategy,
        "venue": "paper",
        "symbol": "IBM",
        "quantity": held_now,
        "mark": "100",
    }
    request = {
        "run_id": "executed",
        "worlds": [{"world_id": stage.world, "before": "0.3", "after": "0"}],
        "positions": [position],
        "instruments": {"lot": "1"},
    }
    asked = RebalanceExecute.model_validate({"request": request})
    found = stage.client.execute_rebalancing(asked)
    assert ([trade.quantity for trade in found.trades], found.run) == ([-held_now], None)
    submitted = asked.model_copy(update={"submit": True})
    with pytest.raises(QmtlError) as error:
        stage.client.execute_rebalancing(submitted)
    assert error.value.code == "E_LIVE_HEADER"
    with person(machine, "rebalance-author", Role.AUTHOR) as author, pytest.raises(QmtlError) as role:
        author.execute_rebalancing(submitted, live=True)
    assert role.value.code == "E_ROLE"
    run = stage.client.execute_rebalancing(submitted, live=True).run
    assert run is not None
    assert run.state in ("requested", "approval")
    for name in ("ana", "ben"):
        types(someone, 0, "rebalance-approve", "executed", "--yes", "--live", "--as", name)
    wait_for(lambda: held(stage) == 0, "the end of the position")
