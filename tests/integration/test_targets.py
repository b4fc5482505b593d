"""Targets: what a strategy wants to hold becomes the orders that its position lacks, under the fence."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.store import update_world
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.order_settings import OrdersSettings
from activities.storage.database import Database
from activities.storage.tables import TargetRow
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import OrderReport
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import MAX_TARGETS, TargetBatch, TargetVerdict
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.desk import Desk, new_order_id
from tests.support.target_book import BAR, CAPITAL, Book

D = Decimal


@pytest.fixture
def book(database: Database) -> Book:
    return Book(database)


def test_a_target_is_ordered_filled_and_then_holds(book: Book) -> None:
    assert book.ordered("0.5") == 50
    assert book.ordered("0.5") == 0  # the order is open
    book.fill()
    assert book.position() == 50
    book.next_bar()
    assert book.ordered("0.5", reference_price="125") == 0  # a price that drifts is no reason to trade
    assert book.ordered("-0.25", reference_price="125") == -70
    book.fill()
    assert book.position() == -20
    book.next_bar()
    assert book.ordered("0") == 20
    book.fill()
    assert book.position() == 0
    assert book.orders() == [("filled", 50), ("filled", -70), ("filled", 20)]


def test_a_retry_of_a_target_orders_nothing_twice(book: Book) -> None:
    asked = book.target("1")
    (first,), (again,) = book.set(asked), book.set(asked)
    assert first == again
    assert first.ordered == 100
    book.fill()
    assert book.set(asked) == [first]  # its id names the order that followed from it
    assert book.ordered("1") == 0  # and a new id for the same target orders what is missing: nothing
    assert book.orders() == [("filled", 100)]


def test_targets_of_one_request_see_the_orders_before_them(book: Book) -> None:
    asked = ("0.4", "1", "0.6")
    found = book.set(*(book.target(value) for value in asked), book.target("0.4", symbol="MSFT"))
    assert [item.ordered for item in found] == [40, 60, 0, 40]
    assert found[2].reason is Refusal.OPEN_ORDERS  # what the request ordered itself is cancelled by the next
    assert book.ordered("0.6") == 60  # in place of both, which had not been sent
    book.fill()
    assert book.position() == 60


def test_a_request_has_one_target_for_each_symbol(book: Book) -> None:
    with pytest.raises(ValueError, match="one target for each symbol"):
        TargetBatch(targets=(book.target("1"), book.target("0.5")))


def test_many_targets_and_many_resting_orders_hold_nobody_up(book: Book) -> None:
    """1,000 targets against 1,000 resting orders held the fence for 26 s: each cancelled them all again."""
    resting = [book.desk.order(book.session, book.desk.epoch, quantity="0.01") for _ in range(400)]
    assert all(item.accepted for item in book.acceptance.publish(resting, book.desk.caller))
    open_orders = SqlOpenOrders(book.database, 300.0)
    open_orders.mark_sent(book.desk.world, open_orders.due(Domain.DRYRUN, 500)[book.desk.world], 60.0)
    began = time.process_time()
    found = book.set(*(book.target("-1") for _ in range(200)))
    assert {item.reason for item in found} == {Refusal.OPEN_ORDERS}
    assert time.process_time() - began < 3
    asked = open_orders.due(Domain.DRYRUN, 500)[book.desk.world]
    assert len([item for item in asked if item.cancel_reason]) == 400


def test_an_order_against_a_target_is_cancelled_even_where_the_target_is_too_much(database: Database) -> None:
    """It was sent and filled: the position was long though the strategy wanted to be short."""
    book = Book(database, spec={**CAPITAL, "order_limits": {"max_quantity": "100"}})
    assert book.ordered("1") == 100
    book.next_bar()
    assert book.refused("-150", "units") is Refusal.QUANTITY_LIMIT
    book.fill()
    assert book.position() == 0


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_quantity": "100"}, "quantity_limit"),
        ({"max_notional": "10000"}, "notional_limit"),
        ({"strategy": {"max_position": "120"}}, "position_limit"),
        ({"strategy": {"max_gross_notional": "12000"}}, "gross_limit"),
    ],
)
def test_a_limit_of_size_lets_a_position_be_closed_that_is_to_be_turned_around(
    database: Database, limits: dict[str, Any], reason: str
) -> None:
    """The order was refused as a whole: the position stayed long though the strategy wanted to be short."""
    book = Book(database, spec={**CAPITAL, "order_limits": limits})
    assert book.ordered("1") == 100
    book.fill()
    book.next_bar()
    asked = book.target("-150", unit="units")
    (found,), (again,) = book.set(asked), book.set(asked)
    assert (found.accepted, found.ordered) == (True, -100)
    assert again == found
    assert book.refused("-150", "units") == reason, "the rest by itself, while that is open"
    book.fill()
    book.next_bar()
    assert book.position() == 0
    assert book.refused("-150", "units") == reason


def test_many_gateways_at_once_order_once(book: Book) -> None:
    gateways = [OrderAcceptance(book.database) for _ in range(4)]
    asked = [book.target("1") for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda n: gateways[n % 4].publish([asked[n]], book.desk.caller)[0], range(len(asked)))
        )
    assert all(item.accepted for item in found)
    book.fill()
    assert (book.position(), len(book.orders())) == (100, 1)


def test_each_strategy_trades_its_weights_share(database: Database) -> None:
    book = Book(database, strategies=2)  # half each
    _first, second = book.desk.strategies
    other = book.desk.session(second)
    assert book.ordered("1") == 50
    assert book.ordered("1", strategy_id=second, session_id=other, order_id=new_order_id("w", second)) == 50
    book.fill()
    assert [book.position(0), book.position(1)] == [50, 50]


def test_a_change_of_weight_or_capital_resizes(book: Book) -> None:
    assert book.ordered("1") == 100
    book.fill()
    book.reweigh("0.25")
    assert book.ordered("1") == -75
    book.fill()
    with book.database.write("olga") as tx:
        change = WorldUpdate.model_validate({"capital": {"amount": "20000"}})
        update_world(tx, book.desk.world, change, "olga")
    assert book.ordered("1") == 25
    book.fill()
    assert book.position() == 50


def test_after_a_halt_and_its_resume_the_rest_is_ordered(book: Book) -> None:
    assert book.ordered("1") == 100  # not sent
    SqlStrategyHalts(book.database).halt(book.desk.world, book.desk.strategies[0], "olga", "look")
    assert book.refused("1") is Refusal.STRATEGY_HALTED
    assert book.orders() == [("cancelled", 100), ("refused", 100)]
    SqlStrategyHalts(book.database).resume(book.desk.world, book.desk.strategies[0], "olga", "go")
    assert book.ordered("1") == 100
    book.fill()
    assert book.position() == 100


def test_a_refused_target_leaves_no_size_behind(book: Book) -> None:
    stale = book.refused("1", epoch=book.desk.epoch - 1)
    assert stale is Refusal.STALE_EPOCH
    with book.database.read() as session:
        assert session.get(TargetRow, (book.desk.world, book.desk.strategies[0], "dryrun", "AAPL")) is None
    assert book.ordered("1", reference_price="200") == 50  # sized anew, at the present price


def test_a_target_of_an_earlier_bar_that_comes_late_is_refused(book: Book) -> None:
    late = book.target("0")
    book.next_bar()
    assert book.ordered("1") == 100
    book.fill()
    (verdict,) = book.set(late)
    assert verdict.reason is Refusal.STALE_TARGET
    assert book.position() == 100


def test_a_session_that_was_opened_since_sets_targets_of_earlier_bars(book: Book) -> None:
    book.bar = datetime(2100, 1, 1, tzinfo=UTC)  # nothing checks a client's bar
    assert book.ordered("1") == 100
    book.fill()
    book.bar = BAR
    assert book.refused("0") is Refusal.STALE_TARGET
    book.session = book.desk.session()
    assert book.ordered("0") == -100


def test_orders_that_trade_the_other_way_are_cancelled_first(book: Book) -> None:
    assert book.ordered("1") == 100
    open_orders = SqlOpenOrders(book.database, 300.0)
    due = open_orders.due(Domain.DRYRUN, 10)[book.desk.world]
    open_orders.mark_sent(book.desk.world, due, 60.0)  # at its venue, and nothing filled yet
    book.next_bar()
    assert book.refused("0") is Refusal.OPEN_ORDERS
    (waiting,) = open_orders.due(Domain.DRYRUN, 10)[book.desk.world]
    assert waiting.cancel_reason == "its strategy's target has changed"
    ended = OrderReport(order_id=waiting.order_id, state="cancelled")
    open_orders.record(book.desk.world, [ended], {})
    assert book.ordered("0") == 0
    assert book.ordered("-0.5") == -50


def test_raw_orders_and_targets_of_one_symbol_count_together(book: Book) -> None:
    raw = book.desk.order(book.session, book.desk.epoch, quantity="30")
    verdicts = book.acceptance.publish([raw, book.target("1")], book.desk.caller)
    assert [item.accepted for item in verdicts] == [True, True]
    assert isinstance(verdicts[1], TargetVerdict)
    assert verdicts[1].ordered == 70
    book.fill()
    assert book.position() == 100


def test_limits_of_a_world_hold_for_targets(database: Database) -> None:
    limits = {"symbols": ["AAPL"], "max_quantity": "60", "max_notional": "4000"}
    book = Book(database, spec={**CAPITAL, "order_limits": limits})
    assert book.refused("1", symbol="MSFT") is Refusal.SYMBOL_LIMIT
    assert book.refused("1") is Refusal.QUANTITY_LIMIT
    assert book.refused("0.5") is Refusal.NOTIONAL_LIMIT
    assert book.ordered("0.4") == 40


def test_a_share_needs_capital_and_a_price(database: Database) -> None:
    book = Book(database, spec={"instruments": {"lot": "1"}})
    assert book.refused("1") is Refusal.NO_CAPITAL
    assert book.refused("500", "notional", reference_price=None) is Refusal.NO_PRICE
    assert book.ordered("500", "notional") == 5
    assert book.orders() == [("accepted", 5)]  # what cannot be sized leaves no order


def test_positions_of_another_domain_do_not_count(book: Book) -> None:
    assert book.ordered("1") == 100
    book.fill()
    book.desk.apply("live")
    live = book.desk.session(domain="live")
    assert book.ordered("1", session_id=live, execution_domain="live") == 100
    accounts = OrdersSettings(dryrun_account="paper", live_account="real")
    assert accounts.account_of(Domain.LIVE) == "real"


def test_only_who_holds_the_session_sets_its_targets(book: Book) -> None:
    other = Desk.found(book.database)  # ana again, without the session's secret
    (verdict,) = book.acceptance.publish([book.target("1")], other.caller)
    assert (verdict.accepted, verdict.reason) == (False, Refusal.NO_SESSION)
    assert book.orders() == []


def test_an_id_that_was_used_for_another_order_is_refused(book: Book) -> None:
    raw = book.desk.order(book.session, book.desk.epoch, quantity="30")
    book.acceptance.publish([raw], book.desk.caller)
    asked = book.target("1", order_id=raw.order_id)
    assert book.set(asked)[0].reason is Refusal.ORDER_REUSED
    assert book.ordered("1", symbol="MSFT") == 100
    moved = book.target("1", symbol="KO")
    book.set(moved)
    assert book.set(moved.model_copy(update={"symbol": "T"}))[0].reason is Refusal.ORDER_REUSED


def test_a_strategy_has_targets_for_so_many_symbols(book: Book) -> None:
    for start in range(0, MAX_TARGETS, 250):
        many = [book.target("0", symbol=f"S{start + n}") for n in range(250)]
        assert all(item.accepted for item in book.set(*many))
    assert book.refused("0", symbol="ONE_MORE") is Refusal.TARGET_LIMIT
    assert book.ordered("0", symbol="S7") == 0


def test_a_world_that_is_not_there_is_named(book: Book) -> None:
    with pytest.raises(QmtlError, match="there is no world"):
        book.set(
            book.target("1").model_copy(update={"world_id": "nowhere"}),
        )
