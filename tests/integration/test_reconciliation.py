"""Reconciliation: a broker's account against the ledgers of all worlds and the order log."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text

from activities.brokers.broker import AcceptedOrder, Broker, Capabilities
from activities.brokers.calls import BrokerCalls
from activities.brokers.paper import PaperBroker
from activities.brokers.reconciliation import AccountReconciler
from activities.brokers.router import OrderRouter
from activities.fence.acceptance import OrderAcceptance
from activities.fence.bookings import SqlBookings
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.fence.reconciliations import SqlReconciliations
from activities.ledger.sql import SqlLedger
from activities.storage.database import Database
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Fill, ReportedFill
from qmtl_sdk.contracts.ledger import Booking, PositionFilter
from qmtl_sdk.contracts.orders import CancelRequest, Order, OrderReport
from qmtl_sdk.contracts.reconciliation import AccountState, Reconciliation
from tests.support.desk import Desk, router
from tests.support.machine import wait_for

D = Decimal


class Venue(Broker):
    """A venue that fills what it is sent at once, and has the books that a test writes.

    `silent`: it tells nothing of fills when it is asked for orders.
    """

    batch = 100
    time_in_flight_s = 0.0
    capabilities = Capabilities(open_orders=True, positions=True, fills_since=True, account=True)

    def __init__(self, name: str = "venue") -> None:
        self.name = name
        self.silent = False
        self.held: dict[str, Decimal] = {}
        self.fills: dict[str, ReportedFill] = {}
        self.opened: list[str] = []
        self.since: list[datetime] = []

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        for order, _ in orders:
            if order.order_id not in self.fills:
                self.execute(order, order.quantity)
        return self.find(orders, now)

    def execute(self, order: Order, quantity: Decimal, price: str = "100") -> None:
        signed = quantity if order.side == "buy" else -quantity
        self.held[order.symbol] = self.held.get(order.symbol, D(0)) + signed
        fill = Fill(
            fill_id=f"{order.order_id}/1",
            quantity=quantity,
            price=D(price),
            account=self.name,
            at=datetime.now(UTC),
        )
        self.fills[order.order_id] = ReportedFill(order_id=order.order_id, fill=fill)

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        if self.silent:
            return [OrderReport(order_id=order.order_id, state="sent") for order, _ in orders]
        return [
            OrderReport(order_id=order.order_id, state="filled", fills=(self.fills[order.order_id].fill,))
            for order, _ in orders
        ]

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Nothing is open."""

    def open_orders(self, now: datetime) -> list[str]:
        return self.opened

    def positions(self, now: datetime) -> dict[str, Decimal]:
        return dict(self.held)

    def fills_since(self, since: datetime, now: datetime) -> list[ReportedFill]:
        self.since.append(since)
        return [item for item in self.fills.values() if item.fill.at is None or item.fill.at >= since]

    def account(self, now: datetime) -> AccountState:
        return AccountState(currency="EUR", cash=D("12.5"))


@pytest.fixture
def desk(database: Database) -> Desk:
    """In paper trading."""
    found = Desk(database)
    found.apply("dryrun")
    return found


def reconciler(desk: Desk, venue: Broker) -> AccountReconciler:
    """One that looks each time that it is stepped."""
    orders = SqlOpenOrders(desk.database, 300.0)
    return AccountReconciler(
        SqlReconciliations(desk.database), orders, BrokerCalls(venue), Domain.DRYRUN, every_s=0.0
    )


def look(desk: Desk, venue: Broker, times: int = 2) -> Reconciliation:
    """Look so many times, as new routers do; return what the last one found."""
    for _ in range(times):
        reconciler(desk, venue).step()
    found = SqlReconciliations(desk.database).newest(venue.name)
    assert found is not None
    return found


def buys(desk: Desk, venue: Broker, quantity: str = "1", symbol: str = "AAPL") -> Order:
    """An order that the router has sent."""
    order = desk.order(desk.session(), desk.epoch, symbol=symbol, quantity=quantity)
    assert OrderAcceptance(desk.database).publish([order], desk.caller)[0].accepted
    router(desk.database, venue).step()
    return order


def held(desk: Desk, symbol: str = "AAPL") -> Decimal:
    found = SqlLedger(desk.database).positions(desk.world, PositionFilter())
    return sum((item.position.quantity for item in found if item.symbol == symbol), D(0))


def state(desk: Desk) -> str:
    return SqlOrderLog(desk.database).orders(desk.world)[0].state.value


def test_what_agrees_halts_nobody_and_is_shown(desk: Desk) -> None:
    venue = Venue()
    buys(desk, venue, "3")
    found = look(desk, venue)
    (position,) = found.positions
    assert (position.symbol, position.ledger, position.broker, position.difference) == ("AAPL", 3, 3, 0)
    assert found.state == AccountState(currency="EUR", cash=D("12.5"))
    assert (found.differences, desk.fence_row().halted) == (0, "")


def test_a_lasting_difference_halts_the_world_that_holds_the_symbol_until_someone_books_it(
    desk: Desk,
) -> None:
    venue, other = Venue(), Desk(desk.database, "other")
    other.apply("dryrun")
    buys(desk, venue)
    buys(other, venue, symbol="MSFT")
    venue.held["AAPL"] += 2
    look(desk, venue, 1)
    assert desk.fence_row().halted == "", "a fill may be on its way"
    assert look(desk, venue).of_world("w").differences == 1
    reason = "reconciliation of venue: 3 AAPL at the broker, 1 in the ledger"
    assert (desk.fence_row().halted, other.fence_row().halted) == (reason, "")
    log = SqlOrderLog(desk.database)
    assert log.open_orders(desk.world) == 0

    desk.steps.resume(desk.world, "olga", "")
    look(desk, venue, 1)
    assert desk.fence_row().halted == reason, "nothing was booked"

    epoch = desk.epoch
    look(desk, venue)
    assert desk.epoch == epoch, "it is halted already"
    booking = Booking(
        booking_id="adj-1",
        kind="adjustment",
        strategy_id=desk.strategies[0],
        account="venue",
        symbol="AAPL",
        quantity=D(2),
        price=D(100),
        reason="as the venue shows it",
    )
    SqlBookings(desk.database).record(desk.world, booking, "olga")
    desk.steps.resume(desk.world, "olga", "")
    assert look(desk, venue, 3).differences == 0
    assert desk.fence_row().halted == ""


def test_a_halt_by_reconciliation_is_in_the_audit_trail(desk: Desk) -> None:
    venue = Venue()
    buys(desk, venue)
    venue.held["AAPL"] = D("0.25")
    look(desk, venue)
    query = "SELECT actor, after FROM audit WHERE world_id = :w AND action = 'world.halted'"
    with desk.database.read() as session:
        ((actor, after),) = session.connection().execute(text(query), {"w": desk.world}).all()
    assert (actor, json.loads(after)["halted"]) == (
        "router",
        "reconciliation of venue: 0.25 AAPL at the broker, 1 in the ledger",
    )


def test_a_difference_that_is_shorter_than_the_time_in_flight_halts_nobody(desk: Desk) -> None:
    venue = Venue()
    buys(desk, venue)
    venue.time_in_flight_s = 60.0
    venue.held["AAPL"] += 2
    assert look(desk, venue, 3).differences == 1
    assert desk.fence_row().halted == ""


def test_a_fill_that_no_look_up_has_found_is_recorded_first(desk: Desk) -> None:
    venue = Venue()
    venue.silent = True
    order = buys(desk, venue, "2")
    assert (held(desk), state(desk)) == (0, "sent")
    found = look(desk, venue, 1)
    assert (found.fills_recorded, found.differences, held(desk), state(desk)) == (1, 0, 2, "partially_filled")
    assert look(desk, venue).fills_recorded == 0
    assert (held(desk), desk.fence_row().halted) == (2, "")
    record = SqlOrderLog(desk.database).orders(desk.world)[0]
    assert record.order.order_id == order.order_id
    assert record.fill is not None
    assert record.fill.quantity == 2


def test_a_late_fill_of_an_order_that_has_ended_is_recorded(desk: Desk) -> None:
    venue = Venue()
    venue.silent = True
    order = buys(desk, venue, "2")
    fills, venue.fills = venue.fills, {}
    late = OrderReport(order_id=order.order_id, state="cancelled")
    SqlOpenOrders(desk.database, 300.0).record(desk.world, [late], {})
    assert look(desk, venue, 1).differences == 1
    venue.fills = fills
    assert look(desk, venue, 1).differences == 0
    assert (held(desk), state(desk), desk.fence_row().halted) == (2, "cancelled", "")


def test_fills_of_orders_that_no_world_placed_are_not_recorded_and_their_position_halts(desk: Desk) -> None:
    venue = Venue()
    buys(desk, venue)
    stranger = desk.order("s", 1, symbol="AAPL")
    venue.execute(stranger, D(5))
    look(desk, venue)
    assert held(desk) == 1
    assert desk.fence_row().halted == "reconciliation of venue: 6 AAPL at the broker, 1 in the ledger"


def test_fills_are_listed_since_the_last_look(desk: Desk) -> None:
    venue = Venue()
    look(desk, venue, 1)
    first = datetime.now(UTC)
    look(desk, venue, 1)
    assert venue.since[0] < first - timedelta(hours=12)
    assert first - timedelta(minutes=6) < venue.since[1] < first


def test_an_order_that_is_open_only_at_the_broker_halts_its_world(desk: Desk) -> None:
    venue, other = Venue(), Desk(desk.database, "other")
    other.apply("dryrun")
    order = buys(desk, venue)
    venue.opened = [order.order_id]
    look(desk, venue)
    reason = f"reconciliation of venue: order {order.order_id} is open at the broker, not here"
    assert (desk.fence_row().halted, other.fence_row().halted) == (reason, "")


def test_an_order_that_is_open_on_both_sides_is_no_difference(desk: Desk) -> None:
    venue = Venue()
    venue.silent = True
    order = buys(desk, venue)
    venue.opened, venue.held, venue.fills = [order.order_id], {}, {}
    assert look(desk, venue, 3).differences == 0
    assert desk.fence_row().halted == ""


def test_a_position_that_nobody_holds_halts_all_worlds_that_trade_in_the_account(desk: Desk) -> None:
    venue, idle = Venue(), Desk(desk.database, "idle")
    venue.held["TSLA"] = D(-1)
    look(desk, venue)
    assert desk.fence_row().halted == "reconciliation of venue: -1 TSLA at the broker, 0 in the ledger"
    assert idle.fence_row().halted == "", "it trades in no account"


def test_only_what_a_broker_can_do_is_called(desk: Desk) -> None:
    class Mute(PaperBroker):
        def positions(self, now: datetime) -> dict[str, Decimal]:
            raise ZeroDivisionError("it was asked")

        def fills_since(self, since: datetime, now: datetime) -> list[ReportedFill]:
            raise ZeroDivisionError("it was asked")

    order = buys(desk, Mute("paper"))
    found = look(desk, Mute("paper"))
    assert (found.compared, found.positions, found.fault) == ((), (), "")
    assert SqlOrderLog(desk.database).orders(desk.world)[0].order.order_id == order.order_id
    assert state(desk) == "filled"


def test_a_broker_that_lists_no_fills_is_given_time_to_report_them(desk: Desk) -> None:
    class Positions(Venue):
        capabilities = Capabilities(positions=True)

    venue = Positions()
    venue.silent = True
    buys(desk, venue)
    assert look(desk, venue, 3).differences == 1
    assert desk.fence_row().halted == ""


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"AAPL": "many"}, "ValidationError of the broker venue"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError of the broker venue"),
    ],
)
def test_books_that_cannot_be_read_stop_no_orders_and_halt_nobody(
    desk: Desk, answer: object, fault: str
) -> None:
    class Broken(Venue):
        def positions(self, now: datetime) -> dict[str, Decimal]:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[return-value]  # what a bad broker answers

    venue = Broken()
    buys(desk, venue)
    found = look(desk, venue)
    assert (found.fault, found.positions) == (fault, ())
    assert (state(desk), desk.fence_row().halted) == ("filled", "")


def test_a_fault_keeps_what_was_known_before(desk: Desk) -> None:
    class Away(Venue):
        away = False

        def positions(self, now: datetime) -> dict[str, Decimal]:
            if self.away:
                raise OSError("the connection was cut")
            return super().positions(now)

    venue = Away()
    buys(desk, venue)
    before = look(desk, venue, 1)
    venue.away = True
    found = look(desk, venue, 1)
    assert (found.at, found.positions, found.fault) == (
        before.at,
        before.positions,
        "OSError of the broker venue",
    )
    buys(desk, venue)
    assert held(desk) == 2, "it takes orders all the same"
    calls = BrokerCalls(venue)
    orders = SqlOpenOrders(desk.database, 300.0)
    AccountReconciler(SqlReconciliations(desk.database), orders, calls, Domain.DRYRUN).step()
    assert (calls.fault, calls.is_unavailable) == ("", False)
    venue.away = False
    assert look(desk, venue, 1).fault == ""


def test_a_router_reconciles_when_it_starts_and_on_its_schedule(desk: Desk) -> None:
    """No order is due and nothing is committed meanwhile: the schedule alone wakes it."""
    venue, stop = Venue(), threading.Event()
    buys(desk, venue)
    orders = SqlOpenOrders(desk.database, 300.0)
    route = OrderRouter(desk.database, orders, {Domain.DRYRUN: venue}, reconcile_every_s=0.2)
    books = SqlReconciliations(desk.database)
    began = datetime.now(UTC)

    def looked() -> bool:
        found = books.newest("venue")
        return found is not None and found.at > began

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(route.run, stop)
        try:
            wait_for(looked, "the first look", 20)
            venue.held["AAPL"] += 2
            wait_for(lambda: desk.fence_row().halted, "the halt", 20)
        finally:
            stop.set()
            running.result(30)


def test_cancels_of_a_halt_reach_the_venue_that_differs(desk: Desk) -> None:
    """Orders that were not sent end with the halt, as with every other."""
    venue = Venue()
    buys(desk, venue)
    venue.held["AAPL"] += 2
    look(desk, venue, 1)
    order = desk.order(desk.session(), desk.epoch)
    assert OrderAcceptance(desk.database).publish([order], desk.caller)[0].accepted
    look(desk, venue, 1)
    states = [item.state.value for item in SqlOrderLog(desk.database).orders(desk.world)]
    assert states == ["filled", "cancelled"]
    assert SqlOrderLog(desk.database).cancel(desk.world, CancelRequest(all=True), "olga").requested == 0


def test_all_positions_of_an_account_are_read_whatever_their_number(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.ledger.accounts._PAGE", 2)
    venue, other = Venue(), Desk(desk.database, "other")
    other.apply("dryrun")
    for symbol in "ABCDE":
        buys(desk, venue, symbol=symbol)
    buys(other, venue, "4", symbol="C")
    buys(other, Venue("elsewhere"), symbol="A")
    found = SqlReconciliations(desk.database).holdings("venue")
    assert found == {symbol: {"w": 1} for symbol in "ABDE"} | {"C": {"w": 1, "other": 4}}
    assert look(desk, venue).differences == 0
