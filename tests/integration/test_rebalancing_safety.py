"""What a run of a rebalancing must not do, whatever happens between its plan and its orders."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from activities.fence.fills import write_lines
from activities.fence.flattens import SqlFlattens
from activities.fence.log_line import BOOKING, LogLine
from activities.fence.state import locked_fence
from activities.order_settings import DEFAULT_ACCOUNTS
from activities.rebalancing.ordering import Progress
from activities.storage.database import Database
from activities.storage.transactions import utc_text
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.flattening import FlattenRequest
from qmtl_sdk.contracts.ledger import Entry, EntryKind
from qmtl_sdk.contracts.rebalance_runs import RebalanceApply
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.desk import policy
from tests.support.rebalance_runs import Runs, carried_out, held, holds
from tests.support.target_book import CAPITAL, Book

D = Decimal

pytest_plugins = ["tests.support.rebalance_fixtures"]


def bars(book: Book, value: str, count: int = 2) -> None:
    """Let the first strategy say the same target for some bars, and fill what follows."""
    for _ in range(count):
        book.next_bar()
        book.ordered(value)
        book.fill()


def begun(runs: Runs, asked: RebalanceApply) -> None:
    runs.requests.request(asked, "olga")
    runs.approvals.record(asked.run_id, "approver0", "approve", ApprovalBody())
    runs.beginnings.begin(asked.run_id)


def changed(asked: RebalanceApply, **request: Any) -> RebalanceApply:
    """The same request with other fields, as JSON has them."""
    body = asked.json_dict()
    return RebalanceApply.model_validate({**body, "request": {**body["request"], **request}})


def booked(book: Book, quantity: str, strategy: int = 0, account: str = "paper") -> None:
    """An adjustment of a position that nobody ordered."""
    name = book.desk.strategies[strategy]
    with book.database.write("test", bookkeeping=True) as tx:
        fence = locked_fence(tx, "w")
        entry = Entry(
            kind=EntryKind.ADJUSTMENT,
            ref=f"fix:{name}:{account}",
            strategy_id=name,
            account=account,
            symbol="AAPL",
            quantity=D(quantity),
            price=D(100),
            reason="fix",
        )
        body = entry.model_dump_json(exclude_defaults=True)
        now = utc_text(datetime.now(UTC))
        write_lines(tx, "w", [LogLine(now, "w", BOOKING, entry.ref, fence.epoch, name, "fix", body)])


def limited(book: Book, **limits: Any) -> None:
    change = WorldUpdate.model_validate({"order_limits": limits})
    book.desk.rules.update_world("w", change, "olga")


def test_an_order_that_was_open_at_the_beginning_is_not_sold_twice(book: Book, runs: Runs) -> None:
    holds(book, "1")
    book.next_bar()
    assert book.ordered("0.8") == -10
    runs.begun("r1", {"w": "0"})
    book.next_bar()
    book.ordered("0.8")
    carried_out(runs, book, "r1")
    assert held(book)[0] == 0


def test_a_position_that_was_corrected_meanwhile_is_not_turned_around(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0"})
    booked(book, "-50")
    assert carried_out(runs, book, "r1").outcome == "partial"
    assert held(book)[0] == 0


def test_what_is_flattened_during_a_run_stays_flat(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0.1"})
    flattens = SqlFlattens(book.database, DEFAULT_ACCOUNTS, 20.0)
    flattens.request("w", FlattenRequest(flatten_id="flatten-1234"), "olga")
    assert runs.order("r1", "reductions") is Progress.DONE
    book.fill()
    found = carried_out(runs, book, "r1")
    assert (held(book)[0], found.trades[0].reason) == (0, "its positions are being closed")


def test_what_an_aborted_run_did_not_order_its_strategies_do(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0.1"})
    runs.requests.record_abort("r1", "olga", "enough")
    carried_out(runs, book, "r1")
    bars(book, "1")
    assert held(book)[0] == 17, "a third of 50, within a lot"
    runs.begun("r2", {"w": "0.3"})
    carried_out(runs, book, "r2")
    bars(book, "1")
    assert abs(held(book)[0] - 50) <= 1


def test_a_world_that_gets_a_share_again_holds_what_its_strategies_say(book: Book, runs: Runs) -> None:
    holds(book, "1")
    for run, share in (("r1", "0"), ("r2", "0.3")):
        runs.begun(run, {"w": share})
        carried_out(runs, book, run)
        bars(book, "1")
    assert held(book)[0] == 50


def test_what_rounding_took_comes_back(book: Book, runs: Runs) -> None:
    holds(book, "1")
    for run, share in (("r1", "0.01"), ("r2", "0.3")):
        runs.begun(run, {"w": share})
        carried_out(runs, book, run)
    bars(book, "1")
    assert held(book)[0] == 50


def test_a_position_is_named_as_the_ledger_names_it(book: Book, runs: Runs) -> None:
    holds(book, "1")
    asked = runs.asked("r1", {"w": "0.1"})
    (position,) = asked.json_dict()["request"]["positions"]
    rules = {
        "lot": "1",
        "venues": [{"venue": "paper", "symbols": [{"symbol": "AAPL", "aliases": ["APPLE"]}]}],
    }
    with pytest.raises(QmtlError) as error:
        runs.requests.request(
            changed(asked, positions=[{**position, "symbol": "APPLE"}], instruments=rules), "olga"
        )
    assert error.value.code == "E_ETAG"


@pytest.mark.parametrize("mark", ["0.01", "201"])
def test_a_mark_that_is_far_from_the_ledgers_price_is_refused(book: Book, runs: Runs, mark: str) -> None:
    holds(book, "1")
    asked = runs.asked("r1", {"w": "0.1"})
    (position,) = asked.json_dict()["request"]["positions"]
    with pytest.raises(QmtlError) as error:
        runs.requests.request(changed(asked, positions=[{**position, "mark": mark}]), "olga")
    assert error.value.code == "E_MARK"


def test_nobody_uses_up_the_id_of_a_runs_order(book: Book, runs: Runs) -> None:
    holds(book, "1")
    (shown,) = runs.approved("r1", {"w": "0.2"}).trades
    runs.beginnings.begin("r1")
    (trade,) = runs.requests.find("r1").trades
    assert trade.order_id != shown.order_id
    thief = book.desk.order(book.session, book.desk.epoch, symbol="MSFT", order_id=trade.order_id)
    (verdict,) = book.acceptance.publish([thief], book.desk.caller)
    assert verdict.accepted, "it has read the id somewhere"
    found = carried_out(runs, book, "r1")
    assert [(item.state, item.filled, item.reason) for item in found.trades] == [
        ("refused", 0, "its id was used by another order")
    ]
    assert held(book)[0] == 50


def test_a_strategy_without_a_share_stays_stopped_when_its_worlds_share_changes(
    book: Book, runs: Runs
) -> None:
    first = book.desk.strategies[0]
    holds(book, "1", "0.5")
    own = [{"world_id": "w", "weight": "0.3", "strategies": {first: "0.15"}}]
    runs.allocations.update(AllocationUpdate.model_validate({"allocations": own}), "olga")
    stop = {"strategy_id": first, "before": "0.15", "after": "0"}
    change = {"world_id": "w", "before": "0.3", "after": "0.3", "strategies": [stop]}
    begun(runs, changed(runs.asked("r1", {"w": "0.3"}), worlds=[change]))
    carried_out(runs, book, "r1")
    assert held(book)[0] == 0
    change = {"world_id": "w", "before": "0.3", "after": "0.2"}
    begun(runs, changed(runs.asked("r2", {"w": "0.2"}), worlds=[change]))
    carried_out(runs, book, "r2")
    bars(book, "0.7")
    assert held(book) == [0, 17]


def test_shares_of_their_own_go_with_their_world(book: Book, runs: Runs) -> None:
    first = book.desk.strategies[0]
    holds(book, "1", "0.5")
    own = [{"world_id": "w", "weight": "0.3", "strategies": {first: "0.25"}}]
    runs.allocations.update(AllocationUpdate.model_validate({"allocations": own}), "olga")
    change = {"world_id": "w", "before": "0.3", "after": "0.2"}
    begun(runs, changed(runs.asked("r1", {"w": "0.2"}), worlds=[change]))
    (found,) = runs.allocations.snapshot().allocations
    assert found.strategies[first] == D("0.166666666666666666666666")


def test_shares_are_not_set_beside_a_run_nor_past_one_that_took_them(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0"})
    with pytest.raises(QmtlError) as during:
        runs.share(w="0.9")
    assert during.value.code == "E_REBALANCING"
    carried_out(runs, book, "r1")
    with pytest.raises(QmtlError) as after:
        runs.share(w="0.3")
    assert after.value.code == "E_WEIGHT"
    book.desk.fence.halt("w", "olga", "it is over")
    runs.share(w="0")


def test_a_share_that_is_taken_from_a_halted_world_stops_it_as_a_run_does(book: Book, runs: Runs) -> None:
    """It went on with share 0 after its resume, and another world had the same capital."""
    first = book.desk.strategies[0]
    holds(book, "1")
    runs.begun("r1", {"w": "0.2"})
    carried_out(runs, book, "r1")
    before = runs.allocations.scales("w")
    book.desk.fence.halt("w", "olga", "it is over")
    runs.share(w="0")
    assert runs.allocations.strategy_capital("w", first).weight == 0
    book.desk.steps.resume("w", "olga", "it goes on")
    assert runs.allocations.strategy_capital("w", first).weight == 0
    runs.begun("r2", {"w": "0.1"})
    carried_out(runs, book, "r2")
    assert runs.allocations.scales("w").world.value == before.world.value / 2, "0.2 to 0 to 0.1"


def test_a_world_that_allows_live_meanwhile_asks_for_its_approvals(database: Database) -> None:
    found = policy(approvals={"required": 1, "live": 2})
    book = Book(database, spec={**CAPITAL, "allow_live": False, "found": found})
    runs = Runs(database)
    runs.share(w="0.3")
    holds(book, "1")
    runs.approved("r1", {"w": "0.2"})
    book.desk.rules.update_world("w", WorldUpdate.model_validate({"allow_live": True}), "olga")
    with pytest.raises(QmtlError) as error:
        runs.beginnings.begin("r1")
    assert error.value.code == "E_APPROVAL_MISSING"


def test_nobody_gets_by_a_crossing_what_they_may_not_order(book: Book, runs: Runs) -> None:
    first, second = book.desk.strategies
    holds(book, "1", "0.9")
    limited(book, strategy={"max_position": "60"})
    own = [{"world_id": "w", "weight": "0.3", "strategies": {first: "0.1", second: "0.1"}}]
    runs.allocations.update(AllocationUpdate.model_validate({"allocations": own}), "olga")
    strategies = [
        {"strategy_id": first, "before": "0.1", "after": "0.2"},
        {"strategy_id": second, "before": "0.1", "after": "0"},
    ]
    change = {"world_id": "w", "before": "0.3", "after": "0.3", "strategies": strategies}
    begun(runs, changed(runs.asked("r1", {"w": "0.3"}), worlds=[change]))
    found = carried_out(runs, book, "r1")
    assert (held(book), found.report and found.report.crossed) == ([50, 0], 0)
    assert {trade.reason for trade in found.trades} == {"", "position_limit"}


def test_positions_of_a_domain_in_which_nobody_trades_are_not_crossed(database: Database) -> None:
    book = Book(database, strategies=2, spec={**CAPITAL, "allow_live": False})
    runs = Runs(database)
    runs.share(w="0.3")
    booked(book, "50", 0, "paper-live")
    booked(book, "-40", 1, "paper-live")
    runs.begun("r1", {"w": "0.15"})
    found = carried_out(runs, book, "r1")
    assert [book.position(number, account="paper-live") for number in (0, 1)] == [50, -40]
    assert {trade.state for trade in found.trades} == {"refused"}


def test_refused_orders_of_a_run_do_not_trip_the_circuit_breaker(database: Database) -> None:
    book = Book(database, spec={**CAPITAL, "circuit_breaker": {"max_refused_per_minute": 1}})
    runs = Runs(database)
    runs.share(w="0.3")
    for symbol in "ABC":
        holds(book, "0.3", symbol=symbol)
    limited(book, max_quantity="1")
    runs.begun("r1", {"w": "0.15"})
    found = carried_out(runs, book, "r1")
    assert ([trade.state for trade in found.trades], book.desk.fence_row().halted) == (["refused"] * 3, "")


def test_orders_are_in_the_lots_of_their_world(book: Book, runs: Runs) -> None:
    holds(book, "1")
    begun(runs, changed(runs.asked("r1", {"w": "0.2"}), instruments={"lot": "0.001"}))
    carried_out(runs, book, "r1")
    assert held(book)[0] == 34


def test_a_world_that_waits_keeps_no_other_waiting(database: Database) -> None:
    slow = {**CAPITAL, "world": "a", "circuit_breaker": {"max_orders_per_minute": 2}}
    books = [Book(database, spec=slow), Book(database, spec={**CAPITAL, "world": "b"})]
    runs = Runs(database)
    runs.share(a="0.3", b="0.3")
    for book in books:
        for symbol in ("A", "B"):
            holds(book, "0.4", symbol=symbol)
    runs.begun("r1", {"a": "0.15", "b": "0.15"})
    assert runs.order("r1", "reductions") is Progress.WAITS
    states = [(trade.world_id, trade.state) for trade in runs.requests.find("r1").trades]
    assert states == [("a", "planned"), ("a", "planned"), ("b", "ordered"), ("b", "ordered")]
