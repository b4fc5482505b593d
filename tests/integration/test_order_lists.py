"""Lists of orders: the first and the newest, of a strategy, refused, withheld, and those that change."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from activities.fence import acceptance
from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.fence.withheld import SqlWithheldOrders
from activities.storage.database import Database
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.order_list import ChangesOfWorld, OrderFilter
from qmtl_sdk.contracts.orders import CancelRequest, Order, OrderRecord, OrderReport, WithheldOrder
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import CircuitBreaker, WorldUpdate
from tests.support.desk import Desk

NEWEST = OrderFilter(newest=True)


class Log:
    """A world with two strategies in paper trading, and its order log."""

    def __init__(self, database: Database, world: str = "w") -> None:
        self.desk = Desk(database, world, strategies=2)
        self.desk.apply("dryrun")
        self.log = SqlOrderLog(database)
        self.acceptance = OrderAcceptance(database)
        self.withholding = SqlWithheldOrders(database)
        self.open = SqlOpenOrders(database, 300.0)
        self.sessions = [self.desk.session(strategy) for strategy in self.desk.strategies]

    def order(self, strategy: int = 0, **fields: Any) -> Order:
        epoch = fields.pop("epoch", self.desk.epoch)
        mine = self.desk.strategies[strategy]
        return self.desk.order(self.sessions[strategy], epoch, strategy_id=mine, **fields)

    def accept(self, strategy: int = 0) -> str:
        order = self.order(strategy)
        assert self.acceptance.publish([order], self.desk.caller)[0].accepted
        return order.order_id

    def refuse(self, strategy: int = 0, **fields: Any) -> str:
        order = self.order(strategy, **(fields or {"epoch": self.desk.epoch - 1}))
        assert not self.acceptance.publish([order], self.desk.caller)[0].accepted
        return order.order_id

    def withhold(self, strategy: int = 0) -> str:
        order = self.order(strategy)
        item = WithheldOrder(order=order, reason="the order gate is closed")
        assert self.withholding.record([item], self.desk.caller) == 1
        return order.order_id

    def ids(self, wanted: OrderFilter) -> list[str]:
        return ids(self.log.orders(self.desk.world, wanted))

    def changes(self, after: int | None, **selected: Any) -> tuple[list[tuple[str, str]], int]:
        wanted = ChangesOfWorld.model_validate({"world_id": self.desk.world, "after": after, **selected})
        found = self.log.changes(wanted)
        return [(item.order.order_id, item.state.value) for item in found.orders], found.after

    def report(self, order_id: str, state: str, *fills: Fill) -> None:
        report = {"order_id": order_id, "state": state, "fills": fills}
        self.open.record(self.desk.world, [OrderReport.model_validate(report)], {})

    def send(self) -> None:
        self.open.mark_sent(self.desk.world, self.open.due(Domain.DRYRUN, 1000)[self.desk.world], 60.0)


def ids(records: Iterable[OrderRecord]) -> list[str]:
    return [record.order.order_id for record in records]


@pytest.fixture
def log(database: Database) -> Log:
    return Log(database)


def test_the_newest_orders_are_listed_with_the_newest_last(log: Log) -> None:
    every = [log.accept(number % 2) if number % 3 else log.refuse(number % 2) for number in range(12)]
    assert log.ids(OrderFilter(newest=True, limit=4)) == every[-4:]
    assert log.ids(NEWEST) == every
    assert log.ids(OrderFilter(limit=4)) == every[:4]


def test_a_reader_that_goes_on_after_the_last_number_misses_no_order(log: Log) -> None:
    every = [(log.accept, log.refuse, log.withhold)[number % 3](number % 2) for number in range(14)]
    of_one = every[1::2]

    def pages(**selected: Any) -> list[str]:
        found, after = list[str](), 0
        while page := log.log.orders(
            log.desk.world, OrderFilter.model_validate({"after": after, "limit": 3, **selected})
        ):
            found += ids(page)
            after = page[-1].seq
        return found

    assert pages() == every
    assert pages(strategy_id=log.desk.strategies[1]) == of_one
    assert pages(state=("refused",)) == every[1::3]
    assert pages(state=("withheld",)) == pages(reason="withheld") == every[2::3]


def test_a_reader_misses_no_order_where_two_gateways_write(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction with the later number could commit first, and a reader went on after it."""
    limits = CircuitBreaker(max_orders_per_minute=100)  # so that writing and committing are two steps
    log.desk.rules.update_world(log.desk.world, WorldUpdate(circuit_breaker=limits), "olga")
    written, go_on = threading.Event(), threading.Event()
    commits_at_once = acceptance.store_counts

    def commits_late(*args: Any) -> None:
        commits_at_once(*args)
        if not written.is_set():
            written.set()
            go_on.wait(30)

    monkeypatch.setattr(acceptance, "store_counts", commits_late)
    first, second = log.order(), log.order(epoch=log.desk.epoch - 1)  # refused: no row is counted up by both
    with ThreadPoolExecutor(2) as pool:
        earlier = pool.submit(log.acceptance.publish, [first], log.desk.caller)
        assert written.wait(30)
        later = pool.submit(OrderAcceptance(log.desk.database).publish, [second], log.desk.caller)
        wait([later], 1.0)
        read = log.log.orders(log.desk.world, OrderFilter(after=0))
        go_on.set()
        assert [item.result(30)[0].accepted for item in (earlier, later)] == [True, False]
    rest = log.log.orders(log.desk.world, OrderFilter(after=read[-1].seq if read else 0))
    assert ids([*read, *rest]) == [first.order_id, second.order_id]


def test_orders_are_listed_by_strategy_and_by_why_they_were_never_accepted(log: Log) -> None:
    other = Log(log.desk.database, "other")
    other.accept()
    other.refuse()
    accepted, refused, withheld = [log.accept(0)], [log.refuse(0)], [log.withhold(0)]
    elsewhere = [log.accept(1), log.refuse(1, execution_domain="live"), log.withhold(1)]
    mine = log.desk.strategies[0]
    assert log.ids(OrderFilter(newest=True, strategy_id=mine)) == accepted + refused + withheld
    assert log.ids(OrderFilter(newest=True, strategy_id=mine, limit=2)) == refused + withheld
    assert log.ids(OrderFilter(newest=True, strategy_id=mine, state=("refused",))) == refused
    assert log.ids(OrderFilter(newest=True, strategy_id=mine, state=("withheld",))) == withheld
    assert log.ids(OrderFilter(newest=True, state=("refused",))) == [*refused, elsewhere[1]]
    both = OrderFilter(newest=True, state=("withheld", "refused"))
    assert log.ids(both) == [*refused, *withheld, *elsewhere[1:]]
    assert log.ids(OrderFilter(reason=Refusal.STALE_EPOCH)) == refused
    assert log.ids(OrderFilter(reason=Refusal.NO_SESSION)) == [elsewhere[1]]
    assert log.ids(OrderFilter(strategy_id=mine, reason=Refusal.NO_SESSION)) == []
    assert log.ids(OrderFilter(strategy_id="strategy:none")) == []


def test_a_state_and_a_reason_at_once_are_a_mistake() -> None:
    with pytest.raises(ValidationError, match="name a state or a reason"):
        OrderFilter(state=("refused",), reason=Refusal.HALTED)


# changes


def test_changes_are_each_order_that_is_new_or_another_once_and_as_it_is_now(log: Log) -> None:
    before = log.accept()
    nothing, start = log.changes(None)
    assert nothing == []
    assert log.changes(start) == ([], start)
    new, refused = log.accept(), log.refuse(1)
    log.send()
    fill = Fill.model_validate({"fill_id": "f1", "quantity": "1", "price": "9", "account": "paper"})
    log.report(before, "filled", fill)
    changed, after = log.changes(start)
    assert changed == [(before, "filled"), (new, "sent"), (refused, "refused")]
    assert log.changes(after) == ([], after)
    log.log.cancel(log.desk.world, CancelRequest(all=True), "olga")
    log.report(new, "cancelled")
    assert log.changes(after)[0] == [(new, "cancelled")]
    assert log.changes(start, state=("refused",))[0] == [(refused, "refused")]
    assert log.changes(start, strategy_id=log.desk.strategies[1])[0] == [(refused, "refused")]
    assert log.changes(start, reason="halted")[0] == []


def test_changes_of_the_fence_and_of_other_worlds_are_no_orders(log: Log) -> None:
    other = Log(log.desk.database, "other")
    start = log.changes(None)[1]
    other.accept()
    assert log.changes(start) == ([], start)
    log.desk.fence.halt(log.desk.world, "olga", "a test")
    log.desk.steps.resume(log.desk.world, "olga", "")
    changed, after = log.changes(start)
    assert changed == []
    assert after > start, "the next request does not read them again"
    assert log.changes(0)[0] == []
    assert len(other.changes(0)[0]) == 1


def test_an_apply_that_is_named_like_another_world_s_order_shows_nothing_of_it(log: Log) -> None:
    other = Log(log.desk.database, "other")
    theirs, start = other.accept(), log.changes(None)[1]
    log.desk.apply("live", run_id=theirs)
    changed, after = log.changes(start)
    assert (changed, after > start) == ([], True)


def test_a_world_without_orders_begins_at_its_end(database: Database) -> None:
    empty = Desk(database)
    with database.read() as session:
        rows = session.connection().execute(text("SELECT count(*) FROM order_log")).scalar_one()
    found = SqlOrderLog(database).changes(ChangesOfWorld(world_id=empty.world))
    assert (found.orders, found.more, bool(found.after)) == ((), False, bool(rows))
    assert SqlOrderLog(database).changes(ChangesOfWorld(world_id="none")).after == 0


def test_more_changes_than_one_answer_holds_come_in_several(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.fence.order_lists._CHANGES", 3)
    start = log.changes(None)[1]
    every = [log.accept() for _ in range(7)]
    found, after, more = list[str](), start, True
    while more:
        answer = log.log.changes(ChangesOfWorld(world_id=log.desk.world, after=after))
        found += ids(answer.orders)
        after, more = answer.after, answer.more
    assert found == every
