"""The ledger: fills and bookings, positions as of a time, and the ledger against the order log."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import text

from activities.artifacts.folder import FolderArtifacts
from activities.fence.acceptance import OrderAcceptance
from activities.fence.bookings import SqlBookings
from activities.fence.fills import SqlFills
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.ledger.sql import SqlLedger
from activities.ledger.summary import SqlPositionSummary
from activities.retention.archives import LOCK, Archives
from activities.retention.ledger import LedgerProjection
from activities.storage.database import Database
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill, FillBatch, ReportedFill
from qmtl_sdk.contracts.ledger import Booking, LedgerCheck, Position, PositionFilter
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.position_summary import PositionSummary
from tests.support.archive_house import NOW, House
from tests.support.desk import Desk

D = Decimal
ALL = PositionFilter(closed=True)


@dataclass
class Books:
    """A world in paper trading with its ledger."""

    database: Database
    folder: Path

    def __post_init__(self) -> None:
        self.desk = Desk(self.database, strategies=2)
        self.desk.apply("dryrun")
        self.session = self.desk.session()
        self.world = self.desk.world
        self.fills = SqlFills(self.database)
        self.bookings = SqlBookings(self.database)
        self.ledger = SqlLedger(self.database)
        self.log = SqlOrderLog(self.database)
        self.open = SqlOpenOrders(self.database, 300.0)
        self.projection = LedgerProjection(self.database, Archives(FolderArtifacts(self.folder)))

    def ordered(self, quantity: str = "10", sent: bool = True, **fields: str) -> Order:
        """An accepted order, which the router has sent."""
        order = self.desk.order(self.session, self.desk.epoch, quantity=quantity, **fields)
        (verdict,) = OrderAcceptance(self.database).publish([order], self.desk.caller)
        assert verdict.accepted
        if sent:
            mine = [found for found in self._due() if found.order_id == order.order_id]
            assert len(self.open.mark_sent(self.world, mine, 60.0)) == 1
        return order

    def _due(self) -> list:  # type: ignore[type-arg]
        return self.open.due(Domain.DRYRUN, 1000).get(self.world, [])

    def report(self, *fills: tuple[Order, Fill]) -> int:
        items = tuple(ReportedFill(order_id=order.order_id, fill=fill) for order, fill in fills)
        return self.fills.record(FillBatch(world_id=self.world, fills=items), "olga")

    def book(self, kind: str, **fields: str) -> bool:
        base = {
            "strategy_id": self.desk.strategies[0],
            "account": "paper",
            "symbol": "AAPL",
            "reason": "test",
        }
        return self.bookings.record(
            self.world, Booking.model_validate({"kind": kind, "booking_id": kind, **base, **fields}), "olga"
        )

    def position(self) -> Position:
        (found,) = self.ledger.positions(self.world, ALL)
        return found.position

    def state(self) -> tuple[object, ...]:
        """All that a report of fills may change."""
        return (
            self.desk.logged(),
            self.ledger.positions(self.world, ALL),
            self.ledger.lines(self.world, limit=1000),
            self.log.open_orders(self.world),
        )

    def halt(self) -> None:
        self.desk.fence.halt(self.world, "olga", "its ledger is booked anew")

    def venue_says(self, *reports: tuple[Order, str, tuple[Fill, ...]]) -> None:
        """What the router records of a venue's answer."""
        found = [
            OrderReport.model_validate({"order_id": order.order_id, "state": state, "fills": fills})
            for order, state, fills in reports
        ]
        self.open.record(self.world, found, {})

    def filled(self) -> list[tuple[str, Decimal]]:
        """State and filled quantity of each order, in the order of acceptance."""
        records = self.log.orders(self.world, OrderFilter(limit=1000))
        return [(item.state.value, item.fill.quantity if item.fill else D(0)) for item in records]

    def run_sql(self, statement: str) -> None:
        with self.database.write("test", bookkeeping=True) as tx:
            tx.connection.execute(text(statement))


@pytest.fixture
def books(database: Database, tmp_path: Path) -> Books:
    return Books(database, tmp_path / "artifacts")


def fill(name: str = "f1", quantity: str = "4", price: str = "100", **fields: object) -> Fill:
    body = {"fill_id": name, "quantity": quantity, "price": price, "account": "paper", **fields}
    return Fill.model_validate(body)


def refusal(attempt: Callable[[], object]) -> str:
    with pytest.raises(QmtlError) as error:
        attempt()
    return error.value.code


def test_fills_make_a_position_and_end_their_order(books: Books) -> None:
    order = books.ordered()
    assert books.report((order, fill("f1", "4", "100", fee="0.5"))) == 1
    (record,) = books.log.orders(books.world)
    assert (record.state.value, record.fill.quantity if record.fill else None) == ("partially_filled", D(4))
    assert books.report((order, fill("f2", "6", "110"))) == 1
    (record,) = books.log.orders(books.world)
    assert record.fill is not None
    assert (record.state.value, record.fill.quantity, record.fill.price) == ("filled", D(10), D(106))
    held = books.position()
    assert (held.quantity, held.cost, held.fees, held.cash) == (D(10), D(1060), D("0.5"), D("-1060.5"))
    assert books.log.open_orders(books.world) == 0
    assert books.projection.verify(books.world) == LedgerCheck(world_id=books.world, entries=2, positions=1)


def test_a_fill_is_booked_once_whoever_reports_it(books: Books) -> None:
    """Doubled, late and out of order; by a person, by the router, and by both."""
    order = books.ordered()
    first, second = fill("f1", "4"), fill("f2", "6")
    assert books.report((order, second), (order, second)) == 1
    before = books.state()
    assert books.report((order, second)) == 0
    assert books.state() == before
    report = OrderReport(order_id=order.order_id, state="filled", fills=(first, second))
    books.open.record(books.world, [report], {})
    books.open.record(books.world, [report], {})
    assert books.report((order, first), (order, second)) == 0
    assert books.position().quantity == 10
    assert len(books.ledger.lines(books.world)) == 2


def test_a_late_fill_of_an_order_that_has_ended_is_booked_and_leaves_its_state(books: Books) -> None:
    order = books.ordered()
    cancelled = OrderReport(order_id=order.order_id, state="cancelled", fills=(fill("f1", "4"),))
    books.open.record(books.world, [cancelled], {})
    assert books.report((order, fill("f2", "1"))) == 1
    (record,) = books.log.orders(books.world)
    assert record.state.value == "cancelled"
    assert record.fill is not None
    assert record.fill.quantity == 5
    assert books.position().quantity == 5
    assert books.projection.verify(books.world).is_good


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda books, order: books.report((order, fill("f2", "6.000000000001"))), "E_FILL_EXCEEDS"),
        (lambda books, order: books.report((order, fill("f2")), (order, fill("f3"))), "E_FILL_EXCEEDS"),
        (lambda books, order: books.report((order, fill("f1", "5"))), "E_FILL_REUSED"),
        (lambda books, order: books.report((order, fill("f1", price="101"))), "E_FILL_REUSED"),
        (lambda books, order: books.report((books.ordered(), fill("f1"))), "E_FILL_REUSED"),
        (
            lambda books, order: books.report(
                (order, fill("f2")), (order.model_copy(update={"order_id": "order:unknown"}), fill("f3"))
            ),
            "E_ORDER_UNKNOWN",
        ),
        (lambda books, order: books.report((books.ordered(sent=False), fill("f9"))), "E_ORDER_NOT_SENT"),
        (lambda books, order: books.book("reversal", corrects="f7"), "E_FILL_UNKNOWN"),
        (lambda books, order: books.book("dividend", amount="1", account="papre"), "E_BOOKING"),
        (lambda books, order: books.book("split", ratio="2", symbol="APPL"), "E_BOOKING"),
        (lambda books, order: books.book("split", ratio="9999999999999999"), "E_BOOKING"),
        (lambda books, order: books.book("fee", amount="1", strategy_id="nosuch"), "E_STRATEGY_UNKNOWN"),
        (lambda books, order: books.book("reversal", corrects="f1", symbol="MSFT"), "E_FILL_UNKNOWN"),
        (
            lambda books, order: books.book("reversal", corrects="f1", strategy_id="strategy:w1"),
            "E_FILL_UNKNOWN",
        ),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_changed(
    books: Books, wrong: Callable[[Books, Order], object], code: str
) -> None:
    order = books.ordered()
    books.report((order, fill("f1")))
    before = books.ledger.lines(books.world), books.ledger.positions(books.world, ALL)
    assert refusal(lambda: wrong(books, order)) == code
    assert (books.ledger.lines(books.world), books.ledger.positions(books.world, ALL)) == before
    assert books.projection.verify(books.world).is_good


def test_another_world_s_order_cannot_be_filled_from_here(books: Books) -> None:
    other = Desk(books.database, "other")
    order = books.ordered()
    batch = FillBatch(world_id=other.world, fills=(ReportedFill(order_id=order.order_id, fill=fill()),))
    assert refusal(lambda: books.fills.record(batch, "olga")) == "E_ORDER_UNKNOWN"
    assert books.ledger.lines(books.world) == []


def test_a_wrong_fill_is_taken_back_once_and_reported_anew(books: Books) -> None:
    order = books.ordered()
    books.report((order, fill("f1", "10", "100", fee="1")))
    assert books.book("reversal", corrects="f1") is True
    assert books.book("reversal", corrects="f1", booking_id="again") is False
    assert books.position().quantity == 0
    assert books.report((order, fill("f1b", "10", "99"))) == 1
    held = books.position()
    assert (held.quantity, held.fees, held.cash) == (D(10), D(0), D(-990))
    assert refusal(lambda: books.report((order, fill("f1c", "1", "99")))) == "E_FILL_EXCEEDS"
    assert books.projection.verify(books.world).is_good


def test_a_venue_that_fills_more_than_was_ordered_halts_the_world(books: Books) -> None:
    """What it did is booked: the position is what it is, and nobody knows what else it will do."""
    order = books.ordered()
    report = OrderReport(order_id=order.order_id, state="filled", fills=(fill("f1", "12"),))
    books.open.record(books.world, [report], {})
    assert "filled 12 of order" in books.desk.fence_row().halted
    assert books.position().quantity == 12
    assert books.projection.verify(books.world).is_good


def test_a_venue_that_changes_a_fill_halts_the_world_and_does_not_stop_other_orders(books: Books) -> None:
    """A fill under the id of another one was dropped, and only a line of the log told of it."""
    first, second = books.ordered(), books.ordered()
    books.venue_says((first, "partially_filled", (fill("f1"),)))
    books.venue_says((first, "partially_filled", (fill("f1", "5"),)), (second, "filled", (fill("f2", "10"),)))
    assert books.position().quantity == 14
    assert "f1 of paper was reported before with another content" in books.desk.fence_row().halted


def test_a_venue_may_number_the_fills_of_each_symbol_by_themselves(books: Books) -> None:
    first, second = books.ordered(symbol="AAPL"), books.ordered(symbol="MSFT")
    books.venue_says((first, "filled", (fill("1001", "10"),)), (second, "filled", (fill("1001", "10"),)))
    found = {item.symbol: item.position.quantity for item in books.ledger.positions(books.world, ALL)}
    assert found == {"AAPL": D(10), "MSFT": D(10)}
    assert not books.desk.fence_row().halted


def test_an_order_is_not_filled_before_its_fills_have_come(books: Books) -> None:
    """Ended with a part of its fills, it was never asked for the others."""
    order = books.ordered()
    books.venue_says((order, "filled", (fill("f1", "4"),)))
    assert books.filled() == [("partially_filled", D(4))]
    books.venue_says((order, "filled", (fill("f1", "4"), fill("f2", "6"))))
    assert books.filled() == [("filled", D(10))]
    assert books.position().quantity == 10


def test_an_answer_that_tells_of_an_order_twice_loses_no_fill(books: Books) -> None:
    order = books.ordered()
    books.venue_says((order, "partially_filled", (fill("f1", "4"),)), (order, "filled", (fill("f2", "6"),)))
    assert books.filled() == [("filled", D(10))]
    assert books.position().quantity == 10


def test_a_venue_s_fill_of_an_order_that_has_ended_is_booked(books: Books) -> None:
    order = books.ordered()
    books.venue_says((order, "cancelled", ()))
    books.venue_says((order, "filled", (fill("late", "3"),)))
    assert books.filled() == [("cancelled", D(3))]
    assert books.position().quantity == 3
    assert not books.desk.fence_row().halted
    books.venue_says((order, "filled", (fill("late", "3"), fill("more", "8"))))
    assert books.position().quantity == 11
    assert "filled 11 of order" in books.desk.fence_row().halted
    assert books.projection.verify(books.world).is_good


def test_a_fill_that_was_taken_back_no_longer_counts_for_its_order(books: Books) -> None:
    """The right fill, reported after it, halted the world."""
    order = books.ordered()
    books.venue_says((order, "partially_filled", (fill("f1", "4"),)))
    books.book("reversal", corrects="f1")
    assert books.filled() == [("partially_filled", D(0))]
    books.venue_says((order, "filled", (fill("f1c", "4"), fill("f2", "6"))))
    assert not books.desk.fence_row().halted
    assert books.filled() == [("filled", D(10))]
    assert books.position().quantity == 10


def test_a_position_is_as_if_a_fill_that_was_taken_back_had_never_been(books: Books) -> None:
    """Average cost, profit and mark too, with trades and a split after it."""
    right, wrong = books.ordered(), books.ordered()
    books.report((right, fill("good", "10", "80")))
    expected = books.position()
    books.report((wrong, fill("wrong", "10", "1000", fee="2")))
    books.book("reversal", corrects="wrong")
    assert books.position() == expected
    books.report((books.ordered(), fill("wrong2", "10", "1000")))
    books.report((books.ordered(side="sell"), fill("sold", "5", "90")))
    books.book("split", ratio="4")
    books.book("reversal", corrects="wrong2", booking_id="r2")
    held = books.position()
    assert (held.quantity, held.cost, held.realised) == (D(20), D(400), D(50))
    assert held.cash == D(-350)
    lines = books.ledger.lines(books.world)
    assert sum(line.entry.quantity for line in lines) == 20
    assert sum(line.entry.cash - line.entry.fee for line in lines) == D(-350)
    assert books.projection.verify(books.world).is_good


def test_positions_come_a_page_at_a_time_and_none_is_missing(books: Books) -> None:
    for number in range(7):
        books.report((books.ordered("1", symbol=f"S{number}"), fill("f", "1")))
    moment = datetime.now(UTC)
    books.report((books.ordered("1", symbol="S3", side="sell"), fill("out", "1")))
    later = datetime.now(UTC)
    for as_of, closed, expected in (
        (None, False, 6),
        (None, True, 7),
        (moment, False, 7),
        (moment, True, 7),
        (later, False, 6),
        (later, True, 7),
    ):
        found, last = [], ""
        while page := books.ledger.positions(
            books.world, PositionFilter(as_of=as_of, closed=closed, after=last, limit=2)
        ):
            found += [item.symbol for item in page]
            last = json.dumps((page[-1].strategy_id, page[-1].account, page[-1].symbol))
        assert found == sorted(set(found))
        assert len(found) == expected


def test_dividends_splits_fees_and_adjustments(books: Books) -> None:
    books.report((books.ordered(), fill("f1", "10", "80")))
    assert books.book("dividend", amount="12.5") is True
    assert books.book("dividend", amount="12.5") is False
    assert refusal(lambda: books.book("dividend", amount="13")) == "E_BOOKING_REUSED"
    assert books.book("split", ratio="4") is True
    assert books.book("split", ratio="4") is False
    assert books.book("fee", amount="0.5") is True
    assert books.book("adjustment", quantity="-1", price="20") is True
    held = books.position()
    assert (held.quantity, held.cost, held.income, held.fees) == (D(39), D(780), D("12.5"), D("0.5"))
    assert held.cash == D("-800") + D("12.5") - D("0.5") + D(20)
    for line in books.ledger.lines(books.world):
        sums = dict[str, Decimal]()
        for posting in line.postings:
            sums[posting.commodity] = sums.get(posting.commodity, D(0)) + posting.amount
        assert set(sums.values()) <= {D(0)}, line
    assert books.projection.verify(books.world).is_good


def test_positions_are_read_as_of_a_time(books: Books) -> None:
    marks = []
    for number in range(4):
        books.report((books.ordered(symbol="AAPL"), fill(f"a{number}", "1", "100")))
        books.report((books.ordered(symbol="MSFT", side="sell"), fill(f"m{number}", "2", "50")))
        marks.append(datetime.now(UTC))
    books.report((books.ordered(symbol="AAPL", side="sell"), fill("flat", "4", "100")))
    for number, moment in enumerate(marks, 1):
        found = books.ledger.positions(books.world, PositionFilter(as_of=moment))
        assert {item.symbol: item.position.quantity for item in found} == {
            "AAPL": D(number),
            "MSFT": D(-2 * number),
        }
    for closed in (False, True):
        before = PositionFilter(as_of=datetime(2020, 1, 1, tzinfo=UTC), closed=closed)
        assert books.ledger.positions(books.world, before) == []
    assert [item.symbol for item in books.ledger.positions(books.world, PositionFilter())] == ["MSFT"]
    assert [item.symbol for item in books.ledger.positions(books.world, ALL)] == ["AAPL", "MSFT"]


def test_a_clock_that_was_set_back_hides_no_entry(books: Books) -> None:
    books.report((books.ordered(), fill("f1", "4")))
    for table in ("position", "ledger"):
        books.run_sql(f"UPDATE {table} SET at = '2199-01-01T00:00:00.000000+00:00'")
    books.report((books.ordered(), fill("f2", "5")))
    assert books.position().quantity == 9
    found = books.ledger.positions(books.world, PositionFilter(as_of=datetime(2199, 1, 1, tzinfo=UTC)))
    assert [item.position.quantity for item in found] == [D(9)]


@pytest.mark.parametrize(
    "damage",
    [
        'UPDATE ledger SET after = replace(after, \'"quantity":"4"\', \'"quantity":"5"\')',
        "UPDATE ledger SET entry = replace(entry, '100', '101')",
        "DELETE FROM ledger WHERE ref = 'fill:AAPL:f2'",
        "DELETE FROM ledger",
        "DELETE FROM position",
        'UPDATE position SET after = replace(after, \'"fees":"0.5"\', \'"fees":"0.4"\')',
        "UPDATE ledger SET held = false WHERE ref = 'fill:AAPL:f2'",
        "UPDATE ledger SET symbol = 'MSFT' WHERE ref = 'fill:AAPL:f2'",
        "UPDATE ledger SET account = 'other' WHERE ref = 'fill:AAPL:f2'",
        "UPDATE position SET held = false",
        "INSERT INTO ledger (at, world_id, strategy_id, account, symbol, ref, held, entry, after) "
        "SELECT at, world_id, strategy_id, account, symbol, 'fill:more', held, entry, after "
        "FROM ledger LIMIT 1",
        "UPDATE position SET marked_at = '2020'",
        "INSERT INTO position (world_id, strategy_id, account, symbol, at, marked_at, held, after) "
        "SELECT world_id, 'strategy:other', account, symbol, at, marked_at, held, after "
        "FROM position LIMIT 1",
        "UPDATE exposure SET net = '1'",
        "UPDATE exposure_day SET traded = '1'",
        "DELETE FROM exposure_day WHERE strategy_id = ''",
        "INSERT INTO exposure_day SELECT world_id, 'strategy:other', account, day, gross, net, profit, fees, "
        "traded FROM exposure_day LIMIT 1",
    ],
)
def test_a_damaged_ledger_is_found_and_made_again_from_the_order_log(books: Books, damage: str) -> None:
    order = books.ordered()
    books.report((order, fill("f1", "4", "100", fee="0.5")))
    books.report((order, fill("f2", "5", "100")))
    books.book("dividend", amount="1")
    before = books.ledger.positions(books.world, ALL)
    entries = [(line.at, line.entry, line.after) for line in books.ledger.lines(books.world)]
    books.run_sql(damage)
    check = books.projection.verify(books.world)
    assert not check.is_good
    assert check.differences
    assert refusal(lambda: books.projection.rebuild(books.world, "olga")) == "E_NOT_HALTED"
    books.halt()
    books.projection.rebuild(books.world, "olga")
    assert books.projection.verify(books.world).is_good
    assert books.ledger.positions(books.world, ALL) == before
    assert [(line.at, line.entry, line.after) for line in books.ledger.lines(books.world)] == entries


def test_a_rebuilt_ledger_equals_the_running_one_to_the_last_digit(books: Books) -> None:
    rng = Random(7)
    for number in range(30):
        side, symbol = rng.choice(["buy", "sell"]), rng.choice(["AAPL", "MSFT", "KO"])
        quantity = D(rng.randrange(1, 10**6)) / 10**5
        order = books.ordered(str(quantity), symbol=symbol, side=side)
        part = quantity / 4
        price = f"{rng.uniform(1, 500):.7f}"
        books.report((order, fill(f"{number}a", str(part), price, fee="0.0003")))
        if rng.random() < 0.6:
            books.report((order, fill(f"{number}b", str(quantity - part), price)))
        if rng.random() < 0.2:
            books.book("split", ratio="0.3333", booking_id=f"s{number}", symbol=symbol)
        if rng.random() < 0.2:
            books.book("reversal", corrects=f"{number}a", booking_id=f"r{number}", symbol=symbol)
    before = (
        books.ledger.positions(books.world, ALL),
        [(line.at, line.entry, line.after) for line in books.ledger.lines(books.world, limit=1000)],
    )
    assert books.projection.verify(books.world).is_good
    books.halt()
    books.projection.rebuild(books.world, "olga")
    assert (
        books.ledger.positions(books.world, ALL),
        [(line.at, line.entry, line.after) for line in books.ledger.lines(books.world, limit=1000)],
    ) == before


@pytest.fixture
def old(books: Books) -> Books:
    """Books whose first twenty fills are in an archive."""
    house = House(books.database, books.folder)
    for number in range(20):
        side, symbol = ("sell", "MSFT") if number % 4 == 3 else ("buy", "AAPL")
        price = str(90 + number)
        books.report((books.ordered("2", side=side, symbol=symbol), fill(f"old{number}", "2", price)))
    house.run(NOW + timedelta(days=2))
    books.halt()  # the newest row of all is never archived
    books.desk.steps.resume(books.world, "olga", "")
    assert house.run() > 0
    with books.database.read() as session:
        left = session.connection().execute(text("SELECT count(*) FROM order_log WHERE kind = 'filled'"))
        assert left.scalar_one() == 0, "the fills are in an archive"
    return books


def test_the_ledger_keeps_one_entry_of_each_position_from_before_the_order_log(old: Books) -> None:
    """A year of fills made the database three times as large, and the ledger was most of it."""
    assert [line.entry.ref for line in old.ledger.lines(old.world)] == ["fill:AAPL:old18", "fill:MSFT:old19"]
    found = old.ledger.positions(old.world, PositionFilter(as_of=datetime.now(UTC)))
    assert {item.symbol: item.position.quantity for item in found} == {"AAPL": D(30), "MSFT": D(-10)}
    assert old.projection.verify(old.world) == LedgerCheck(world_id=old.world, entries=20, positions=2)
    old.desk.session()
    old.session = old.desk.session()
    old.report((old.ordered(), fill("new", "4", "200")))
    old.report((old.ordered(), fill("wrong", "4", "900")))
    assert refusal(lambda: old.book("reversal", corrects="old4")) == "E_FILL_UNKNOWN"
    assert refusal(lambda: old.book("reversal", corrects="old18")) == "E_FILL_UNKNOWN"
    assert old.book("reversal", corrects="wrong") is True
    held = {item.symbol: item.position for item in old.ledger.positions(old.world, ALL)}
    assert (held["AAPL"].quantity, held["AAPL"].mark) == (D(34), D(200))
    assert old.projection.verify(old.world).is_good
    assert refusal(lambda: old.report((old.desk.order(old.session, 1), fill("late")))) == "E_ORDER_UNKNOWN"


def test_a_ledger_is_made_again_through_the_archives_of_the_order_log(old: Books) -> None:
    before = old.ledger.positions(old.world, ALL)
    for damage in ("DELETE FROM ledger WHERE symbol = 'MSFT'", "DELETE FROM position"):
        old.run_sql(damage)
    assert not old.projection.verify(old.world).is_good
    old.halt()
    old.projection.rebuild(old.world, "olga")
    assert old.ledger.positions(old.world, ALL) == before
    assert len(old.ledger.lines(old.world)) == 20
    assert old.projection.verify(old.world).is_good


def test_a_rebuild_waits_for_rows_that_are_being_archived(books: Books) -> None:
    """Archived between its two looks, they were in neither, and an empty ledger was the result."""
    books.report((books.ordered(), fill("f1", "4")))
    books.halt()
    with ThreadPoolExecutor(1) as pool:
        with books.database.write("upkeep") as tx:
            tx.lock(LOCK)
            rebuilt = pool.submit(books.projection.rebuild, books.world, "olga")
            with pytest.raises(TimeoutError):
                rebuilt.result(0.5)
        assert rebuilt.result(30).entries == 1


# sums


def summed(books: Books, midnight: datetime | None = None, largest: int = 5) -> PositionSummary:
    found = SqlPositionSummary(books.database).summary(
        books.world, midnight or datetime.now(UTC) - timedelta(hours=1), largest
    )
    assert [each.profit for each in found.strategies] == [
        exact_sum((each.cash, each.net)) for each in found.strategies
    ]
    return found


def test_what_is_held_and_earned_is_added_up_by_strategy_account_and_world(books: Books) -> None:
    first, second = books.desk.strategies
    bought = (books.ordered(), fill("f1", "4", "100", fee="1")), (books.ordered(), fill("f2", "6", "110"))
    books.report(*bought)
    books.report((books.ordered(side="sell", symbol="KO"), fill("k1", "5", "60")))
    books.book("dividend", amount="7.5")
    books.book("fee", symbol="KO", amount="0.5")
    books.book("adjustment", strategy_id=second, quantity="3", price="20")
    live = {"strategy_id": second, "account": "paper-live", "booking_id": "l"}
    books.book("adjustment", quantity="1", price="9", **live)
    found = summed(books)
    assert [(each.strategy_id, each.account, each.positions) for each in found.strategies] == [
        (first, "paper", 2),
        (second, "paper", 1),
        (second, "paper-live", 1),
    ]
    mine = found.strategies[0]
    # AAPL: 10 units that cost 1060, at 110; KO: 5 short at 60
    assert (mine.gross, mine.net, mine.cash) == (D(1400), D(800), D("-1060") - 1 + 300 + D("7.5") - D("0.5"))
    assert (mine.realised, mine.unrealised, mine.income, mine.fees) == (D(0), D(40), D("7.5"), D("1.5"))
    assert (mine.profit, mine.profit_today) == (D(46), D(46)), "all of it since an hour ago"
    assert [item.symbol for item in mine.largest] == ["AAPL", "KO"]
    assert [(each.account, each.positions, each.gross, each.profit) for each in found.accounts] == [
        ("paper", 3, D(1460), D(46)),
        ("paper-live", 1, D(9), D(0)),
    ]
    assert (found.world_id, found.unreadable) == (books.world, 0)


def test_today_s_profit_is_that_in_all_less_what_it_was_at_midnight(books: Books) -> None:
    """AAPL is traded before and after, KO before only, JNJ is closed before, MSFT begins after."""
    bought = (books.ordered(), fill("f1", "4", "100", fee="1")), (books.ordered(), fill("f2", "2", "105"))
    books.report(*bought)
    books.report((books.ordered(side="sell", symbol="KO"), fill("k1", "5", "60")))
    books.report((books.ordered(symbol="JNJ"), fill("j1", "2", "50")))
    books.report((books.ordered(symbol="JNJ", side="sell"), fill("j2", "2", "45")))
    before = summed(books).strategies[0]
    assert (before.profit, before.positions) == (D(20 - 1 - 10), 2)
    midnight = datetime.now(UTC)
    assert summed(books, midnight).strategies[0].profit_today == 0
    books.report((books.ordered(side="sell"), fill("f3", "1", "120", fee="0.5")))
    books.book("dividend", symbol="KO", amount="-3")
    books.book("reversal", symbol="JNJ", corrects="j2")
    books.report((books.ordered(symbol="MSFT"), fill("m1", "1", "300", fee="0.25")))
    found = summed(books, midnight).strategies[0]
    # AAPL: 6 units cost 610; one is sold at 120, five are marked there, so 110 in place of 20, less the fee;
    # KO: short dividend; JNJ: without the sale there are 2 units at their cost, in place of a loss of 10
    assert found.profit_today == D(90) - D("0.5") - 3 + 10 - D("0.25")
    assert found.profit == before.profit + found.profit_today
    assert found.positions == 4
    assert summed(books, datetime.now(UTC)).strategies[0].profit_today == 0


def test_many_positions_are_added_up_a_page_at_a_time(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(11):
        strategy = books.desk.strategies[number % 2]
        asked = {"strategy_id": strategy, "symbol": f"S{number}", "booking_id": f"b{number}"}
        books.book("adjustment", quantity=str(number + 1), price="10", **asked)
    whole = summed(books, largest=2)
    monkeypatch.setattr("activities.ledger.summary._PAGE", 3)
    assert summed(books, largest=2).model_copy(update={"midnight": whole.midnight}) == whole
    largest = [[item.symbol for item in each.largest] for each in whole.strategies]
    assert largest == [["S10", "S8"], ["S9", "S7"]]
    assert whole.accounts[0].gross == D(660)


def test_a_position_that_cannot_be_read_is_counted_and_the_others_are_added_up(books: Books) -> None:
    books.book("adjustment", quantity="1", price="10")
    books.book("adjustment", quantity="1", price="7", symbol="KO", booking_id="k")
    books.run_sql("UPDATE position SET after = 'nonsense' WHERE symbol = 'KO'")
    found = summed(books)
    assert (found.unreadable, found.accounts[0].gross) == (1, D(10))


def test_a_world_that_does_not_exist_has_no_sums(books: Books) -> None:
    summary = SqlPositionSummary(books.database)
    assert refusal(lambda: summary.summary("none", datetime.now(UTC), 5)) == "E_WORLD_UNKNOWN"
    assert SqlPositionSummary(books.database).summary(books.world, datetime.now(UTC), 5).strategies == ()


def test_a_position_that_was_flat_in_fractions_is_what_its_log_says(books: Books) -> None:
    """13.5 - 13.5 is 0.0 in memory and 0 in the database: what followed was written with other zeros."""
    trades = (
        ("buy", "13.5", "100.083"),
        ("sell", "13.5", "100.083"),
        ("buy", "7.25", "99.5"),
        ("sell", "9", "101.1"),
    )
    for number, (side, quantity, price) in enumerate(trades):
        order = books.ordered(quantity, side=side)
        fill = {"fill_id": f"f{number}", "quantity": quantity, "price": price, "account": "paper"}
        books.report((order, Fill.model_validate(fill)))
    check = books.projection.verify(books.world)
    assert check.is_good, check.differences
