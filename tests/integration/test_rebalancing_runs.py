"""Runs of rebalancings: begun once on what was planned, ordered once; what is missing is named."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from activities.fence.strategy_halts import SqlStrategyHalts
from activities.ledger.sql import SqlLedger
from activities.rebalancing.ordering import Progress
from activities.storage.database import Database
from activities.storage.tables import FenceRow
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.rebalance_runs import STEPS, Runs, carried_out, held, holds
from tests.support.target_book import CAPITAL, Book

D = Decimal

pytest_plugins = ["tests.support.rebalance_fixtures"]


def test_positions_follow_the_share_of_their_world(book: Book, runs: Runs) -> None:
    holds(book, "1", "0.5")
    assert held(book) == [50, 25]
    runs.begun("r1", {"w": "0.2"})
    found = carried_out(runs, book, "r1")
    assert (found.outcome, found.report.orders, found.report.filled) == ("completed", 2, 2)
    assert held(book) == [33, 17], "75 times two thirds is 50: a lot goes to the larger remainder"
    assert runs.allocations.snapshot().allocations[0].weight == D("0.2")
    assert book.desk.fence_row().rebalancing == ""


def test_a_run_that_changes_nothing_ends_at_once_and_asks_nobody(book: Book, runs: Runs) -> None:
    """It waited for people to approve nothing."""
    holds(book, "1")
    found = runs.request("r1", {"w": "0.3"})
    assert (found.outcome, found.approvals_required) == ("completed", 0)
    assert found.reason.startswith("no share and no position changes")
    assert runs.request("r1", {"w": "0.3"}) == found
    assert runs.requests.unfinished() == []
    fewer = runs.request("r2", {"w": "0.299"})
    assert (fewer.outcome, fewer.trades) == (None, ()), "its share is approved: later targets have its size"
    assert fewer.approvals_required > 0


def test_the_next_target_orders_nothing_beside_the_run(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0.2"})
    book.next_bar()
    assert book.ordered("1") == 0, "before the run has ordered"
    carried_out(runs, book, "r1")
    book.next_bar()
    assert book.ordered("1") == 0, "after it"
    book.next_bar()
    assert book.ordered("0.5") == D(16) - 34, "half of two thirds of 5,000, in lots"


def test_a_share_that_comes_back_gives_the_same_sizes(book: Book, runs: Runs) -> None:
    holds(book, "1")
    for number, share in enumerate(("0.2", "0.1", "0.3")):
        runs.begun(f"r{number}", {"w": share})
        carried_out(runs, book, f"r{number}")
    book.next_bar()
    book.ordered("0.9")
    book.fill()
    book.next_bar()
    book.ordered("1")
    book.fill()
    assert held(book)[0] == 50


def test_a_share_of_nothing_closes_positions_and_stops_targets(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0"})
    carried_out(runs, book, "r1")
    assert held(book)[0] == 0
    book.next_bar()
    assert book.ordered("0.8") == 0
    runs.begun("r2", {"w": "0.1"})
    carried_out(runs, book, "r2")
    book.next_bar()
    assert book.ordered("0.7") == 11, "a third of what it had at 0.3"


def test_opposite_changes_are_crossed_without_an_order(book: Book, runs: Runs) -> None:
    holds(book, "1", "-1")
    assert held(book) == [50, -50]
    before = len(book.orders())
    runs.begun("r1", {"w": "0.15"})
    found = carried_out(runs, book, "r1")
    assert (held(book), len(book.orders())) == ([25, -25], before)
    assert (found.outcome, found.report.crossed, found.report.orders) == ("completed", 2, 0)
    book.next_bar()
    assert book.ordered("1") == 0


def test_what_does_not_net_out_is_ordered_for_the_larger_side(book: Book, runs: Runs) -> None:
    holds(book, "1", "-0.4")
    assert held(book) == [50, -20]
    runs.begun("r1", {"w": "0.15"})
    found = carried_out(runs, book, "r1")
    assert held(book) == [25, -10]
    assert sorted((trade.quantity, trade.crossed) for trade in found.trades) == [(-15, -10), (0, 10)]
    assert sum(held(book)) == 15


def test_a_repeated_beginning_and_ordering_changes_nothing(book: Book, runs: Runs) -> None:
    holds(book, "1", "-0.4")
    runs.begun("r1", {"w": "0.15"})
    for _ in range(3):
        runs.beginnings.begin("r1")
        for step in STEPS:
            runs.order("r1", step)
    book.fill()
    assert held(book) == [25, -10]
    assert [runs.conclude("r1").outcome for _ in range(2)] == ["completed"] * 2


def changed_positions(book: Book, runs: Runs) -> None:
    book.next_bar()
    book.ordered("0.5")
    book.fill()


def changed_shares(book: Book, runs: Runs) -> None:
    runs.share(w="0.25")


def halted(book: Book, runs: Runs) -> None:
    book.desk.fence.halt("w", "olga", "odd")


def halted_strategy(book: Book, runs: Runs) -> None:
    SqlStrategyHalts(book.database).halt("w", book.desk.strategies[0], "olga", "odd")


def frozen(book: Book, runs: Runs) -> None:
    book.desk.freeze(book.desk.request("live"))


def aborted(book: Book, runs: Runs) -> None:
    runs.requests.record_abort("r1", "olga", "enough")


def rejected(book: Book, runs: Runs) -> None:
    runs.approvals.record("r1", "nora", "reject", ApprovalBody(reason="no"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed_positions, "E_ETAG"),
        (changed_shares, "E_ETAG"),
        (halted, "E_HALTED"),
        (halted_strategy, "E_HALTED"),
        (frozen, "E_WORLD_FROZEN"),
        (aborted, "E_REBALANCE_ENDED"),
        (rejected, "E_REBALANCE_ENDED"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_what_has_changed_since_the_plan_stops_the_run_before_anything_does(
    book: Book, runs: Runs, change: Callable[[Book, Runs], None], code: str
) -> None:
    holds(book, "1")
    runs.approved("r1", {"w": "0.2"})
    change(book, runs)
    before = runs.allocations.snapshot()
    with pytest.raises(QmtlError) as error:
        runs.beginnings.begin("r1")
    assert error.value.code == code
    assert (runs.allocations.snapshot(), book.desk.fence_row().rebalancing) == (before, "")
    runs.ends.conclude("r1", "rolled_back", "nothing was changed")
    assert runs.requests.find("r1").outcome == "rolled_back"


def test_a_run_without_its_approval_does_not_begin(book: Book, runs: Runs) -> None:
    holds(book, "1")
    found = runs.request("r1", {"w": "0.2"})
    assert found.approvals_required == 1
    with pytest.raises(QmtlError) as error:
        runs.beginnings.begin("r1")
    assert error.value.code == "E_APPROVAL_MISSING"
    with pytest.raises(QmtlError) as own:
        runs.approvals.record("r1", "olga", "approve", ApprovalBody())
    assert own.value.code == "E_APPROVAL_OWN"


def test_no_apply_and_no_other_run_while_a_world_is_rebalanced(book: Book, runs: Runs) -> None:
    holds(book, "1")
    runs.begun("r1", {"w": "0.2"})
    apply = book.desk.request("live")
    with pytest.raises(QmtlError) as error:
        book.desk.freeze(apply)
    assert error.value.code == "E_REBALANCING"
    runs.approved("r2", {"w": "0.1"})
    with pytest.raises(QmtlError) as other:
        runs.beginnings.begin("r2")
    assert other.value.code == "E_REBALANCING"
    carried_out(runs, book, "r1")
    book.desk.freeze(apply)


def test_one_run_id_is_one_run(book: Book, runs: Runs) -> None:
    holds(book, "1")
    asked = runs.asked("r1", {"w": "0.2"})
    first = runs.requests.request(asked, "olga")
    assert runs.requests.request(asked, "olga") == first
    with pytest.raises(QmtlError) as error:
        runs.requests.request(runs.asked("r1", {"w": "0.1"}), "olga")
    assert error.value.code == "E_RUN_ID_REUSED"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"scope": "global", "shared_account": None}, "E_REBALANCE_MODE"),
        ({"mode": "overlay"}, "E_REBALANCE_MODE"),
        ({"positions": []}, "E_ETAG"),
        ({"allocations_etag": "old"}, "E_ETAG"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_carried_out_is_not_stored(
    book: Book, runs: Runs, more: dict[str, Any], code: str
) -> None:
    holds(book, "1")
    with pytest.raises(QmtlError) as error:
        runs.request("r1", {"w": "0.2"}, request=more)
    assert error.value.code == code
    assert runs.requests.newest() == []


def test_an_order_that_the_fence_refuses_is_named_and_makes_the_run_partial(book: Book, runs: Runs) -> None:
    holds(book, "1", "0.5")
    limits = WorldUpdate.model_validate({"order_limits": {"max_quantity": "10"}})
    book.desk.rules.update_world("w", limits, "olga")
    runs.begun("r1", {"w": "0.2"})
    found = carried_out(runs, book, "r1")
    assert found.outcome == "partial"
    assert "1 refused" in found.reason
    (refused,) = (trade for trade in found.trades if trade.state == "refused")
    assert (refused.quantity, refused.reason) == (-17, Refusal.QUANTITY_LIMIT.value)
    assert held(book) == [50, 17]
    assert found.report.missing_notional == 1700


def test_a_strategy_that_has_said_another_target_since_is_left_to_it(book: Book, runs: Runs) -> None:
    holds(book, "1", "0.5")
    runs.begun("r1", {"w": "0.2"})
    book.next_bar()
    assert book.ordered("0.5") == D(16) - 50
    found = carried_out(runs, book, "r1")
    assert held(book) == [16, 17]
    assert [trade.state for trade in found.trades] == ["skipped", "filled"]
    assert "1 left to newer targets" in found.reason


def test_after_an_abort_nothing_is_ordered_and_open_orders_are_cancelled(book: Book, runs: Runs) -> None:
    holds(book, "1", "0.5")
    runs.begun("r1", {"w": "0.2"})
    runs.order("r1", "reductions")
    runs.requests.record_abort("r1", "olga", "enough")
    assert runs.order("r1", "increases") is Progress.DONE
    runs.ends.cancel("r1", "the rebalancing was aborted")
    book.fill()
    assert runs.ends.settle("r1") == 0
    runs.ends.conclude("r1", "aborted", "aborted by olga")
    found = runs.requests.find("r1")
    assert (found.outcome, held(book)) == ("aborted", [50, 25])
    assert {trade.state for trade in found.trades} == {"unfilled"}
    assert book.desk.fence_row().rebalancing == ""
    with pytest.raises(QmtlError) as error:
        runs.approvals.record("r1", "ben", "approve", ApprovalBody())
    assert error.value.code == "E_REBALANCE_ENDED"
    book.next_bar()
    assert book.ordered("1") == -17, "a target brings about what is missing"


def test_a_circuit_breaker_is_not_tripped_by_a_run(database: Database) -> None:
    book = Book(database, spec={**CAPITAL, "circuit_breaker": {"max_orders_per_minute": 6}})
    runs = Runs(database)
    runs.share(w="0.3")
    for symbol in ("A", "B", "C", "D"):
        book.ordered("0.2", symbol=symbol)
    book.fill()
    runs.begun("r1", {"w": "0.15"})
    with database.write("test", bookkeeping=True) as tx:  # orders of this minute and the next count together
        fence = tx.session.get_one(FenceRow, "w")
        fence.minute, fence.orders = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()[:16], 4
    assert runs.order("r1", "reductions") is Progress.WAITS
    assert book.desk.fence_row().halted == ""
    ordered = [trade.state for trade in runs.requests.find("r1").trades]
    assert (ordered.count("ordered"), ordered.count("planned")) == (2, 2)


def test_two_worlds_change_in_one_run(database: Database) -> None:
    books = [Book(database), Book(database, spec={**CAPITAL, "world": "v"})]
    runs = Runs(database)
    runs.share(w="0.3", v="0.2")
    for book in books:
        holds(book, "1")
    runs.begun("r1", {"w": "0.2", "v": "0.3"})
    for step in STEPS:
        runs.order("r1", step)
        books[0].fill()
    found = runs.conclude("r1")
    assert found.outcome == "completed"
    positions = {
        world: [item.position.quantity for item in SqlLedger(database).positions(world, PositionFilter())]
        for world in ("w", "v")
    }
    assert positions == {"w": [67], "v": [150]}
    assert [trade.world_id for trade in found.trades] == ["w", "v"], "the reduction comes first"
