"""An operator at the command line: plan, approve, reject, abort, halt, resume, roll back; and mistakes."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Order, WithheldOrder
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.runtime.routes.running import SessionKey
from tests.support.command import Person
from tests.support.desk import new_order_id
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario


@pytest.fixture
def stage(machine: Machine, request: pytest.FixtureRequest) -> Iterator[ApplyScenario]:
    found = ApplyScenario(machine, "operated")
    yield found
    found.close()


def order_of(stage: ApplyScenario, session: SessionKey) -> Order:
    """An order that the fence refuses: it was decided under the first epoch."""
    return Order(
        order_id=new_order_id(stage.world, stage.strategy),
        world_id=stage.world,
        strategy_id=stage.strategy,
        session_id=session.session_id,
        execution_domain=Domain.DRYRUN,
        epoch=1,
        symbol="KO",
        side="buy",
        quantity=Decimal(1),
    )


@pytest.mark.timeout(600)
def test_an_operators_day(stage: ApplyScenario, machine: Machine, tmp_path: Path) -> None:
    person, world = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home)), stage.world

    def says(*words: str) -> str:
        done = person.types("world", *words)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def refused(*words: str) -> str:
        done = person.types("world", *words)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    status = says("status", world)
    assert "fence      open, epoch 1" in status
    assert f"pinned {stage.fingerprint} (policy version 2); last applied nothing yet" in status
    assert "sum of the weights by stage: backtest 1 (parts of the world's capital" in status
    explained = says("explain", world, "Trend")
    assert "gates: passed" in explained
    assert "next stage, dryrun: an apply may take it there" in explained
    assert "did you mean 'Trend'" in refused("explain", world, "Trent")
    plan = says("apply", world, "--to", "dryrun", "--dry-run")
    assert "backtest at 1" in plan
    assert "dryrun at 1" in plan
    assert "1. wait up to 1d for one person (operator or owner, not " in plan
    assert "has had no apply yet" in says("applies", world)
    request = tmp_path / "request.yml"
    request.write_text(f"to: dryrun\nstrategies: [Trend]\nweights: {{ '{stage.strategy[:24]}': 0.5 }}\n")
    assert "dryrun at 0.5" in says("apply", world, "--plan-file", str(request), "--dry-run")
    request.write_text("strategies: [Trent]\nweights: { nothing: 0.5 }\n")
    unknown = refused("apply", world, "--plan-file", str(request))
    assert f"'Trent' is no strategy of {world} (did you mean 'Trend'?)" in unknown
    assert f"'nothing' is no strategy of {world}" in unknown
    assert "'Tre' is no strategy" in refused("apply", world, "--strategy", "Tre")
    assert "Trend: it must run in dryrun before it can go live" in refused("apply", world, "--to", "live")

    asked: dict[str, Any] = json.loads(
        says("apply", world, "--to", "dryrun", "--reason", "it is good", "-o", "json")
    )
    run = asked["run_id"]
    assert "another person approves it" in refused("approve", "--yes", world, run)
    asks = person.types("world", "approve", world, run, "--as", "ana")  # nobody answers it here
    assert (asks.returncode, f"approve {run} of {world}?" in asks.stdout + asks.stderr) == (1, True)
    assert "dryrun at 1" in asks.stdout
    assert "waits for 1 more approval" in says("applies", world)
    approved = says("approve", "--yes", world, run, "--as", "ana", "--reason", "I agree")
    assert f"{run}: completed" in approved
    assert "ana approved: I agree" in approved
    assert "E_APPLY_ENDED" in refused("approve", "--yes", world, run, "--as", "ben")
    assert "there is no token carl" in refused("approve", "--yes", world, run, "--as", "carl")

    assert "E_LIVE_HEADER" in refused("apply", world, "--to", "live")
    live = json.loads(says("apply", world, "--to", "live", "--live", "-o", "json"))["run_id"]
    assert "waits for 1 more" in says("approve", "--yes", world, live, "--as", "ana", "--live")
    assert "rolled_back: rejected by ben: too early" in says(
        "reject", world, live, "--as", "ben", "--reason", "too early"
    )
    live = json.loads(says("apply", world, "--to", "live", "--live", "-o", "json"))["run_id"]
    assert "aborted by" in says("abort", world, live)
    live = json.loads(says("apply", world, "--to", "live", "--live", "-o", "json"))["run_id"]
    says("approve", "--yes", world, live, "--as", "ana", "--live")
    assert "completed" in says("approve", "--yes", world, live, "--as", "ben", "--live")
    assert "edge from backtest to live open" in says("status", world)
    assert "sum of the weights by stage: live 1 (parts" in says("status", world)

    assert f"halted: {world}" in says("halt", world, "--reason", "I do not like it")
    assert "halted (" in says("status", world)
    assert "lifted: halt (" in says("resume", world)
    assert "there is nothing to resume" in refused("resume", world)
    assert "completed" in says("rollback", world, "--to", live)
    assert stage.mode() == (True, "paper")
    assert "a try" in says("override", world, "domain:backtest", "domain:live", "--reason", "a try")
    assert "E_EDGE_NO_EFFECT" in refused("override", world, "domain:backtest", "domain:dryrun")
    audit = says("audit", world, "--verify")
    assert "the chain is whole" in audit
    assert "approval.given" in audit
    assert "approval.rejected" in audit
    assert "Trend" in audit
    assert stage.strategy[:40] not in audit
    assert "no orders" in says("orders", world)
    wanted = SessionOpen(world_id=world, strategy_id=stage.strategy, runner="r")
    session = SessionKey.of(stage.client.open_session(wanted))
    stage.client.publish_orders([order_of(stage, session)], session)
    withheld = WithheldOrder(order=order_of(stage, session), reason="the stream was silent for 9m")
    assert stage.client.report_withheld([withheld], session) == 1
    stage.client.end_session(session, "done")
    listed = says("orders", world)
    assert "Trend" in listed
    assert "refused" in listed
    held_back = says("orders", world, "--reason", "withheld")
    assert "withheld" in held_back
    assert "silent for 9m" in held_back
    assert "refused" not in held_back

    draft = tmp_path / "draft.yml"
    draft.write_text(
        yaml.safe_dump({**stage.policy, "selection": {"gates": {"and": ["sharpe >= 50"]}, "score": "sharpe"}})
    )
    assert "would differ" in says("replay-policy", world, str(draft))
    assert "judged by policy version 3" in says("policy", "add", world, str(draft))
    assert "sharpe >= 50" in says("policy", "diff", world, "2", "3")
    assert "version 2" in says("policy", "set-default", world, "2")
    assert "default" in says("policy", "list", world)
    draft.write_text("selection: { score: sharp }")
    assert "did you mean 'sharpe'" in refused("policy", "add", world, str(draft))
    assert "can't be read" in refused("policy", "add", world, str(tmp_path / "nothing.yml"))

    change = tmp_path / "change.yml"
    change.write_text("capital: { amount: 250000 }\norder_limits: { max_quantity: 9 }\n")
    assert "nobody can answer" in refused("update", world, str(change))
    assert stage.client.world(world).spec.capital is None, "nothing changes without a yes"
    shown = says("update", "--yes", world, str(change))
    assert re.search(r"capital.amount +│ +│ 250000 ", shown), shown
    assert re.search(r"order_limits.max_quantity +│ +│ 9 ", shown), shown
    assert f"{world} is changed" in shown
    found = stage.client.world(world).spec
    assert (found.capital and found.capital.amount, found.order_limits.max_quantity) == (250000, 9)
    assert f"{world} is as {change} says already" in says("update", world, str(change))


def test_a_promotion_at_the_command_line(machine: Machine, tmp_path: Path) -> None:
    stage = ApplyScenario(machine, "advanced")
    person, world = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home)), stage.world

    def types(code: int, *words: str) -> str:
        done = person.types("world", *words)
        assert done.returncode == code, done.stderr or done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stderr if code else done.stdout)

    try:
        assert "no promotion is under way" in types(0, "promotions", world)
        assert "did you mean 'Trend'" in types(1, "promote", world, "Trent")
        assert "to: Input should be 'dryrun' or 'live'" in types(1, "promote", world, "Trend", "--to", "moon")
        assert "there is no promotion of" in types(1, "promote", world, "Trend", "--end")
        assert "--live" in types(1, "promote", world, "Trend", "--to", "live")
        asked = types(0, "promote", world, "Trend", "--reason", "it is good")
        assert "Trend of advanced to dryrun, requested by " in asked
        assert f"qmtl world approve {world} promote-" in asked
        run = json.loads(types(0, "promote", world, "Trend", "--reason", "it is good", "-o", "json"))[
            "apply_run"
        ]
        assert "abort that, and the promotion ends with it" in types(1, "promote", world, "Trend", "--end")
        assert f"{run}: completed" in types(0, "approve", "--yes", world, run, "--as", "ana")
        wait_for(
            lambda: stage.client.promotion(world, stage.strategy).outcome == "completed",
            "end of the promotion",
        )
        stage.client.update_world(world, WorldUpdate(allow_live=False))
        waiting = types(0, "promote", world, "Trend", "--to", "live", "--live")
        assert "missing" in waiting
        assert f"the world does not allow live: qmtl world allow-live {world}" in waiting
        assert wait_for(
            lambda: found if "does not allow live" in (found := types(0, "promotions", world)) else "",
            "the list",
        )
        assert "stopped: ended by" in types(0, "promote", world, "Trend", "--end", "--reason", "enough")
        assert "advanced is archived" in types(0, "archive", world)
        assert "is archived: it takes no submissions" in types(1, "promote", world, "Trend")
        assert "qmtl world archive W --undo" in types(1, "resume", world)
        assert "qmtl world resume advanced opens it" in types(0, "archive", world, "--undo")
        assert "lifted: halt" in types(0, "resume", world)
    finally:
        stage.close()


def test_a_cache_hit_from_another_context_halts_its_strategy_once(machine: Machine) -> None:
    stage = ApplyScenario(machine, "hits")
    client, world = stage.client, stage.world
    try:
        assert stage.promote("dryrun", stage.ana).outcome == "completed"
        wanted = SessionOpen(world_id=world, strategy_id=stage.strategy, runner="r")
        grant = client.open_session(wanted)
        key, (first, second) = SessionKey.of(grant), sorted(grant.queue_map)[:2]

        def refusal(session: SessionKey, node: str) -> str:
            with pytest.raises(QmtlError) as caught:
                client.session_heartbeat(session, SessionHeartbeat(cross_context_hits=(node,)))
            return caught.value.code

        assert refusal(key, "blake3:nobody's") == "E_BODY_INVALID"
        assert refusal(SessionKey(grant.session_id), first) == "E_SESSION_HOLDER"
        client.session_heartbeat(key, SessionHeartbeat(cross_context_hits=(first,)))
        (halt,) = client.fence(world).strategy_halts
        assert "cache hit from another context" in halt.reason
        assert client.fence(world).halted == "", "no author halts a world"
        client.resume(world, "looked at it", stage.strategy)
        client.session_heartbeat(key, SessionHeartbeat(cross_context_hits=(first,)))
        client.end_session(key, "over")
        assert refusal(key, second) == "E_SESSION_LOST"
        assert client.fence(world).strategy_halts == ()
    finally:
        stage.close()
