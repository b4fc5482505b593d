"""Fills, positions and the ledger over HTTP and at the command line."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from activities.fence.reconciliations import SqlReconciliations
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Fill, FillBatch, ReportedFill
from qmtl_sdk.contracts.ledger import Booking
from qmtl_sdk.contracts.reconciliation import AccountState, ComparedPosition, Reconciliation
from tests.support.command import Person
from tests.support.machine import Machine
from tests.support.scenarios import ApplyScenario, person
from tests.support.trades import traded


@pytest.fixture(scope="module")
def stage(machine: Machine) -> Iterator[ApplyScenario]:
    """In paper trading."""
    found = ApplyScenario(machine, "kept")
    assert found.promote("dryrun", found.ana).state == "completed"
    yield found
    found.close()


def held(stage: ApplyScenario, symbol: str, **asked: Any) -> Decimal:
    found = stage.client.positions(stage.world, closed=True, **asked)
    return sum((item.position.quantity for item in found if item.symbol == symbol), Decimal(0))


def test_orders_of_a_strategy_become_a_position_that_people_see(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    someone = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))

    def types(code: int, *words: str) -> str:
        done = someone.types(*words)
        assert done.returncode == code, done.stderr or done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stdout or done.stderr)

    world = stage.world
    traded(stage, "KO", "10", "-4")
    before = datetime.now(UTC)
    shown = types(0, "world", "positions", world)
    assert "Trend" in shown
    assert "KO" in shown
    assert " 6 " in shown
    entries = json.loads(types(0, "world", "ledger", world, "-s", "Trend", "-o", "json"))
    assert [Decimal(line["entry"]["quantity"]) for line in entries if line["entry"]["symbol"] == "KO"] == [
        10,
        -4,
    ]
    assert {posting["account"] for posting in entries[0]["postings"]} == {
        "position:paper",
        "market",
        "cash:paper",
    }
    booking = ["ledger", "book", world, "Trend", "KO", "--account", "paper", "--reason", "2 for 1"]
    split = [*booking, "--id", "s1", "--kind", "split", "--ratio", "2"]
    assert "booked" in types(0, *split)
    assert "nothing changed" in types(0, *split)
    assert held(stage, "KO") == 12
    assert held(stage, "KO", as_of=before) == 6
    assert " 12 " in types(0, "world", "positions", world)
    assert " 6 " in types(0, "world", "positions", world, "--as-of", before.isoformat())
    assert "is what its order log says" in types(0, "ledger", "verify", world)
    assert "'yesterday' is no time" in types(1, "world", "positions", world, "--as-of", "yesterday")
    assert "did you mean 'Trend'" in types(1, "world", "positions", world, "-s", "Trent")
    assert "a booking of the kind dividend names amount" in types(
        1, *booking, "--id", "d1", "--kind", "dividend"
    )
    assert "E_WORLD_UNKNOWN" in types(1, "ledger", "verify", "nowhere")
    filled = ["--id", "f1", "--account", "paper", "--quantity", "1", "--price", "9"]
    assert "E_ORDER_UNKNOWN" in types(1, "ledger", "report", world, "order:unknown", *filled)
    assert "ledger.booked" in types(0, "world", "audit", world, "--verify")


def test_a_fill_that_a_person_reports_is_checked_against_its_order(stage: ApplyScenario) -> None:
    (order,) = traded(stage, "JNJ", "5")

    def report(fill_id: str, quantity: str, order_id: str = order.order_id, by: Any = stage.client) -> int:
        found = Fill(fill_id=fill_id, quantity=Decimal(quantity), price=Decimal(100), account="paper")
        batch = FillBatch(world_id=stage.world, fills=(ReportedFill(order_id=order_id, fill=found),))
        return int(by.report_fills(batch).recorded)

    def refused(*asked: Any, **by: Any) -> str:
        with pytest.raises(QmtlError) as error:
            report(*asked, **by)
        return error.value.code

    assert report(order.order_id, "5") == 0, "the router has booked it"
    assert refused("more", "1") == "E_FILL_EXCEEDS"
    assert refused(order.order_id, "4") == "E_FILL_REUSED"
    assert refused("f", "1", "order:unknown") == "E_ORDER_UNKNOWN"
    with person(stage.machine, "ledger-author", Role.AUTHOR) as author:
        assert refused("f", "1", by=author) == "E_ROLE"
        with pytest.raises(QmtlError) as error:
            author.rebuild_ledger(stage.world)
        assert error.value.code == "E_ROLE"
        assert author.verify_ledger(stage.world).is_good
    assert held(stage, "JNJ") == 5
    wrong = Booking.model_validate(
        {
            "booking_id": "r1",
            "kind": "reversal",
            "strategy_id": stage.strategy,
            "account": "paper",
            "symbol": "JNJ",
            "corrects": order.order_id,
            "reason": "it was three",
        }
    )
    assert stage.client.book(stage.world, wrong) is True
    assert report("corrected", "3") == 1
    assert held(stage, "JNJ") == 3
    assert stage.client.verify_ledger(stage.world).is_good


def test_a_damaged_ledger_is_named_and_made_again(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    traded(stage, "MSFT", "2")
    someone = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))
    database = machine.database()
    try:
        with database.write("test", bookkeeping=True) as tx:
            tx.connection.execute(text("DELETE FROM position WHERE symbol = 'MSFT' AND world_id = 'kept'"))
    finally:
        database.close()
    assert held(stage, "MSFT") == 0
    found = someone.types("ledger", "verify", stage.world)
    assert found.returncode == 1
    assert "qmtl ledger rebuild kept books it anew" in found.stdout
    refused = someone.types("ledger", "rebuild", stage.world)
    assert "qmtl world halt kept" in refused.stderr
    stage.client.halt(stage.world, "its ledger")
    assert someone.types("ledger", "rebuild", stage.world).returncode == 0
    stage.client.resume(stage.world, "its ledger is good")
    assert someone.types("ledger", "verify", stage.world).returncode == 0
    assert held(stage, "MSFT") == 2


def test_shares_of_the_capital_and_what_others_would_order(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    traded(stage, "IBM", "30")
    someone = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))

    def types(code: int, *words: str) -> str:
        done = someone.types("world", *words)
        assert done.returncode == code, done.stderr or done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stdout or done.stderr)

    world = stage.world
    assert "0.3" in types(0, "allocations", f"{world}=0.3")
    etag = json.loads(types(0, "allocations", "-o", "json"))["etag"]
    assert "E_ETAG" in types(1, "allocations", f"{world}=0.1", "--etag", "other")
    assert "a share is between 0 and 1" in types(1, "allocations", f"{world}=1.5")
    assert "is no share" in types(1, "allocations", world)
    assert "E_WORLD_UNKNOWN" in types(1, "allocations", "nowhere=0.1")
    shown = types(0, "rebalance-plan", f"{world}=0.2")
    assert "0.3 → 0.2" in shown
    assert "-1000.00" in shown
    plan = json.loads(types(0, "rebalance-plan", f"{world}=0.2", "--lot", "7", "-o", "json"))
    (delta,) = [item for item in plan["per_world"][world]["deltas"] if item["symbol"] == "IBM"]
    assert (Decimal(delta["quantity"]), Decimal(delta["from_quantity"])) == (-7, 30)
    assert stage.strategy in plan["alpha_metrics"]["per_strategy"][world]
    rules = tmp_path / "instruments.yml"
    rules.write_text("min_trade_notional: 5000\n")
    assert "nothing is ordered" not in types(0, "rebalance-plan", f"{world}=0.2", "--instruments", str(rules))
    rules.write_text("lots: 5\n")
    assert "lots" in types(1, "rebalance-plan", f"{world}=0.2", "--instruments", str(rules))
    assert "no share is given" in types(1, "rebalance-plan")
    assert json.loads(types(0, "allocations", "-o", "json"))["etag"] == etag, "a plan changes nothing"
    with person(machine, "capital-author", Role.AUTHOR) as author:
        with pytest.raises(QmtlError) as error:
            author.set_allocations(stage.client.allocations())  # type: ignore[arg-type]
        assert error.value.code in ("E_ROLE", "E_BODY_INVALID")


def test_people_see_equity_beside_the_backtest(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    traded(stage, "PEP", "3", "-1")
    someone = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))

    def types(code: int, *words: str) -> str:
        done = someone.types("world", "report", *words)
        assert done.returncode == code, done.stderr or done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stdout or done.stderr)

    world = stage.world
    found = json.loads(types(0, world, "-s", "Trend", "-o", "json"))
    (mine,) = found["strategies"]
    summary = stage.client.position_summary(world)
    (now,) = summary.strategies
    assert (Decimal(mine["profit"]), Decimal(mine["gross"])) == (now.profit, now.gross)
    assert Decimal(mine["turnover"]) >= 400
    assert mine["backtest"]["sharpe"] is not None
    assert [Decimal(day["profit"]) for day in mine["series"]][-1] == now.profit
    shown = types(0, world, "--days", "5")
    assert "Trend" in shown
    assert "all" in shown
    assert "E_WORLD_UNKNOWN" in types(1, "nowhere")
    assert "did you mean 'Trend'" in types(1, world, "-s", "Trent")
    types(2, world, "--days", "401")
    with person(machine, "equity-reader", Role.READER) as reader:
        assert reader.equity_report(world, days=1).accounts[0].profit == summary.accounts[0].profit
        with pytest.raises(QmtlError) as error:
            reader.equity_report(world, days=401)
        assert error.value.code == "E_BODY_INVALID"


def test_people_see_how_accounts_compare_with_their_brokers(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    someone = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))
    now = datetime.now(UTC)
    positions = [
        ComparedPosition(
            symbol=symbol,
            ledger=Decimal(1),
            broker=Decimal(3),
            difference=Decimal(2),
            since=now,
            worlds=(world,),
        )
        for symbol, world in (("KO", stage.world), ("PEP", "another"))
    ]
    found = Reconciliation(
        account="ibkr",
        domain=Domain.LIVE,
        at=now,
        compared=("positions",),
        positions=tuple(positions),
        state=AccountState(currency="USD", cash=Decimal("12.50")),
    )
    database = machine.database()
    try:
        SqlReconciliations(database).save(found)
    finally:
        database.close()
    shown = someone.types("world", "reconcile", stage.world)
    assert shown.returncode == 0, shown.stderr
    assert f"ibkr (live), compared {now:%Y-%m-%d %H:%M:%S} UTC" in shown.stdout
    assert "cash at the broker: 12.5 USD" in shown.stdout
    assert "KO" in shown.stdout
    assert "PEP" not in shown.stdout, "it is another world's"
    assert "paper (dryrun): its broker has no books of its own" in shown.stdout
    done = someone.types("world", "reconcile", stage.world, "-o", "json")
    listed = {item["account"]: item for item in json.loads(done.stdout)}
    assert listed.keys() == {"ibkr", "paper", "paper-live"}
    assert [item["difference"] for item in listed["ibkr"]["positions"]] == ["2"]
    assert "E_WORLD_UNKNOWN" in someone.types("world", "reconcile", "nowhere").stderr
