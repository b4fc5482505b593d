"""Flatten over HTTP and at the command line, with the paper broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.flattening import FlattenEvery, FlattenRequest
from qmtl_sdk.contracts.orders import ENDED, OrderRecord, OrderState
from qmtl_sdk.contracts.sessions import SESSION_HEADER, SessionOpen
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey
from tests.support.command import Person
from tests.support.desk import new_order_id
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario, person
from tests.support.trades import traded


@pytest.fixture(scope="module")
def dryrun(machine: Machine) -> Iterator[ApplyScenario]:
    """In paper trading."""
    found = ApplyScenario(machine, "flat")
    assert found.promote("dryrun", found.ana).state == "completed"
    yield found
    found.close()


@pytest.fixture
def stage(dryrun: ApplyScenario) -> Iterator[ApplyScenario]:
    """In paper trading, and holding nothing; what a test leaves open or halted ends with it."""
    yield dryrun
    client, world = dryrun.client, dryrun.world
    if client.fence(world).halted:
        client.resume(world)
    ended = ENDED | {OrderState.REFUSED, OrderState.WITHHELD}
    wait_for(lambda: {item.state for item in client.orders(world, limit=1000)} <= ended, "the end of orders")
    if client.positions(world):
        client.flatten(world, FlattenRequest(flatten_id=f"left-{uuid4().hex}"))
        wait_until_flat(dryrun)


def closing(stage: ApplyScenario) -> list[OrderRecord]:
    return [item for item in stage.client.orders(stage.world, limit=1000) if item.order.origin == "flatten"]


def wait_until_flat(stage: ApplyScenario) -> None:
    wait_for(lambda: not stage.client.positions(stage.world), "the end of all positions")


@contextmanager
def opened(stage: ApplyScenario) -> Iterator[SessionKey]:
    """A session of the strategy."""
    wanted = SessionOpen(world_id=stage.world, strategy_id=stage.strategy, runner="r")
    session = SessionKey.of(stage.client.open_session(wanted))
    yield session
    stage.client.end_session(session, "done")


def sent(stage: ApplyScenario, session: SessionKey, **fields: str) -> httpx.Response:
    """The answer to an order of a session."""
    order = {
        "order_id": new_order_id(stage.world, stage.strategy),
        "world_id": stage.world,
        "strategy_id": stage.strategy,
        "session_id": session.session_id,
        "execution_domain": "dryrun",
        "epoch": stage.client.activation(stage.world)[0].epoch,
        "symbol": "KO",
        "side": "buy",
        "quantity": "1",
        "reference_price": "100",
        **fields,
    }
    machine = stage.machine
    headers = {"authorization": f"Bearer {machine.token()}", SESSION_HEADER: session.secret}
    return httpx.post(f"{machine.url}/orders", json={"orders": [order]}, headers=headers, trust_env=False)


def test_a_halt_closes_what_is_held_and_nothing_is_ordered_after(
    stage: ApplyScenario, someone: Person
) -> None:
    world, client = stage.world, stage.client
    traded(stage, "XOM", "10")
    traded(stage, "JNJ", "-3")
    before = len(closing(stage))
    said = someone.says(0, "world", "halt", world, "--flatten", "--reason", "enough")
    for words in (f"halted: {world}", "2 ordered", "sell 10 XOM (dryrun", "buy 3 JNJ (dryrun"):
        assert words in said
    wait_until_flat(stage)
    assert client.fence(world).halted.endswith("enough")
    assert sorted((item.order.symbol, item.state.value) for item in closing(stage)[before:]) == [
        ("JNJ", "filled"),
        ("XOM", "filled"),
    ]
    with opened(stage) as session:
        (verdict,) = sent(stage, session).json()["verdicts"]
    assert (verdict["accepted"], verdict["reason"], client.positions(world)) == (False, "halted", [])
    said = someone.says(0, "world", "flatten", world, "--yes", "--wait", "5")
    assert "0 ordered" in said
    assert "nothing is held" in said
    assert "may trade again" not in said, "it is halted"
    assert "is what its order log says" in someone.says(0, "ledger", "verify", world)
    client.resume(world)


def test_a_flatten_waits_until_nothing_is_held_and_says_that_strategies_trade_again(
    stage: ApplyScenario, someone: Person
) -> None:
    traded(stage, "KO", "4")
    world = stage.world
    assert "E_NOT_CONFIRMED" in someone.says(1, "world", "flatten", world)
    assert "did you mean 'Trend'" in someone.says(1, "world", "flatten", world, "-s", "Trent", "--yes")
    assert "name a world or give --all" in someone.says(2, "world", "flatten", "--yes")
    said = someone.says(0, "world", "flatten", world, "-s", "Trend", "--yes", "--wait", "20")
    assert "1 ordered" in said
    assert f"{world} may trade again at the next bar: qmtl world halt {world} -s Trend --flatten" in said
    assert stage.client.positions(world) == []


def test_every_world_of_an_operator_is_flattened(stage: ApplyScenario, machine: Machine) -> None:
    traded(stage, "KO", "4")
    token = machine.issue("flatten-here", {stage.world: Role.OPERATOR}).token
    with GatewayClient(machine.url, token) as operator:
        done = operator.flatten_all(FlattenEvery(flatten_id="every-world-1"))
        (here,) = done.results
        assert (here.world_id, len(here.ordered), done.failed) == (stage.world, 1, {})
        wait_until_flat(stage)
        (again,) = operator.flatten_all(FlattenEvery(flatten_id="every-world-1")).results
        assert (again.ordered, again.remains) == (here.ordered, ())
    with person(machine, "flatten-author", Role.AUTHOR) as author, pytest.raises(QmtlError) as error:
        author.flatten(stage.world, FlattenRequest(flatten_id="not-mine"))
    assert error.value.code == "E_ROLE"


def test_the_end_of_a_session_closes_what_its_strategy_holds_for_an_operator(
    stage: ApplyScenario, machine: Machine, someone: Person
) -> None:
    traded(stage, "KO", "4")
    wanted = SessionOpen(world_id=stage.world, strategy_id=stage.strategy, runner="r")
    with person(machine, "session-author", Role.AUTHOR) as author:
        key = SessionKey.of(author.open_session(wanted))
        with pytest.raises(QmtlError) as error:
            author.end_session(key, "done", flatten="end-by-author")
    assert error.value.code == "E_ROLE"
    assert key.session_id in {item.session_id for item in stage.client.sessions(stage.world)}
    assert "positions are being closed" in someone.says(0, "session", "end", key.session_id, "--flatten")
    wait_until_flat(stage)
    assert stage.client.sessions(stage.world) == []


def test_a_halt_over_http_closes_what_is_held(stage: ApplyScenario) -> None:
    traded(stage, "KO", "4")
    body = {"strategy": "Trend", "flatten": "halt-and-flatten"}
    for _ in range(2):
        stage.client._call("POST", f"/worlds/{stage.world}/halt", json=body)
    wait_until_flat(stage)
    stage.client.resume(stage.world, strategy="Trend")


def test_no_client_sends_an_order_of_a_flatten(stage: ApplyScenario) -> None:
    """It would pass the fence of a halted world."""
    with opened(stage) as session:
        for origin in ("flatten", "rebalancing"):
            answer = sent(stage, session, origin=origin)
            assert (answer.status_code, answer.json()["code"]) == (422, "E_BODY_INVALID")
        assert sent(stage, session, origin="strategy").json()["verdicts"][0]["accepted"]
