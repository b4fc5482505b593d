"""Flatten: what is held is closed by orders that only reduce, whatever has closed the world, and once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy import text

from activities.brokers.broker import AcceptedOrder, Broker
from activities.brokers.router import OrderRouter
from activities.fence.bookings import SqlBookings
from activities.fence.flatten_faults import MAX_FAILURES
from activities.fence.flattens import SqlFlattens
from activities.fence.halt_all import halt_all
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.storage.database import Database
from activities.storage.opening import open_database
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill, FillBatch, ReportedFill
from qmtl_sdk.contracts.ledger import Booking
from qmtl_sdk.contracts.orders import CancelRequest, Order, OrderReport
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.desk import Desk, policy
from tests.support.flatten_floor import ACCOUNTS, Floor, wanted
from tests.support.statements import statements

D = Decimal


@pytest.fixture
def floor(database: Database) -> Floor:
    return Floor(database)


def told(order: Order) -> tuple[str, Decimal]:
    return order.side, order.quantity


def halt_world(floor: Floor) -> None:
    floor.desk.fence.halt(floor.world, "olga", "it is mad")


def halt_every_world(floor: Floor) -> None:
    halt_all(floor.database, [floor.world], "olga", "all of them")


def halt_strategy(floor: Floor) -> None:
    SqlStrategyHalts(floor.database).halt(floor.world, floor.strategy, "olga", "it is odd")


def freeze(floor: Floor) -> None:
    run = floor.desk.request("live")
    floor.desk.freeze(run)
    floor.desk.steps.drain(floor.world, run)


def deactivate(floor: Floor) -> None:
    floor.desk.decide(active=False)


def end_sessions(floor: Floor) -> None:
    floor.desk.end_sessions()


def archive(floor: Floor) -> None:
    floor.desk.rules.update_world(floor.world, WorldUpdate(state="archived"), "olga")


CLOSINGS: dict[str, Callable[[Floor], None]] = {
    "the world is halted": halt_world,
    "all worlds are halted": halt_every_world,
    "the strategy is halted": halt_strategy,
    "an apply has frozen the world": freeze,
    "the strategy is not active any more": deactivate,
    "its session has ended": end_sessions,
    "the world is archived": archive,
}


@pytest.mark.parametrize("closed_by", CLOSINGS)
@pytest.mark.parametrize("first", [False, True], ids=["flattened afterwards", "flattened before"])
def test_a_position_is_closed_whatever_has_closed_the_world(
    database: Database, closed_by: str, first: bool
) -> None:
    """A halt left a position of +19,000 open, and nothing could close it."""
    floor = Floor(database)
    floor.hold("10")
    if first:
        floor.flatten()
    CLOSINGS[closed_by](floor)
    if not first:
        floor.flatten()
    (order,) = floor.closing()
    assert (told(order), order.reduce_only, order.reference_price) == (("sell", D(10)), True, D(100))
    assert (order.session_id, order.symbol) == ("", "AAPL")
    assert floor.log.open_orders(floor.world) == 1, "a drain waits for it"
    assert floor.flattens.under_way(floor.world) == 1
    assert floor.send() == [order.order_id]
    floor.says(order, "filled", "10")
    assert (floor.held(), floor.under_way()) == (0, 0)
    assert (floor.audited("flatten.requested"), floor.audited("flatten.ended")) == (["olga"], ["router"])


@pytest.mark.parametrize("taken", ["allow_live", "the edge"])
def test_a_live_position_is_closed_where_live_is_not_allowed_any_more(floor: Floor, taken: str) -> None:
    floor.go_live()
    floor.hold("-3")
    if taken == "allow_live":
        floor.desk.rules.update_world(floor.world, WorldUpdate(allow_live=False), "olga")
    else:
        edge = EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="stop")
        floor.desk.fence.override(floor.world, edge, "olga")
    done = floor.flatten()
    assert [(item.execution_domain, item.quantity) for item in done.ordered] == [(Domain.LIVE, D(3))]
    floor.fill_all()
    assert floor.held() == 0


def test_open_orders_of_both_sides_are_counted_until_they_have_ended(floor: Floor) -> None:
    """Each of them may still fill. Nothing may take more away than is held."""
    floor.hold("10")
    buy, sell = floor.order("buy", "5"), floor.order("sell", "4")
    unsent = floor.order("sell", "2", sent=False)
    done = floor.flatten()
    assert (done.cancelled, done.requested) == (1, 2)
    assert floor.state_of(unsent) == "cancelled"
    assert [told(order) for order in floor.closing()] == [("sell", D(6))]
    (remains,) = done.remains
    assert (remains.quantity, remains.under_way) == (D(10), True)
    assert remains.waits_for == "the end of 3 open orders"
    floor.says(sell, "cancelled", "1")  # of 4, so 3 are left to close
    assert [told(order) for order in floor.closing()] == [("sell", D(6)), ("sell", D(3))]
    floor.says(buy, "cancelled", "2")
    assert told(floor.closing()[-1]) == ("sell", D(2))
    floor.fill_all()
    assert (floor.held(), floor.under_way(), floor.violations()) == (0, 0, [])


def test_a_reversing_order_at_the_venue_leaves_nothing_to_order_until_it_ends(floor: Floor) -> None:
    floor.hold("10")
    sell = floor.order("sell", "15")
    floor.flatten()
    assert floor.closing() == []
    floor.says(sell, "filled", "15")
    assert [told(order) for order in floor.closing()] == [("buy", D(5))]
    floor.fill_all()
    assert (floor.held(), floor.violations()) == (0, [])


def test_an_order_that_never_reached_its_venue_leaves_the_rest_to_be_ordered(floor: Floor) -> None:
    """The router finds that out itself: no venue reports it."""
    floor.hold("10")
    lost = floor.order("sell", "4")
    floor.flatten()
    assert floor.send_again(lost) == []
    assert floor.state_of(lost) == "cancelled"
    assert [told(order) for order in floor.closing()] == [("sell", D(6)), ("sell", D(4))]


def test_an_order_that_may_still_open_a_position_is_waited_for(floor: Floor) -> None:
    buy = floor.order("buy", "5")
    (remains,) = floor.flatten().remains
    assert (remains.quantity, remains.waits_for) == (D(0), "the end of 1 open order")
    floor.says(buy, "cancelled", "2")
    assert [told(order) for order in floor.closing()] == [("sell", D(2))]
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_the_own_orders_of_a_strategy_end_before_they_are_sent_while_it_is_flattened(floor: Floor) -> None:
    """Together with the order of the flatten, this one would have sold 20 of 10."""
    floor.hold("10")
    floor.flatten()
    own = floor.order("sell", "10", sent=False)
    (closing,) = floor.closing()
    assert floor.send() == [closing.order_id]
    assert floor.state_of(own) == "cancelled"
    floor.says(closing, "filled", "10")
    assert (floor.held(), floor.under_way()) == (0, 0)
    later = floor.order("buy", "1")
    assert floor.state_of(later) == "sent", "it may trade again"


def test_a_repeated_request_orders_nothing_twice(floor: Floor) -> None:
    floor.hold("10")
    first = floor.flatten(flatten_id="request-1")
    again = floor.flatten(flatten_id="request-1")
    assert again == first
    assert len(floor.closing()) == 1
    other = floor.flatten(flatten_id="request-2")
    assert (other.ordered, len(floor.closing())) == ((), 1), "what is open closes it already"
    floor.fill_all()
    assert floor.flatten(flatten_id="request-1").remains == ()
    floor.hold("4")
    late = floor.flatten(flatten_id="request-1")
    assert (len(floor.closing()), floor.held()) == (1, 4), "a retry that comes late closes nothing new"
    (remains,) = late.remains
    assert not remains.under_way
    assert "traded since" in remains.waits_for
    with pytest.raises(QmtlError) as error:
        floor.flatten(strategy=floor.strategy, flatten_id="request-1")
    assert error.value.code == "E_FLATTEN_REUSED"


def test_only_the_named_strategy_is_flattened(database: Database) -> None:
    floor = Floor(database, strategies=2)
    one, two = floor.desk.strategies
    floor.hold("10", strategy=one)
    floor.hold("-7", strategy=two)
    resting = floor.order("buy", "1", strategy=one)
    assert floor.flatten(strategy=two).requested == 0
    (order,) = floor.closing()
    assert floor.send() == [order.order_id]
    floor.says(order, "filled", "7")
    assert (floor.held(one), floor.held(two), floor.state_of(resting)) == (10, 0, "sent")
    floor.flatten()
    floor.fill_all()
    assert (floor.held(one), floor.held(two)) == (0, 0)
    with pytest.raises(QmtlError) as error:
        floor.flatten(strategy="nobody")
    assert error.value.code == "E_STRATEGY_UNKNOWN"


def test_a_fill_that_comes_late_takes_back_what_is_too_much(floor: Floor) -> None:
    """The venue had said that the order was cancelled, and then filled a part of it."""
    floor.hold("10")
    sell = floor.order("sell", "4")
    floor.flatten()
    floor.says(sell, "cancelled")
    unsent = floor.closing()[-1]
    assert told(unsent) == ("sell", D(4))
    floor.says(sell, "cancelled", "3")
    assert floor.state_of(unsent) == "cancelled"
    orders = [item.order for item in floor.opened("flatten")]
    assert sum(order.quantity for order in orders) == floor.held() == 7
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_a_position_that_is_booked_meanwhile_is_what_is_closed(floor: Floor) -> None:
    floor.hold("10")
    floor.flatten()
    booking = {"booking_id": "adj", "kind": "adjustment", "strategy_id": floor.strategy, "account": "paper"}
    more = {"symbol": "AAPL", "quantity": "-4", "price": "100", "reason": "as the venue shows it"}
    SqlBookings(floor.database).record(floor.world, Booking.model_validate({**booking, **more}), "olga")
    assert [told(item.order) for item in floor.opened("flatten")] == [("sell", D(6))]
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_a_fill_that_a_person_reports_continues_a_flatten(floor: Floor) -> None:
    floor.hold("10")
    sell = floor.order("sell", "10")
    floor.flatten()
    assert floor.closing() == []
    found = ReportedFill(order_id=sell.order_id, fill=floor.fill(sell, "10"))
    floor.fills.record(FillBatch(world_id=floor.world, fills=(found,)), "olga")
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_flattens_at_once_close_a_position_once(dsn: str, database: Database) -> None:
    floor = Floor(database)
    floor.hold("10")
    others = [open_database(dsn) for _ in range(2)]
    try:
        stores = [SqlFlattens(other, ACCOUNTS, 20.0) for other in others]
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda each: each.request(floor.world, wanted(), "olga"), stores))
    finally:
        for other in others:
            other.close()
    assert sorted(len(answer.ordered) for answer in answers) == [0, 1]
    assert [told(order) for order in floor.closing()] == [("sell", D(10))]
    floor.fill_all()
    assert (floor.held(), floor.violations()) == (0, [])


class CuttingVenue(Broker):
    """A venue that fills what it gets. Its first calls are cut, before or after the orders arrive."""

    name, batch, time_in_flight_s = "paper", 10, 0.0

    def __init__(self, arrives: bool) -> None:
        self.cuts = 1
        self.arrives = arrives
        self.filled: dict[str, OrderReport] = {}
        self.placed = list[str]()

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        self.cuts -= 1
        for order, _ in orders:
            if self.cuts < 0 or self.arrives:
                self.placed.append(order.order_id)
                fill = Fill(fill_id=order.order_id, quantity=order.quantity, price=D(100), account=self.name)
                report = OrderReport(order_id=order.order_id, state="filled", fills=(fill,))
                self.filled.setdefault(order.order_id, report)
        if self.cuts >= 0:
            raise KeyboardInterrupt("the router was killed")
        return self.find(orders, now)

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        return [self.filled[order.order_id] for order, _ in orders if order.order_id in self.filled]

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Nothing rests here."""


@pytest.mark.parametrize("arrives", [False, True])
def test_a_router_that_is_killed_between_sends_no_order_twice(floor: Floor, arrives: bool) -> None:
    floor.hold("10")
    floor.flatten()
    venue = CuttingVenue(arrives)

    def step() -> None:
        with floor.database.write("test", bookkeeping=True) as tx:  # all is due
            tx.connection.execute(text("UPDATE open_order SET next_at = accepted_at, sent_at = accepted_at"))
        OrderRouter(floor.database, floor.open, {Domain.DRYRUN: venue}).step()

    with pytest.raises(KeyboardInterrupt):
        step()
    assert [item.state for item in floor.opened()] == ["sent"]
    halt_world(floor)
    age(floor)
    for _ in range(3):
        step()
    (order,) = floor.closing()
    assert venue.placed == [order.order_id]
    assert (floor.held(), floor.under_way()) == (0, 0)


def age(floor: Floor) -> None:
    """Let open orders have been accepted ten minutes ago."""
    with floor.database.write("test", bookkeeping=True) as tx:
        tx.connection.execute(text("UPDATE open_order SET accepted_at = '2024-01-01T00:00:00.000000+00:00'"))


def test_an_order_of_a_flatten_waits_for_a_router_for_as_long_as_it_takes(floor: Floor) -> None:
    floor.hold("10")
    floor.desk.route("2024")
    done = floor.flatten()
    assert "no order router works" in done.note
    age(floor)
    (order,) = floor.closing()
    assert floor.send() == [order.order_id]
    floor.desk.route()
    assert floor.flatten().note == ""


@pytest.mark.parametrize("end", ["rejected", "expired", "cancelled"])
def test_a_venue_that_ends_an_order_gets_another_after_a_pause(floor: Floor, end: str) -> None:
    """Ordered again at once, a venue that rejects all would get some 50 orders a second."""
    floor.hold("10")
    flatten = floor.flatten(flatten_id="request-1")
    assert flatten.is_under_way
    floor.send()
    floor.says(floor.closing()[0], end, reason="it is closed today")
    assert (len(floor.closing()), floor.opened(), floor.under_way()) == (1, [], 1)
    (remains,) = floor.flatten(flatten_id="request-1").remains
    assert f"since the last one was {end}: it is closed today" in remains.waits_for
    floor.flattens.continue_due()
    assert len(floor.closing()) == 1, "its time has not come"
    floor.pass_time()
    assert len(floor.closing()) == 2
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_who_asks_again_waits_for_no_pause(floor: Floor) -> None:
    floor.hold("10")
    floor.flatten()
    floor.send()
    floor.says(floor.closing()[0], "rejected")
    assert len(floor.flatten().ordered) == 1


def reject(floor: Floor, symbol: str, times: int, reason: str) -> None:
    """Let the venue reject the orders of a flatten for a symbol, one after the other."""
    for _ in range(times):
        floor.send()
        (order,) = [item.order for item in floor.opened("flatten") if item.order.symbol == symbol]
        floor.says(order, "rejected", reason=reason)
        floor.pass_time()


def test_a_symbol_that_its_venue_rejects_holds_up_no_other(floor: Floor) -> None:
    """Its pause was that of all symbols of the flatten."""
    floor.hold("10")
    floor.hold("5", symbol="KO")
    own = floor.order("sell", "2", symbol="KO")
    floor.flatten()
    floor.says(floor.closing()[0], "rejected", reason="not today")
    floor.says(own, "cancelled")
    opened = [(item.order.symbol, *told(item.order)) for item in floor.opened("flatten")]
    assert opened == [("KO", "sell", D(3)), ("KO", "sell", D(2))]


def test_a_symbol_that_is_rejected_again_and_again_is_given_up_alone(floor: Floor) -> None:
    """It was ordered again for ever."""
    floor.hold("10")
    floor.hold("5", symbol="KO")
    own = floor.order("sell", "2", symbol="KO")
    floor.flatten(flatten_id="request-1")
    reject(floor, "AAPL", MAX_FAILURES, "no multiple of its step")
    assert [item.order.symbol for item in floor.opened("flatten")] == ["KO"]
    apple, coke = floor.flatten(flatten_id="request-1").remains
    why = f"nobody closes it: {MAX_FAILURES} orders were not filled, and the last one was rejected: "
    assert (apple.symbol, apple.quantity, apple.under_way) == ("AAPL", 10, False)
    assert apple.waits_for == why + "no multiple of its step"
    assert (coke.symbol, coke.under_way) == ("KO", True)
    assert floor.audited("flatten.given_up") == ["router"]
    assert floor.flattens.left_behind(floor.world) == (apple,)
    floor.says(own, "cancelled")
    floor.fill_all()
    assert (floor.held(), floor.held(symbol="KO"), floor.under_way()) == (10, 0, 0)
    assert floor.flattens.left_behind(floor.world) == (apple,)
    assert floor.flatten(flatten_id="request-1").remains == (apple,)
    assert floor.state_of(floor.order("sell", "1")) == "sent", "its strategy may trade again"
    assert floor.flattens.left_behind(floor.world) == (apple,), "nothing is filled yet"
    floor.fill_all()
    assert floor.flattens.left_behind(floor.world) == (), "the rest is its strategy's own"
    floor.flatten()
    assert told(floor.closing()[-1]) == ("sell", D(9)), "a new request tries again"
    floor.fill_all()
    assert (floor.held(), floor.flattens.left_behind(floor.world), floor.violations()) == (0, (), [])


def test_orders_that_fill_a_part_are_never_given_up(floor: Floor) -> None:
    floor.hold("40")
    floor.flatten()
    for _ in range(MAX_FAILURES + 5):
        floor.send()
        floor.says(floor.closing()[-1], "cancelled", "1")
        floor.pass_time()
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_an_order_that_the_flatten_takes_back_is_no_failure_of_its_venue(floor: Floor) -> None:
    """Ten bookings in a row gave the symbol up, and each made it wait."""
    floor.hold("100")
    floor.flatten()
    for number in range(MAX_FAILURES + 2):
        floor.send()
        (order,) = [item.order for item in floor.opened("flatten")]
        booking = {"booking_id": f"b{number}", "kind": "adjustment", "strategy_id": floor.strategy}
        less = {"account": "paper", "symbol": "AAPL", "quantity": "-1", "price": "100", "reason": "counted"}
        SqlBookings(floor.database).record(floor.world, Booking.model_validate({**booking, **less}), "olga")
        floor.says(order, "cancelled", reason="cancelled by its owner")
        assert [told(item.order) for item in floor.opened("flatten")] == [("sell", D(99 - number))]
    floor.fill_all()
    assert (floor.held(), floor.under_way(), floor.audited("flatten.given_up")) == (0, 0, [])


def test_what_is_less_than_a_lot_is_named_and_not_ordered(floor: Floor) -> None:
    floor.desk.rules.update_world(floor.world, WorldUpdate(instruments={"lot": "2"}), "olga")
    floor.hold("7.5")
    floor.hold("0.5", symbol="KO")
    floor.flatten(flatten_id="request-1")
    assert [(order.symbol, *told(order)) for order in floor.closing()] == [("AAPL", "sell", D(6))]
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (D("1.5"), 0)
    left = floor.flatten(flatten_id="request-1").remains
    assert [(item.symbol, item.quantity, item.under_way) for item in left] == [
        ("AAPL", D("1.5"), False),
        ("KO", D("0.5"), False),
    ]
    assert {item.waits_for for item in left} == {"nobody closes it: it is less than a lot of 2"}
    assert floor.flattens.left_behind(floor.world) == left
    before = floor.audit()
    assert (len(floor.flatten().ordered), floor.under_way()) == (0, 0)
    assert floor.audit()[len(before) :] == ["flatten.requested", "flatten.ended"]


def test_only_what_was_not_traded_since_is_left_of_a_flatten(floor: Floor) -> None:
    """Its status named the old remainder beside a new position."""
    floor.desk.rules.update_world(floor.world, WorldUpdate(instruments={"lot": "2"}), "olga")
    floor.hold("1.5")
    floor.hold("0.5", symbol="KO")
    floor.flatten(flatten_id="request-1")
    assert len(floor.flattens.left_behind(floor.world)) == 2
    floor.hold("0.25")
    floor.hold("1", symbol="PEP")
    place = {"strategy_id": floor.strategy, "account": "paper", "symbol": "KO", "reason": "as announced"}
    for body in ({"kind": "dividend", "amount": "3"}, {"kind": "split", "ratio": "2"}):
        booking = Booking.model_validate({"booking_id": body["kind"], **body, **place})
        SqlBookings(floor.database).record(floor.world, booking, "olga")
    left = floor.flattens.left_behind(floor.world)
    assert [(item.symbol, item.quantity) for item in left] == [("KO", 1)], "not by an order"
    remains = floor.flatten(flatten_id="request-1").remains
    assert ["traded since" in item.waits_for for item in remains] == [True, False, True]


def test_a_remainder_is_named_where_the_clock_of_its_last_fill_is_ahead(floor: Floor) -> None:
    floor.desk.rules.update_world(floor.world, WorldUpdate(instruments={"lot": "2"}), "olga")
    floor.hold("1.5")
    with floor.database.write("test", bookkeeping=True) as tx:
        tx.connection.execute(text("UPDATE position SET after = replace(after, marked_at, '2999')"))
    floor.flatten()
    assert [item.symbol for item in floor.flattens.left_behind(floor.world)] == ["AAPL"]


def test_a_spec_is_read_again_only_when_it_has_changed(floor: Floor) -> None:
    """Each continuation parsed it, under the fence: 4 ms where it has 500 streams."""
    floor.hold("10")
    floor.flatten()
    floor.send()
    with statements() as sent:
        floor.says(floor.closing()[0], "cancelled", "3")
        floor.pass_time()
    told_of = [statement for statement, _ in sent if "world.spec" in statement or "world.etag" in statement]
    assert told_of
    assert not [statement for statement in told_of if "world.spec" in statement]
    assert told(floor.closing()[-1]) == ("sell", D(7))
    floor.desk.rules.update_world(floor.world, WorldUpdate(instruments={"lot": "4"}), "olga")
    floor.send()
    floor.says(floor.closing()[-1], "cancelled", "1")
    floor.pass_time()
    assert told(floor.closing()[-1]) == ("sell", D(4))


@pytest.mark.parametrize("how", ["one of its orders", "all"])
def test_whoever_cancels_an_order_of_a_flatten_cancels_it(floor: Floor, how: str) -> None:
    floor.hold("10")
    floor.hold("5", symbol="KO")
    floor.flatten()
    first, second = floor.closing()
    asked = CancelRequest(all=True) if how == "all" else CancelRequest(order_ids=(first.order_id,))
    assert floor.log.cancel(floor.world, asked, "ben").cancelled == 2
    assert [floor.state_of(order) for order in (first, second)] == ["cancelled"] * 2
    floor.pass_time()
    assert (floor.opened(), floor.under_way(), floor.held()) == ([], 0, 10)
    assert floor.audited("flatten.ended") == ["ben"]


def test_a_flatten_that_was_cancelled_ends_with_its_orders(floor: Floor) -> None:
    """Its order was sent and may still fill: beside it, an order of the strategy could cross zero."""
    floor.hold("10")
    floor.flatten()
    (closing,) = floor.closing()
    assert floor.send() == [closing.order_id]
    asked = CancelRequest(order_ids=(closing.order_id,))
    assert floor.log.cancel(floor.world, asked, "ben").requested == 1
    own = floor.order("sell", "8", sent=False)
    assert (floor.send(), floor.state_of(own)) == ([], "cancelled")
    (remains,) = floor.flattens.request(floor.world, wanted(flatten_id="a look at it"), "olga").remains
    assert remains.under_way, "who asks again takes it up"
    floor.log.cancel(floor.world, asked, "ben")
    floor.says(closing, "cancelled", "3")
    assert (floor.under_way(), floor.opened(), floor.held()) == (0, [], 7)
    assert floor.state_of(floor.order("sell", "7")) == "sent"


def test_a_halt_of_a_world_that_leaves_orders_open_is_flattened_too(floor: Floor) -> None:
    floor.desk.rules.update_world(floor.world, WorldUpdate.model_validate({"on_halt": "leave"}), "olga")
    floor.hold("10")
    buy = floor.order("buy", "5")
    halt_world(floor)
    assert floor.flatten().requested == 1
    floor.says(buy, "cancelled")
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == (0, 0)


def test_what_is_held_where_no_domain_trades_is_named(floor: Floor) -> None:
    booking = {"booking_id": "adj", "kind": "adjustment", "strategy_id": floor.strategy, "account": "old"}
    more = {"symbol": "AAPL", "quantity": "4", "price": "100", "reason": "moved"}
    SqlBookings(floor.database).record(floor.world, Booking.model_validate({**booking, **more}), "olga")
    (remains,) = floor.flatten().remains
    assert (remains.under_way, remains.account) == (False, "old")
    assert remains.waits_for == "nobody closes it: no domain trades in the account old"


@pytest.mark.parametrize("on_rollback", ["leave", "flatten"])
def test_a_rollback_closes_what_is_held_where_the_policy_says_so(
    database: Database, on_rollback: str
) -> None:
    """Positions of strategies that a rollback took out of paper trading stayed open."""
    limits = {"freeze_timeout_ms": 2000, "drain_timeout_ms": 3000, "on_rollback": on_rollback}
    desk = Desk(database, found=policy(apply=limits))
    floor = Floor.over(desk)
    desk.apply("dryrun", "up")
    floor.hold("10")
    back = desk.request(rollback_of="up")
    plan = desk.requests.find(desk.world, back).plan
    closes = ", close the positions of 1 strategy" in plan.switch.explain()
    assert closes is (on_rollback == "flatten"), "the people who approve it see it"
    desk.freeze(back)
    desk.steps.drain(desk.world, back)
    desk.steps.switch(desk.world, back)
    desk.steps.unfreeze(desk.world, back)
    floor.fill_all()
    assert (floor.held(), floor.under_way()) == ((0, 0) if closes else (10, 0))


def test_a_rollback_to_paper_closes_what_is_held_live_only(database: Database) -> None:
    limits = {"freeze_timeout_ms": 2000, "drain_timeout_ms": 3000, "on_rollback": "flatten"}
    floor = Floor.over(Desk(database, found=policy(apply=limits)))
    floor.desk.apply("dryrun")
    floor.hold("10", symbol="KO")
    floor.desk.apply("live", "up")
    floor.domain = "live"
    floor.hold("3")
    floor.desk.apply(rollback_of="up")
    assert [(order.execution_domain, order.symbol) for order in floor.closing()] == [(Domain.LIVE, "AAPL")]
    floor.fill_all()
    assert (floor.held(), floor.held(symbol="KO")) == (0, 10)
