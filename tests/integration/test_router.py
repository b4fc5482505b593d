"""The order router: what it sends, what it cancels, and that nothing stops the others."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf

import pytest
from sqlalchemy import text

from activities.brokers.broker import AcceptedOrder, Broker, Capabilities
from activities.brokers.calls import BrokerCalls, accepted_orders
from activities.brokers.execution import ExecutionHandler
from activities.brokers.paper import PaperBroker
from activities.brokers.router import DomainRouter, OrderRouter
from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.fence.state import locked_fence
from activities.storage.database import Database
from activities.storage.elected import run_elected
from activities.storage.opening import open_database
from activities.storage.postgres import lock_key
from activities.storage.tables import FenceRow, OpenOrderRow, OrderLogRow
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import CancelRequest, Order, OrderReport, OrderState
from qmtl_sdk.contracts.worlds import OrderLimits, WorldUpdate
from tests.support.desk import Desk, router
from tests.support.exchange import Exchange, ExchangeBroker
from tests.support.machine import wait_for


class PickyBroker(PaperBroker):
    """Raises `error` where one of the orders is `bad`; counts its calls."""

    def __init__(self, bad: str, error: Exception) -> None:
        super().__init__("picky")
        self.bad = bad
        self.error = error
        self.calls = 0

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        self.calls += 1
        if any(order.order_id == self.bad for order, _ in orders):
            raise self.error
        return super().place(orders, now)

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        return super().find([placed for placed in orders if placed[0].order_id != self.bad], now)


class Venue(Broker):
    """A venue that answers as a test tells it: `reports` by id; an order without one is not known there."""

    name = "venue"
    batch = 100

    def __init__(self, time_in_flight_s: float = 0.0) -> None:
        self.time_in_flight_s = time_in_flight_s
        self.reports: dict[str, OrderReport] = {}
        self.placed: list[str] = []
        self.cancelled: list[str] = []
        self.cut = False

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        self.placed += [order.order_id for order, _ in orders]
        if self.cut:
            raise OSError("the connection was cut")
        return self.find(orders, now)

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        return [self.reports[order.order_id] for order, _ in orders if order.order_id in self.reports]

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        self.cancelled += [order.order_id for order, _ in orders]

    def says(self, order: Order, state: str, *quantities: str) -> None:
        """Report a state, and fills of these quantities: all that there are, each time."""
        fills = [
            Fill(
                fill_id=f"{order.order_id}/{number}",
                quantity=Decimal(each),
                price=Decimal(9),
                account="there",
            )
            for number, each in enumerate(quantities)
        ]
        self.reports[order.order_id] = OrderReport.model_validate(
            {"order_id": order.order_id, "state": state, "fills": fills}
        )


@pytest.fixture
def desk(database: Database) -> Desk:
    """In paper trading."""
    found = Desk(database)
    found.apply("dryrun")
    return found


def accepted(desk: Desk, count: int = 1) -> list[Order]:
    session = desk.session()
    orders = [desk.order(session, desk.epoch) for _ in range(count)]
    assert all(verdict.accepted for verdict in OrderAcceptance(desk.database).publish(orders, desk.caller))
    return orders


def states(desk: Desk) -> list[str]:
    """The state of each order of the world, in the order of acceptance."""
    every = OrderFilter(limit=1000)
    return [record.state.value for record in SqlOrderLog(desk.database).orders(desk.world, every)]


def filled(desk: Desk) -> set[str]:
    records = SqlOrderLog(desk.database).orders(desk.world)
    return {record.order.order_id for record in records if record.state == "filled"}


def look_again(desk: Desk) -> None:
    """Let every open order be due now."""
    with desk.database.write("test", bookkeeping=True) as tx:
        tx.session.connection().execute(text("UPDATE open_order SET next_at = accepted_at"))


def age(desk: Desk, seconds: float) -> None:
    """Let the open orders have been accepted so long ago."""
    at = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="microseconds")
    with desk.database.write("test", bookkeeping=True) as tx:
        tx.session.connection().execute(text("UPDATE open_order SET accepted_at = :at"), {"at": at})


def add_open(desk: Desk, world: str, resting: int = 0, urgent: int = 0, waits_s: float = 0.0) -> None:
    """Write open orders into a new world: such that rest at a venue, and such that are to be sent."""
    at = (datetime.now(UTC) - timedelta(seconds=60 + waits_s)).isoformat(timespec="microseconds")
    with desk.database.write("test", bookkeeping=True) as tx:
        tx.session.add(FenceRow(world_id=world))
        for state in ["sent"] * resting + ["accepted"] * urgent:
            order = desk.order("s", 1, world_id=world)
            line = {"at": at, "world_id": world, "ref": order.order_id, "strategy_id": "s", "epoch": 1}
            tx.session.add(OrderLogRow(**line, kind="accepted", body=order.model_dump_json()))
            tx.session.add(
                OpenOrderRow(
                    order_id=order.order_id,
                    world_id=world,
                    strategy_id="s",
                    execution_domain="dryrun",
                    symbol=order.symbol,
                    quantity=str(order.signed),
                    epoch=1,
                    accepted_at=at,
                    next_at=at,
                    state=state,
                    sent_at=at if state == "sent" else "",
                    acknowledged=state == "sent",
                )
            )


def test_an_order_goes_through_its_states_and_each_has_its_row(desk: Desk) -> None:
    (order,), venue = accepted(desk), Venue()
    route = router(desk.database, venue)
    venue.says(order, "sent")
    route.step()
    assert states(desk) == ["sent"]
    venue.says(order, "partially_filled", "0.25")
    look_again(desk)
    route.step()
    assert states(desk) == ["partially_filled"]
    venue.says(order, "filled", "0.25", "0.75")
    look_again(desk)
    route.step()
    record = SqlOrderLog(desk.database).orders(desk.world)[0]
    assert [change.state.value for change in record.changes] == [
        "accepted",
        "sent",
        "partially_filled",
        "filled",
    ]
    assert record.fill is not None
    assert record.fill.quantity == 1
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 0
    assert venue.placed == [order.order_id]


@pytest.mark.parametrize("end", ["rejected", "cancelled", "expired"])
def test_an_order_that_its_venue_ends_holds_no_drain_up(desk: Desk, end: str) -> None:
    """A rejected order stayed open for ever, and every later apply was rolled back."""
    (order,), venue = accepted(desk), Venue()
    venue.says(order, end)
    router(desk.database, venue).step()
    assert states(desk) == [end]
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 0


def test_an_order_that_the_broker_cannot_take_is_rejected_before_it_is_called(desk: Desk) -> None:
    session = desk.session()
    orders = [desk.order(session, desk.epoch, time_in_force=time) for time in ("GTC", "FOK")]
    assert all(item.accepted for item in OrderAcceptance(desk.database).publish(orders, desk.caller))

    class Patient(Venue):
        capabilities = Capabilities(time_in_force=frozenset({"GTC", "DAY"}))

    venue = Patient()
    venue.says(orders[0], "filled", "1")
    router(desk.database, venue).step()
    assert venue.placed == [orders[0].order_id]
    records = {item.order.time_in_force: item for item in SqlOrderLog(desk.database).orders(desk.world)}
    assert {name: item.state.value for name, item in records.items()} == {"GTC": "filled", "FOK": "rejected"}
    assert records["FOK"].changes[-1].reason == "the broker venue takes no FOK orders"


def test_a_halt_cancels_what_was_not_sent_although_it_was_lifted_meanwhile(desk: Desk) -> None:
    """The router was dead for twenty minutes, and then placed every order at old prices."""
    accepted(desk, 3)
    desk.fence.halt(desk.world, "olga", "the market is mad")
    assert states(desk) == ["cancelled"] * 3
    (reason,) = {order.changes[-1].reason for order in SqlOrderLog(desk.database).orders(desk.world)}
    assert reason == "the world was halted (olga: the market is mad)"
    desk.steps.resume(desk.world, "olga", "")
    venue = Venue()
    router(desk.database, venue).step()
    assert venue.placed == []


def test_an_order_of_an_epoch_before_the_last_halt_is_never_sent(desk: Desk) -> None:
    """The fence row's epoch of the last halt is a second lock: here the halt has missed the order."""
    accepted(desk)
    with desk.database.write("test", bookkeeping=True) as tx:
        fence = locked_fence(tx, desk.world)
        fence.halt_epoch = fence.epoch + 1
        tx.session.add(fence)
    venue = Venue()
    router(desk.database, venue).step()
    assert (venue.placed, states(desk)) == ([], ["cancelled"])


@pytest.mark.parametrize("on_halt", ["cancel", "leave"])
def test_a_halt_asks_venues_to_cancel_unless_the_world_leaves_open_orders(desk: Desk, on_halt: str) -> None:
    desk.rules.update_world(desk.world, WorldUpdate.model_validate({"on_halt": on_halt}), "olga")
    (order,), venue = accepted(desk), Venue()
    route = router(desk.database, venue)
    venue.says(order, "sent")
    route.step()
    desk.fence.halt(desk.world, "olga", "")
    # What the world says later about halts does not change this one.
    other = "leave" if on_halt == "cancel" else "cancel"
    desk.rules.update_world(desk.world, WorldUpdate.model_validate({"on_halt": other}), "olga")
    look_again(desk)
    route.step()
    assert venue.cancelled == ([order.order_id] if on_halt == "cancel" else [])
    assert states(desk) == ["sent"], "only the venue ends an order that was sent"
    venue.says(order, "cancelled")
    look_again(desk)
    route.step()
    assert states(desk) == ["cancelled"]


def test_a_cancel_ends_what_was_not_sent_and_asks_for_the_rest(desk: Desk) -> None:
    (sent, *_), venue = accepted(desk, 2), Venue()
    route = router(desk.database, venue)
    for order in SqlOpenOrders(desk.database, 300.0).due(Domain.DRYRUN, 9)[desk.world]:
        venue.says(order.order(), "sent")
    route.step()
    fresh = accepted(desk, 2)
    log = SqlOrderLog(desk.database)
    one = log.cancel(desk.world, CancelRequest(order_ids=(fresh[0].order_id,)), "olga")
    assert (one.cancelled, one.requested) == (1, 0)
    rest = log.cancel(desk.world, CancelRequest(all=True, reason="enough"), "olga")
    assert (rest.cancelled, rest.requested) == (1, 2)
    assert log.cancel(desk.world, CancelRequest(all=True), "olga").requested == 0, "they were asked for"
    assert states(desk) == ["sent", "sent", "cancelled", "cancelled"]
    look_again(desk)
    route.step()
    assert sorted(venue.cancelled) == sorted(order.order_id for order in [sent, *_])


def test_a_cancel_of_another_worlds_order_does_nothing(desk: Desk) -> None:
    other = Desk(desk.database, "other")
    (order,) = accepted(desk)
    done = SqlOrderLog(desk.database).cancel(other.world, CancelRequest(order_ids=(order.order_id,)), "olga")
    assert (done.cancelled, done.requested, states(desk)) == (0, 0, ["accepted"])


def test_the_fence_checks_again_before_an_order_is_sent(desk: Desk) -> None:
    accepted(desk)
    desk.decide(active=False)
    venue = Venue()
    router(desk.database, venue).step()
    assert (venue.placed, states(desk)) == ([], ["cancelled"])


def test_an_operator_who_closes_the_edge_stops_live_orders_that_were_not_sent(desk: Desk) -> None:
    desk.apply("live")
    order = desk.order(desk.session(domain="live"), desk.epoch, execution_domain="live")
    assert OrderAcceptance(desk.database).publish([order], desk.caller)[0].accepted
    edge = EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="stop")
    desk.fence.override(desk.world, edge, "olga")
    venue = Venue()
    OrderRouter(desk.database, SqlOpenOrders(desk.database, 300.0), {Domain.LIVE: venue}).step()
    assert (venue.placed, states(desk)) == ([], ["cancelled"])


def test_a_freeze_lets_accepted_orders_finish(desk: Desk) -> None:
    orders = accepted(desk, 2)
    desk.freeze(desk.request("live"))
    router(desk.database, PaperBroker("paper")).step()
    assert filled(desk) == {order.order_id for order in orders}


def test_an_order_that_was_not_sent_in_time_expires(desk: Desk) -> None:
    accepted(desk)
    age(desk, 61)
    venue = Venue()
    router(desk.database, venue, send_within_s=60).step()
    assert (venue.placed, states(desk)) == ([], ["expired"])


def test_unknown_is_no_answer_until_the_time_in_flight_has_passed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut connection: the order may arrive at the venue for another 30 s."""
    clock = 1000.0
    monkeypatch.setattr("activities.brokers.execution.time.monotonic", lambda: clock)
    (order,), venue = accepted(desk), Venue(time_in_flight_s=30.0)
    route = router(desk.database, venue)
    venue.cut = True
    route.step()
    SqlOrderLog(desk.database).cancel(desk.world, CancelRequest(all=True), "olga")
    venue.cut = False
    clock += 29.0
    look_again(desk)
    route.step()
    assert (states(desk), venue.placed) == (["sent"], [order.order_id]), "it may still arrive"
    clock += 2.0
    look_again(desk)
    route.step()
    assert states(desk) == ["cancelled"]


def test_an_order_that_never_arrived_is_sent_again_under_its_id(desk: Desk) -> None:
    (order,), venue = accepted(desk), Venue()
    route = router(desk.database, venue)
    venue.cut = True
    route.step()
    venue.cut = False
    wait_for(lambda: [look_again(desk), route.step(), len(venue.placed) > 1][-1], "second attempt")
    assert set(venue.placed) == {order.order_id}
    assert [change.state.value for change in SqlOrderLog(desk.database).orders(desk.world)[0].changes] == [
        "accepted",
        "sent",
    ]


def test_a_new_router_looks_for_what_the_last_one_may_have_sent(desk: Desk) -> None:
    """Between marking an order and recording its fill, the router was killed."""
    (order,) = accepted(desk)
    first = SqlOpenOrders(desk.database, 300.0)
    first.mark_sent(desk.world, first.due(Domain.DRYRUN, 9)[desk.world], 0.0)
    venue = Venue(time_in_flight_s=60.0)
    venue.says(order, "filled", "1")
    router(desk.database, venue).step()
    assert (venue.placed, states(desk)) == ([], ["filled"])


def test_a_new_router_concludes_nothing_while_the_last_one_may_still_send(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that loses its role with its connection may be sending: `cancelled` was written too soon."""
    clock = 1000.0
    monkeypatch.setattr("activities.brokers.execution.time.monotonic", lambda: clock)
    accepted(desk)
    first, venue = SqlOpenOrders(desk.database, 300.0), Venue()
    first.mark_sent(desk.world, first.due(Domain.DRYRUN, 9)[desk.world], 0.0)
    SqlOrderLog(desk.database).cancel(desk.world, CancelRequest(all=True), "olga")
    route = router(desk.database, venue)
    for waited, state in ((0.0, "sent"), (3.0, "sent"), (10.0, "cancelled")):
        clock = 1000.0 + waited
        look_again(desk)
        route.step()
        assert states(desk) == [state], waited
    assert venue.placed == []


def test_a_halt_stops_what_the_calls_after_it_would_send(desk: Desk) -> None:
    """All were marked at once, and those of later calls left for five seconds after the halt."""
    accepted(desk, 5)

    class Halting(Venue):
        batch = 2

        def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            if not self.placed:
                desk.fence.halt(desk.world, "olga", "stop")
            return super().place(orders, now)

    venue = Halting()
    router(desk.database, venue).step()
    assert len(venue.placed) == 2
    assert Counter(states(desk)) == {"sent": 2, "cancelled": 3}


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancel_during_a_look_up_is_not_put_off(desk: Desk, fails: bool) -> None:
    (order,) = accepted(desk)

    class Asked(Venue):
        def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            if self.looks_up:
                SqlOrderLog(desk.database).cancel(desk.world, CancelRequest(all=True), "olga")
                if fails:
                    raise ValueError("one bad answer")
            return super().find(orders, now)

        looks_up = False

    venue = Asked()
    venue.says(order, "sent")
    route = router(desk.database, venue)
    route.step()
    venue.looks_up = True
    look_again(desk)
    route.step()
    due = SqlOpenOrders(desk.database, 300.0).next_due()
    assert due is not None
    assert due <= datetime.now(UTC)


def test_what_is_to_be_sent_and_what_waits_longest_comes_before_many_worlds_with_resting_orders(
    desk: Desk,
) -> None:
    """The first 500 worlds by id were handled again and again, and the others never."""
    orders = SqlOpenOrders(desk.database, 300.0)
    for number in range(120):
        add_open(desk, f"a{number:03}", resting=1)
    accepted(desk)
    seen = set[str]()
    for _ in range(3):
        due = orders.due(Domain.DRYRUN, 500)
        assert desk.world in due
        for world, found in due.items():
            if world != desk.world:
                assert world not in seen, "it is due again before the others were"
                seen.add(world)
                orders.delay(world, dict.fromkeys(found, 60.0))
    assert len(seen) == 120


def test_a_router_that_stood_still_after_marking_does_not_send(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another router may have taken over meanwhile, and concluded that the order never arrived."""
    clock = 1000.0
    monkeypatch.setattr("activities.brokers.execution.time.monotonic", lambda: clock)
    accepted(desk)
    mark = SqlOpenOrders.mark_sent

    def slow(*args: object) -> object:
        nonlocal clock
        clock += 6.0
        return mark(*args)  # type: ignore[arg-type]  # the arguments of the real one

    monkeypatch.setattr(SqlOpenOrders, "mark_sent", slow)
    monkeypatch.setattr("activities.brokers.calls.time.monotonic", lambda: clock)
    venue = Venue(time_in_flight_s=60.0)
    router(desk.database, venue).step()
    assert venue.placed == []


def test_an_order_that_its_venue_has_forgotten_ends(desk: Desk) -> None:
    (order,), venue = accepted(desk), Venue()
    route = router(desk.database, venue)
    venue.says(order, "sent")
    route.step()
    del venue.reports[order.order_id]
    wait_for(lambda: [look_again(desk), route.step(), states(desk) == ["cancelled"]][-1], "end of the order")
    assert venue.placed == [order.order_id]


def test_an_order_that_has_ended_stays_as_it_is(desk: Desk) -> None:
    (order,) = accepted(desk)
    router(desk.database, PaperBroker("paper")).step()
    late = OrderReport(order_id=order.order_id, state="cancelled")
    assert SqlOpenOrders(desk.database, 300.0).record(desk.world, [late], {}) == 0
    assert states(desk) == ["filled"]


def test_resting_orders_of_one_world_do_not_hide_those_of_another(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest 500 open orders were taken, sent or not."""
    monkeypatch.setattr("activities.brokers.router.BATCH", 10)
    resting, other, venue = accepted(desk, 20), Desk(desk.database, "other"), Venue()
    other.apply("dryrun")
    (new,) = accepted(other)
    for order in resting:
        venue.says(order, "sent")
    route = router(desk.database, venue)
    route.step()
    look_again(desk)
    route.step()
    assert new.order_id in venue.placed


def test_orders_that_rest_are_looked_up_together_and_not_while_nothing_can_become_of_them(
    desk: Desk,
) -> None:
    """Each was looked up each second, alone: a call and a transaction for one order."""

    class Quiet(Venue):
        pause_s = 0.0

        def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            return [OrderReport(order_id=order.order_id, state="sent") for order, _ in orders]

        def quiet_s(self, order: AcceptedOrder, now: datetime) -> float:
            return self.pause_s

    venue = Quiet()
    route = router(desk.database, venue)

    def pauses() -> set[float]:
        with desk.database.read() as session:
            found = session.connection().execute(text("SELECT next_at FROM open_order")).scalars()
            return {datetime.fromisoformat(at).timestamp() for at in found}

    for number in range(3):
        add_open(desk, f"w{number}", resting=1, waits_s=number * 7.1)
        route.step()
    assert all(at % 0.5 == 0 for at in pauses()), "at whole half seconds"
    venue.pause_s = 45.0
    look_again(desk)
    before = datetime.now(UTC).timestamp()
    route.step()
    assert all(45 <= at - before < 90 for at in pauses())


def test_worlds_share_a_turn_and_so_do_new_and_resting_orders(desk: Desk) -> None:
    """A busy world took all places of a turn, and in it what is to be sent hid what rests, or the reverse."""
    for world in ("a", "b", "c"):
        add_open(desk, world, resting=30, urgent=30)
    orders = SqlOpenOrders(desk.database, 300.0)
    for limit, worlds in ((24, {"a", "b", "c"}), (16, {"a"})):
        due = orders.due(Domain.DRYRUN, limit, {"a", "b", "c"} - worlds)
        assert due.keys() == worlds
        for found in due.values():
            assert len(found) == limit // len(worlds)
            assert Counter(order.state for order in found) == {
                "accepted": 3 * len(found) // 4,
                "sent": len(found) // 4,
            }


def test_of_many_worlds_those_come_first_that_have_waited_longest(desk: Desk) -> None:
    """Worlds came by their ids, so that those at the end of the alphabet waited for all others."""
    for number in range(60):
        add_open(desk, f"w{number:02}", resting=1, waits_s=number)
    due = SqlOpenOrders(desk.database, 300.0).due(Domain.DRYRUN, 500)
    assert set(due) == {f"w{number:02}" for number in range(10, 60)}


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)  # SQLite has one writer
def test_a_held_fence_delays_no_other_worlds_orders(desk: Desk) -> None:
    other = Desk(desk.database, "other")
    other.apply("dryrun")
    accepted(desk)
    accepted(other)
    route = router(desk.database, PaperBroker("paper"))
    with desk.database.write("test", bookkeeping=True) as tx:
        locked_fence(tx, desk.world)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(route.step).result(5)  # any other transaction waits 10 s for a lock
        assert (states(desk), states(other)) == (["accepted"], ["filled"])
        order = other.order(other.session(), other.epoch)
        gate = OrderAcceptance(desk.database)
        held = gate.submit([desk.order("s", 1)], desk.caller)
        assert gate.submit([order], other.caller).result(5)[0].accepted
        assert not held.done()
    assert not held.result(10)[0].accepted


def test_a_venue_that_does_not_answer_delays_no_other_domain(desk: Desk) -> None:
    (order,) = accepted(desk)
    go, asked = threading.Event(), threading.Event()

    class Silent(Venue):
        def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            asked.set()
            go.wait(60)
            return super().place(orders, now)

    desk.apply("live")
    live = desk.order(desk.session(domain="live"), desk.epoch, execution_domain="live")
    with desk.database.write("test", bookkeeping=True) as tx:
        tx.session.connection().execute(
            text("UPDATE activation SET mode = 'paper' WHERE strategy_id = :s"), {"s": desk.strategies[0]}
        )
    assert not OrderAcceptance(desk.database).publish([live], desk.caller)[0].accepted
    stop = threading.Event()
    orders = SqlOpenOrders(desk.database, 300.0)
    route = OrderRouter(desk.database, orders, {Domain.LIVE: PaperBroker("live"), Domain.DRYRUN: Silent()})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(route.run, stop)
        try:
            assert asked.wait(30)
            with desk.database.write("test", bookkeeping=True) as tx:
                tx.session.connection().execute(
                    text("UPDATE activation SET mode = 'live' WHERE strategy_id = :s"),
                    {"s": desk.strategies[0]},
                )
            again = live.model_copy(update={"order_id": live.order_id + "-2"})
            assert OrderAcceptance(desk.database).publish([again], desk.caller)[0].accepted
            wait_for(lambda: again.order_id in filled(desk), "the live order's fill")
        finally:
            go.set()
            stop.set()
            running.result(30)
    assert order.order_id not in filled(desk)


def test_an_order_for_which_the_broker_raises_does_not_stop_the_others(desk: Desk) -> None:
    orders = accepted(desk, 5)
    broker = PickyBroker(orders[1].order_id, ZeroDivisionError("a bug of the broker"))
    router(desk.database, broker).step()
    assert filled(desk) == {order.order_id for order in orders if order is not orders[1]}


def test_an_order_on_which_the_broker_raises_is_tried_again_after_a_pause_and_is_no_fault(desk: Desk) -> None:
    """It was sent again ten times a second, and every live order was refused meanwhile."""
    (order,) = accepted(desk)
    broker = PickyBroker(order.order_id, ZeroDivisionError("a bug of the broker"))
    calls = BrokerCalls(broker)
    execution = ExecutionHandler(SqlOpenOrders(desk.database, 300.0), calls)
    due = SqlOpenOrders(desk.database, 300.0).due(Domain.DRYRUN, 10)
    execution.handle(desk.world, due[desk.world])
    assert (broker.calls, calls.fault) == (1, "")
    again = SqlOpenOrders(desk.database, 300.0).next_due()
    assert again is not None
    assert (again - datetime.now(UTC)).total_seconds() > 20


def test_a_broker_may_look_up_more_orders_at_once_than_it_places(desk: Desk) -> None:
    """One order in a call ends in time; a venue that lists all that rest need not be asked for each."""
    seen = dict[str, list[int]](place=[], find=[], cancel=[])

    class Counting(PaperBroker):
        batch = 1
        lookup_batch = 2

        def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            seen["place"].append(len(orders))
            return []

        def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            seen["find"].append(len(orders))
            return []

        def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
            seen["cancel"].append(len(orders))

    accepted(desk, 3)
    orders = accepted_orders(SqlOpenOrders(desk.database, 300.0).due(Domain.DRYRUN, 10)[desk.world])
    calls = BrokerCalls(Counting("counting"))
    calls.place(orders, inf)
    calls.find(orders)
    calls.cancel(orders)
    assert seen == {"place": [1, 1, 1], "find": [2, 1], "cancel": [2, 1]}


def test_a_broker_that_raises_on_order_after_order_has_a_fault_until_one_succeeds(desk: Desk) -> None:
    calls = BrokerCalls(broker := PickyBroker("", ZeroDivisionError("the secret of the broker")))
    accepted(desk, 3)
    orders = accepted_orders(SqlOpenOrders(desk.database, 300.0).due(Domain.DRYRUN, 10)[desk.world])
    for order in orders:
        broker.bad = order[0].order_id
        calls.place([order], inf)
        calls.find([order])  # that it can be looked up says nothing about sending
    assert calls.fault == "ZeroDivisionError of the broker picky"
    broker.bad = ""
    calls.place(orders[:1], inf)
    assert calls.fault == ""


def test_a_fault_of_the_broker_ends_although_no_order_is_left_that_could_show_its_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bad orders had expired, nothing was sent any more, and live orders were refused for ever."""
    monkeypatch.setattr("activities.brokers.calls._FAULT_S", 0.3)

    class Broken(Venue):
        def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            raise ZeroDivisionError("a bug of the broker")

    accepted(desk, 2)
    route = DomainRouter(SqlOpenOrders(desk.database, 0.2), Domain.DRYRUN, Broken())
    route.step()
    assert route.calls.fault == "ZeroDivisionError of the broker venue"
    wait_for(lambda: [look_again(desk), route.step(), states(desk)][-1] == ["expired"] * 2, "their end")
    wait_for(lambda: not route.calls.fault, "the end of the fault", 5)


@pytest.mark.parametrize("call", ["find", "cancel"])
def test_orders_that_cannot_be_looked_up_or_cancelled_stop_no_others(desk: Desk, call: str) -> None:
    """Two such orders of one world stopped live trading in all, for as long as they were open."""

    class Broken(PaperBroker):
        def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            if call == "find":
                raise ZeroDivisionError("a state that it does not know")
            return super().find(orders, now)

        def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
            raise ZeroDivisionError("the market is closed")

    accepted(desk, 2)
    route = DomainRouter(SqlOpenOrders(desk.database, 300.0), Domain.DRYRUN, Broken("broken", 3600.0))
    route.step()
    desk.fence.halt(desk.world, "olga", "stop")
    for _ in range(3):
        look_again(desk)
        route.step()
        assert route.calls.fault == ""
    assert states(desk) == ["sent"] * 2


def test_a_call_that_hangs_is_a_fault_and_many_short_ones_are_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.brokers.calls.CALL_LIMIT_S", 0.5)
    go = threading.Event()

    class Slow(Venue):
        batch = 1

        def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            go.wait(10 if hangs else 0.1)
            return []

    accepted(desk, 12)
    calls, hangs = BrokerCalls(Slow()), False
    orders = accepted_orders(SqlOpenOrders(desk.database, 300.0).due(Domain.DRYRUN, 20)[desk.world])
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(calls.find, orders)
        faults = {calls.fault}
        while not looking.done():
            faults.add(calls.fault)
        assert faults == {""}
        hangs = True
        looking = pool.submit(calls.find, orders[:1])
        wait_for(lambda: calls.fault == "the broker venue does not answer", "the fault", 5)
        go.set()
        looking.result(10)
        assert calls.fault == ""


def test_a_router_whose_venue_is_away_does_not_turn_without_a_pause(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the database fifty times a second for as long as the venue was away."""
    accepted(desk)
    orders, turns, stop = SqlOpenOrders(desk.database, 300.0), Counter[str](), threading.Event()
    away = PickyBroker("", OSError("the venue is away"))
    away.bad = SqlOrderLog(desk.database).orders(desk.world)[0].order.order_id
    route = OrderRouter(desk.database, orders, {Domain.DRYRUN: away})
    real = orders.next_due

    def counted() -> datetime | None:
        turns["read"] += 1
        return real()

    monkeypatch.setattr(orders, "next_due", counted)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(route.run, stop)
        try:
            wait_for(lambda: away.calls >= 4, "the fourth call", 30)  # after 0.5, 1 and 2 s
            assert turns["read"] < 60
            away.bad = ""
            wait_for(lambda: filled(desk), "the fill", 30)
        finally:
            stop.set()
            running.result(30)


def test_a_broker_that_is_away_is_called_once_for_a_batch_and_later_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = accepted(desk, 5)
    broker = PickyBroker(orders[1].order_id, QmtlError("E_UNAVAILABLE", "the venue is away"))
    route = router(desk.database, broker)
    route.step()
    assert broker.calls == 1
    assert filled(desk) == set()
    look_again(desk)
    route.step()
    assert filled(desk) == set(), "the venue is not asked again at once"
    broker.bad = ""
    wait_for(lambda: [look_again(desk), route.step(), len(filled(desk)) == 5][-1], "the fills")


def test_an_order_whose_row_cannot_be_read_does_not_stop_the_others(desk: Desk) -> None:
    orders = accepted(desk, 3)
    columns = "at, world_id, kind, epoch, strategy_id, reason"
    with desk.database.write("test", bookkeeping=True) as tx:
        connection, of = tx.session.connection(), {"ref": orders[0].order_id}
        rest = (
            "symbol, quantity, price, next_at, state, sent_at, acknowledged, filled_quantity, cancel_reason"
        )
        bad = {
            "order:old": ("{}", "2020-01-01T00:00:00+00:00"),
            "order:time": (orders[0].model_dump_json(), "yesterday"),
        }
        for name, (body, accepted_at) in bad.items():
            connection.execute(
                text(
                    f"INSERT INTO order_log ({columns}, ref, body) SELECT {columns}, "
                    "CAST(:name AS text), CAST(:body AS text) FROM order_log WHERE ref = :ref"
                ),
                {**of, "name": name, "body": body},
            )
            connection.execute(
                text(
                    "INSERT INTO open_order "
                    f"(order_id, world_id, strategy_id, execution_domain, epoch, accepted_at, {rest}) "
                    "SELECT CAST(:name AS text), world_id, strategy_id, execution_domain, epoch, "
                    f"CAST(:at AS text), {rest} FROM open_order WHERE order_id = :ref"
                ),
                {**of, "name": name, "at": accepted_at},
            )
    router(desk.database, PaperBroker("paper")).step()
    assert filled(desk) == {order.order_id for order in orders}
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 2
    desk.fence.halt(desk.world, "olga", "a halt ends them too")
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 0


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (OrderLimits(symbols=("MSFT",)), "symbol_limit"),
        (OrderLimits(max_quantity=Decimal("0.5")), "quantity_limit"),
        (OrderLimits(max_notional=Decimal("99")), "notional_limit"),
    ],
)
def test_the_limits_of_a_world_hold_for_each_order(desk: Desk, limits: OrderLimits, reason: str) -> None:
    session = desk.session()
    desk.rules.update_world(desk.world, WorldUpdate(order_limits=limits), "olga")
    gate = OrderAcceptance(desk.database)
    (verdict,) = gate.publish([desk.order(session, desk.epoch)], desk.caller)
    assert verdict.reason == reason
    unpriced = desk.order(session, desk.epoch, reference_price=None)
    assert gate.publish([unpriced], desk.caller)[0].accepted is False
    desk.rules.update_world(desk.world, WorldUpdate(order_limits=OrderLimits()), "olga")
    assert gate.publish([desk.order(session, desk.epoch)], desk.caller)[0].accepted


def test_an_unkind_exchange_has_exactly_what_the_log_says(desk: Desk) -> None:
    """Halts, cancels, routers that are replaced at any point; then exchange and log agree on each order."""
    exchange = Exchange(seed=5, in_flight_s=0.05)
    route, log = router(desk.database, ExchangeBroker(exchange)), SqlOrderLog(desk.database)
    for number in range(40):
        accepted(desk, 3)
        for _ in range(exchange.rng.randrange(4)):
            look_again(desk)
            route.step()
        if number % 7 == 3:
            desk.fence.halt(desk.world, "olga", "")
            desk.steps.resume(desk.world, "olga", "")
        if number % 5 == 2:
            log.cancel(desk.world, CancelRequest(all=True), "olga")
        if number % 3 == 1:
            route = router(desk.database, ExchangeBroker(exchange))
    exchange.unkind = False
    log.cancel(desk.world, CancelRequest(all=True), "olga")
    wait_for(
        lambda: [look_again(desk), route.step(), log.open_orders(desk.world) == 0][-1], "end of all orders"
    )
    records = {record.order.order_id: record for record in log.orders(desk.world, OrderFilter(limit=1000))}
    assert len(records) == 120
    assert exchange.doubled == []
    for order_id, record in records.items():
        there = exchange.orders.get(order_id)
        if there is None or there.ended_at is None:
            assert there is None, f"{order_id} rests at the exchange, and the log says {record.state}"
            assert record.state == OrderState.CANCELLED
            continue
        assert (record.state.value, record.fill.quantity if record.fill else 0) == (there.state, there.filled)
    assert {record.state.value for record in records.values()} >= {"filled", "cancelled", "rejected"}


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_two_processes_do_not_work_at_once_after_the_database_has_dropped_a_connection(
    dsn: str, database: Database
) -> None:
    """The role's lock ended with its connection, and the process that had it worked on beside the next."""
    turns: Counter[str] = Counter()
    stop = threading.Event()
    other_database = open_database(dsn)

    def run(name: str, over: Database) -> None:
        def turn() -> float:
            turns[name] += 1
            return 0.02

        run_elected(over, "router", turn, stop)

    with ThreadPoolExecutor(2) as pool:
        try:
            pool.submit(run, "first", database)
            wait_for(lambda: turns["first"] > 2, "the first's turns")
            pool.submit(run, "second", other_database)
            with other_database.read() as session:
                lock = {"key": lock_key("router") & 0xFFFFFFFF}
                session.connection().execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_locks l JOIN pg_database d"
                        " ON d.oid = l.database WHERE locktype = 'advisory' AND objid = :key"
                        " AND datname = current_database()"
                    ),
                    lock,
                )
            wait_for(lambda: turns["second"] > 30, "the second's turns")
            before = turns["first"]
            after = turns["second"]
            wait_for(lambda: turns["second"] > after + 50, "more of the second's turns")
            assert turns["first"] == before
        finally:
            stop.set()
    other_database.close()
