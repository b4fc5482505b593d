"""The paper broker on bars: what it fills, when, and that a crash loses and doubles nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from activities.brokers.broker import AcceptedOrder
from activities.brokers.paper import PaperBroker
from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.storage.database import Database
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import MAX_FILLS, Fill
from qmtl_sdk.contracts.orders import CancelRequest, Order, OrderReport
from qmtl_sdk.contracts.worlds import World, WorldSpec
from tests.support.desk import Desk, new_order_id, router
from tests.support.machine import wait_for

D = Decimal
CREATED = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
# Opens, highs, lows and closes of days; each trades a hundred units.
OPENS = (100, 102, 98, 110, 108, 120)


def bars(
    folder: Path, opens: Sequence[float] = OPENS, start: datetime = FIRST, step: timedelta = DAY
) -> Path:
    """A file of bars that reach from one below their open to three above it."""
    lines = ["ts,open,high,low,close,volume"]
    for row, price in enumerate(opens):
        at = (start + row * step).isoformat()
        lines.append(f"{at},{price},{price + 3},{price - 1},{price + 1},100")
    path = folder / "ko.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def spec(path: Path, execution: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A world whose clock replays a day in a second, from the first bar on."""
    return {
        "clock": {"replay": {"start": FIRST.isoformat(), "speed": 86_400}},
        "data": {
            "presets": [
                {
                    "name": "days",
                    "source": "csv",
                    "path": str(path),
                    "interval": "1d",
                    "streams": {"KO": ["KO", "price"]},
                }
            ]
        },
        "execution": execution,
        **fields,
    }


class Market:
    """A world and its paper broker, on a clock that a test sets."""

    def __init__(self, folder: Path, fields: dict[str, Any], **more: Any) -> None:
        described = spec(bars(folder), fields, **more)
        self.world = World(
            spec=WorldSpec.model_validate({"world": "w", **described}), created_at=CREATED, etag="e"
        )
        self.broker = self.restarted()

    def restarted(self) -> PaperBroker:
        self.broker = PaperBroker("paper", worlds=lambda world_id: self.world)
        return self.broker

    def wall(self, days: float) -> datetime:
        """When the world's clock shows so many days after its start."""
        return CREATED + timedelta(seconds=days)

    def order(self, side: str = "buy", quantity: str = "10", at: float = 1.0, **fields: Any) -> AcceptedOrder:
        """An order that was decided at the close of a day, and accepted a moment later."""
        body = {
            "order_id": new_order_id("w", "strategy:s"),
            "world_id": "w",
            "strategy_id": "strategy:s",
            "execution_domain": "dryrun",
            "epoch": 1,
            "symbol": "KO",
            "side": side,
            "quantity": quantity,
            "reference_price": "77",
            "decided_at": FIRST + at * DAY,
        }
        return AcceptedOrder(Order.model_validate({**body, **fields}), self.wall(at + 0.1))

    def places(self, placed: AcceptedOrder) -> OrderReport:
        (found,) = self.broker.place([placed], placed.accepted_at)
        return found

    def at(self, placed: AcceptedOrder, days: float) -> OrderReport:
        (found,) = self.broker.find([placed], self.wall(days))
        return found


def told(report: OrderReport) -> tuple[str, list[str]]:
    return report.state, [f"{fill.quantity} at {fill.price} for {fill.fee}" for fill in report.fills]


def test_a_market_order_fills_at_the_next_open_once_that_bar_has_closed(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open", "slippage_bps": 25, "fee_bps": 10})
    order = market.order()
    assert told(market.places(order)) == ("sent", [])
    assert told(market.at(order, 1.9)) == ("sent", []), "the bar that opened at the decision still runs"
    done = market.at(order, 2.0)
    assert told(done) == ("filled", ["10 at 102.255 for 1.02255"])
    (fill,) = done.fills
    assert (fill.account, fill.at) == ("paper", FIRST + DAY)
    assert told(market.at(market.order("sell", at=2.0), 9)) == ("filled", ["10 at 97.755 for 0.97755"])


@pytest.mark.parametrize(
    ("execution", "order", "days", "state", "fills"),
    [
        ({"fill": "next_mid"}, {}, 2, "filled", ["10 at 103 for 0"]),
        (
            {"fill": "next_open", "volume_share": "0.04"},
            {},
            9,
            "filled",
            ["4 at 102 for 0", "4 at 98 for 0", "2 at 110 for 0"],
        ),
        ({"fill": "next_open", "volume_share": "0.04"}, {"time_in_force": "FOK"}, 9, "cancelled", []),
        (
            {"fill": "next_open", "volume_share": "0.04"},
            {"time_in_force": "IOC"},
            9,
            "cancelled",
            ["4 at 102 for 0"],
        ),
        (
            {"fill": "next_open", "volume_share": "0.04"},
            {"time_in_force": "DAY"},
            9,
            "expired",
            ["4 at 102 for 0"],
        ),
        (
            {
                "fill": "next_open",
                "volume_share": "0.04",
                "fees": {"kind": "per_share", "per_share": "0.1", "minimum": "0.5"},
            },
            {},
            9,
            "filled",
            ["4 at 102 for 0.5", "4 at 98 for 0.3", "2 at 110 for 0.2"],
        ),
        (
            {"fill": "next_open", "fees": {"kind": "maker_taker", "maker_bps": "-1", "taker_bps": "5"}},
            {},
            9,
            "filled",
            ["10 at 102 for 0.51"],
        ),
        (
            {
                "fill": "next_open",
                "volume_share": "0.04",
                "fees": {
                    "kind": "tiered",
                    "tiers": [{"traded": "0", "bps": "10"}, {"traded": "400", "bps": "5"}],
                },
            },
            {},
            9,
            "filled",
            ["4 at 102 for 0.408", "4 at 98 for 0.196", "2 at 110 for 0.11"],
        ),
        ({"fill": "next_open", "reject_symbols": ["KO"]}, {}, 9, "rejected", []),
        ({"fill": "next_open", "max_quantity": "9"}, {}, 9, "rejected", []),
        ({"fill": "reference"}, {}, 1.2, "filled", ["10 at 77 for 0"]),
        ({"fill": "next_open"}, {"symbol": "PEP"}, 1.2, "filled", ["10 at 77 for 0"]),
        ({"fill": "next_open"}, {"symbol": "PEP", "reference_price": None}, 1.2, "rejected", []),
    ],
)
def test_orders_are_filled_as_the_world_says(
    tmp_path: Path,
    execution: dict[str, Any],
    order: dict[str, Any],
    days: float,
    state: str,
    fills: list[str],
) -> None:
    market = Market(tmp_path, execution, instruments={"lot": "1"})
    placed = market.order(**order)
    market.places(placed)
    assert told(market.at(placed, days)) == (state, fills)


def test_partial_fills_are_in_lots_of_the_instrument(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.045"}, instruments={"lot": "2"})
    report = market.at(market.order(), 9)
    assert [fill.quantity for fill in report.fills] == [4, 4, 2]


def test_an_order_that_is_accepted_late_is_not_filled_in_bars_that_are_over(tmp_path: Path) -> None:
    """Its strategy was away: the open after its decision is a price of the past."""
    market = Market(tmp_path, {"fill": "next_open"})
    order = market.order(at=1.0)
    late = AcceptedOrder(order.order, market.wall(2.5))
    assert told(market.at(late, 9)) == ("filled", ["10 at 110 for 0"])
    ahead = AcceptedOrder(order.order.model_copy(update={"decided_at": FIRST + 4 * DAY}), market.wall(1.1))
    assert told(market.at(ahead, 9)) == ("filled", ["10 at 98 for 0"]), "a client cannot choose a later bar"
    plain = AcceptedOrder(order.order.model_copy(update={"decided_at": None}), market.wall(1.1))
    assert told(market.at(plain, 9)) == ("filled", ["10 at 98 for 0"])


def test_the_same_fills_are_made_however_often_it_is_looked_and_after_a_crash(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.03"}, instruments={"lot": "1"})
    order = market.order()
    seen = {}
    for half_days in range(2, 14):
        report = market.at(order, half_days / 2)
        seen |= {fill.fill_id: fill for fill in report.fills}
        if half_days % 3 == 0:
            market.restarted()
    whole = Market(tmp_path, {"fill": "next_open", "volume_share": "0.03"}, instruments={"lot": "1"})
    assert tuple(seen.values()) == whole.at(order, 9).fills
    assert [fill.quantity for fill in seen.values()] == [3, 3, 3, 1]


def test_other_orders_of_the_symbol_change_nothing(tmp_path: Path) -> None:
    """What an order gets may not depend on which of them a router that starts looks up first."""
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.03"}, instruments={"lot": "1"})
    orders = [market.order(quantity="4") for _ in range(3)]
    together = market.broker.find(orders, market.wall(2.0))
    market.restarted()
    alone = [market.at(order, 2.0) for order in reversed(orders)]
    assert together == alone[::-1]


def test_a_cancel_ends_what_is_not_filled_by_then(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.04"}, instruments={"lot": "1"})
    order = market.order()
    market.broker.cancel([order], market.wall(2.5))
    assert told(market.at(order, 9)) == ("cancelled", ["4 at 102 for 0"])
    market.restarted()  # what was not recorded is asked to be cancelled again
    market.broker.cancel([order], market.wall(2.5))
    assert told(market.at(order, 9)) == ("cancelled", ["4 at 102 for 0"])
    filled = market.order(quantity="2")
    market.broker.cancel([filled], market.wall(3))
    assert told(market.at(filled, 9)) == ("filled", ["2 at 102 for 0"])


def test_a_bar_without_a_price_is_waited_through(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open"})
    text = (tmp_path / "ko.csv").read_text().replace("102,105,101", ",,").replace("98,101,97", "0,0,0")
    (tmp_path / "ko.csv").write_text(text)
    assert told(market.at(market.order(), 9)) == ("filled", ["10 at 110 for 0"])


def test_nothing_is_read_before_a_bar_is_due_and_all_orders_share_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router looks at each order every second: a file may not be read each time."""
    monkeypatch.setattr("activities.brokers.bars._READ_AGAIN_S", (0.0, 0.0))
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.04"}, instruments={"lot": "1"})
    bars(tmp_path, OPENS[:2])  # the next one has not closed, and is not there
    orders = [market.order() for _ in range(5)]
    assert [told(report)[1] for report in market.broker.find(orders, market.wall(2.0))] == [
        ["4 at 102 for 0"]
    ] * 5
    (tmp_path / "ko.csv").unlink()
    for days in (2.0, 2.5, 2.9):
        assert len(market.broker.find(orders, market.wall(days))) == 5
    new = market.order(at=2.0)
    market.places(new)
    assert told(market.at(new, 2.9)) == ("sent", [])


def test_an_order_is_not_looked_up_before_its_next_bar_can_be_there(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.04"}, instruments={"lot": "1"})
    order = market.order()
    market.places(order)
    assert market.at(order, 1.5).state == "sent"
    assert market.broker.quiet_s(order, market.wall(1.5)) == pytest.approx(0.5), "a day is a second"
    assert market.at(order, 2.0).state == "partially_filled"
    assert market.broker.quiet_s(order, market.wall(2.0)) == pytest.approx(1.0)
    at_reference = market.order(symbol="NONE")
    slow = PaperBroker("paper", 3.0)
    assert slow.place([at_reference], at_reference.accepted_at)[0].state == "sent"
    assert slow.quiet_s(at_reference, at_reference.accepted_at) == 3.0


def test_a_bar_that_is_late_is_looked_for_after_a_pause(tmp_path: Path) -> None:
    slow = {"replay": {"start": FIRST.isoformat(), "speed": 1}}
    market = Market(tmp_path, {"fill": "next_open"}, clock=slow)
    order = market.order(at=6.0)._replace(accepted_at=CREATED + 6 * DAY)
    later = CREATED + 9 * DAY
    assert told(market.broker.find([order], later)[0]) == ("sent", [])
    assert 25 < market.broker.quiet_s(order, later) <= 30


def test_a_look_that_reads_for_too_long_goes_on_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of more than five seconds is a fault of the broker, and the first one may read many streams."""
    clock = 0.0

    def passing() -> float:
        nonlocal clock
        clock += 0.6
        return clock

    monkeypatch.setattr("activities.brokers.paper.time.monotonic", passing)
    market = Market(tmp_path, {"fill": "next_open"})
    orders = [market.order() for _ in range(4)]
    states = [report.state for report in market.broker.find(orders, market.wall(2.0))]
    assert states[0] == "filled"
    assert states[-1] == "sent"
    left = [order for order, state in zip(orders, states, strict=True) if state == "sent"]
    while left:
        found = market.broker.find(left, market.wall(2.0))
        assert found[0].state == "filled"
        left = [order for order, report in zip(left, found, strict=True) if report.state == "sent"]


def test_bars_that_cannot_be_read_are_a_fault_of_their_orders_and_not_of_sending(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open"})
    (tmp_path / "ko.csv").unlink()
    order = market.order()
    assert market.places(order).state == "sent"
    with pytest.raises(QmtlError) as caught:
        market.at(order, 2.0)
    assert caught.value.code == "E_DATA_NOT_FOUND"


def test_an_order_whose_bars_cannot_be_read_can_be_cancelled(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open", "volume_share": "0.04"}, instruments={"lot": "1"})
    order = market.order()
    assert told(market.at(order, 2.0)) == ("partially_filled", ["4 at 102 for 0"])
    (tmp_path / "ko.csv").unlink()
    market.restarted()
    market.broker.cancel([order], market.wall(3.0))
    assert told(market.at(order, 9)) == ("cancelled", []), "what was filled is recorded"


def test_a_stream_is_found_by_its_name_or_by_a_tag_that_it_alone_has(tmp_path: Path) -> None:
    market = Market(tmp_path, {"fill": "next_open"})
    presets = market.world.spec.data.presets
    renamed = presets[0].model_copy(update={"streams": {"coke": ("KO", "price")}})
    for streams, fills in (
        ({"coke": ("KO", "price")}, ["10 at 102 for 0"]),
        ({"coke": ("KO", "price"), "light": ("KO", "volume")}, ["10 at 77 for 0"]),
    ):
        data = market.world.spec.data.model_copy(
            update={"presets": (renamed.model_copy(update={"streams": streams}),)}
        )
        changed = market.world.spec.model_copy(update={"data": data})
        market.world = market.world.model_copy(update={"spec": changed, "etag": str(streams)})
        market.restarted()
        assert told(market.at(market.order(), 9)) == ("filled", fills)


@pytest.mark.parametrize(
    ("execution", "code"),
    [
        ({"volume_share": "0.1"}, "would change nothing"),
        ({"reject_symbols": ["KO"]}, "would change nothing"),
        ({"fill": "last"}, "next_open"),
        ({"fill": "next_open", "volume_share": "2"}, "volume_share"),
    ],
)
def test_what_no_order_would_follow_is_refused(execution: dict[str, Any], code: str) -> None:
    with pytest.raises(ValueError, match=code):
        WorldSpec.model_validate({"world": "w", "execution": execution})


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Desk:
    """In paper trading, with bars of a tenth of a second on the wall."""
    opens = [100 + number % 7 for number in range(3000)]
    path = bars(tmp_path, opens)
    execution = {"fill": "next_open", "volume_share": "0.04", "fee_bps": 1}
    found = Desk(
        database,
        **spec(path, execution, clock={"replay": {"start": FIRST.isoformat(), "speed": 864_000}}),
        instruments={"lot": "1"},
    )
    found.apply("dryrun")
    return found


def test_routers_that_die_lose_and_double_no_fill(desk: Desk) -> None:
    """Each step is of a new router with a new broker; half of them die after the broker has answered."""
    worlds = SqlWorldStore(desk.database)
    session, log = desk.session(), SqlOrderLog(desk.database)
    orders = [desk.order(session, desk.epoch, symbol="KO", quantity="30") for _ in range(4)]
    assert all(item.accepted for item in OrderAcceptance(desk.database).publish(orders, desk.caller))
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        broker = PaperBroker("paper", worlds=worlds.world)
        if steps % 2:
            due = SqlOpenOrders(desk.database, 300.0)
            for found in due.due(Domain.DRYRUN, 9).values():
                broker.find(
                    [AcceptedOrder(item.order(), item.accepted_at) for item in found], datetime.now(UTC)
                )
        else:
            router(desk.database, broker).step()
        return log.open_orders(desk.world) == 0

    wait_for(step, "the end of all orders", 60)
    records = {item.order.order_id: item for item in log.orders(desk.world)}
    (whole,) = {
        tuple(fill.quantity for fill in report.fills)
        for report in PaperBroker("paper", worlds=worlds.world).find(
            [AcceptedOrder(item.order, item.changes[0].at) for item in records.values()],
            datetime.now(UTC),
        )
    }
    assert whole == (4, 4, 4, 4, 4, 4, 4, 2)
    for record in records.values():
        assert record.state == "filled"
        assert record.fill is not None
        assert record.fill.quantity == 30
    assert desk.fence_row().halted == ""


def test_a_halt_cancels_what_waits_for_the_next_open(desk: Desk) -> None:
    worlds, log = SqlWorldStore(desk.database), SqlOrderLog(desk.database)
    order = desk.order(desk.session(), desk.epoch, symbol="KO", quantity="1000")
    assert OrderAcceptance(desk.database).publish([order], desk.caller)[0].accepted
    route = router(desk.database, PaperBroker("paper", worlds=worlds.world))
    route.step()
    log.cancel(desk.world, CancelRequest(all=True), "olga")
    wait_for(lambda: [route.step(), log.open_orders(desk.world) == 0][-1], "the end of the order", 20)
    (record,) = log.orders(desk.world)
    assert record.state == "cancelled"
    assert record.fill is None or record.fill.quantity < 1000


def test_more_fills_than_one_report_holds_come_in_several_reports(tmp_path: Path) -> None:
    """The first were left out, so such an order stayed open for ever, and the ledger short."""
    market = Market(tmp_path, {"fill": "next_open", "volume_share": 0.01})  # one unit of each bar
    count = MAX_FILLS + 100
    bars(tmp_path, [100] * (count + 10))
    placed = market.order(quantity=str(count))
    market.places(placed)
    found = market.broker.find([placed], market.wall(count + 5))
    assert [report.state for report in found] == ["filled", "filled"]
    fills = {fill.fill_id: fill.quantity for report in found for fill in report.fills}
    assert sum(fills.values()) == count


def test_a_closed_market_is_read_once_for_all_orders_that_wait_for_it(tmp_path: Path) -> None:
    slow = {"replay": {"start": FIRST.isoformat(), "speed": 1}}
    market = Market(tmp_path, {"fill": "next_open"}, clock=slow)
    orders = [market.order(at=at)._replace(accepted_at=CREATED + at * DAY) for at in (6.0, 6.5, 7.0)]
    later = CREATED + 9 * DAY
    assert told(market.broker.find(orders[:1], later)[0]) == ("sent", [])
    (tmp_path / "ko.csv").unlink()
    reports = market.broker.find(orders, later)
    assert [told(report) for report in reports] == [("sent", [])] * 3, "there is nothing left to read"


def test_a_cancel_that_has_no_time_to_read_bars_loses_no_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = Market(tmp_path, {"fill": "next_open"})
    order = market.order()
    with monkeypatch.context() as patched:
        patched.setattr("activities.brokers.paper._LOOK_S", 0.0)
        market.broker.cancel([order], market.wall(5))
        assert told(market.at(order, 5)) == ("sent", []), "it takes no longer than it may"
    market.broker.cancel([order], market.wall(5))
    assert market.at(order, 5).state == "filled"


def test_fills_that_are_recorded_are_not_looked_up_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an order that fills in many parts held the fence each second for all of them."""
    monkeypatch.setattr("activities.brokers.execution._LOOK_AGAIN_S", (0.01, 0.01))
    order = desk.order(desk.session(), desk.epoch, symbol="KO", quantity="30")
    assert OrderAcceptance(desk.database).publish([order], desk.caller)[0].accepted
    fills = tuple(
        Fill(fill_id=f"f{number}", quantity=D(1), price=D(100), account="paper") for number in range(5)
    )

    class Repeating(PaperBroker):
        looks = 0

        def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            return [OrderReport(order_id=item.order.order_id, state="sent") for item in orders]

        def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
            Repeating.looks += len(orders)
            about = {"state": "partially_filled", "fills": fills}
            return [OrderReport.model_validate({"order_id": item.order.order_id, **about}) for item in orders]

    route, asked = router(desk.database, Repeating("paper")), list[str]()

    def looked(times: int) -> None:
        until = Repeating.looks + times
        wait_for(lambda: [route.step(), Repeating.looks >= until][-1], "looks at the order", 20)

    looked(1)
    with noted(asked):
        looked(3)
    assert [statement for statement in asked if "FROM ledger" in statement] == []
    (record,) = SqlOrderLog(desk.database).orders(desk.world)
    assert record.fill is not None
    assert record.fill.quantity == 5


@contextmanager
def noted(statements: list[str]) -> Iterator[None]:
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", note)
