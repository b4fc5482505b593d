"""The order router: one order or broker that fails does not stop the others."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import text

from activities.brokers.paper import PaperBroker
from activities.brokers.router import OrderRouter
from activities.fence.acceptance import OrderAcceptance
from activities.fence.order_log import SqlOrderLog
from activities.storage.database import Database
from activities.storage.elected import run_elected
from activities.storage.opening import open_database
from activities.storage.postgres import lock_key
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Fill, Order
from tests.support.desk import Desk
from tests.support.machine import wait_for


class PickyBroker(PaperBroker):
    """Raises `error` where one of the orders is `bad`; counts its calls."""

    def __init__(self, bad: str, error: Exception) -> None:
        super().__init__("picky")
        self.bad = bad
        self.error = error
        self.calls = 0

    def place(self, orders: Sequence[tuple[Order, datetime]], now: datetime) -> list[Fill]:
        self.calls += 1
        if any(order.order_id == self.bad for order, _ in orders):
            raise self.error
        return super().place(orders, now)


@pytest.fixture
def desk(database: Database) -> Desk:
    """In paper trading."""
    found = Desk(database)
    found.apply("dryrun")
    return found


def accepted(desk: Desk, count: int) -> list[Order]:
    session = desk.session()
    orders = [desk.order(session, desk.epoch) for _ in range(count)]
    assert all(verdict.accepted for verdict in OrderAcceptance(desk.database).publish(orders))
    return orders


def filled(desk: Desk) -> set[str]:
    records = SqlOrderLog(desk.database).orders(desk.world)
    return {record.order.order_id for record in records if record.state == "filled"}


def test_an_order_for_which_the_broker_raises_does_not_stop_the_others(desk: Desk) -> None:
    orders = accepted(desk, 5)
    broker = PickyBroker(orders[1].order_id, ZeroDivisionError("a bug of the broker"))
    router = OrderRouter(desk.database, SqlOrderLog(desk.database), {Domain.DRYRUN: broker})
    router.step()
    assert filled(desk) == {order.order_id for order in orders if order is not orders[1]}
    calls = broker.calls
    router.step()
    assert broker.calls == calls, "an order that failed a moment ago waits"


def test_a_broker_that_is_away_is_asked_once_for_a_batch_and_later_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = accepted(desk, 5)
    broker = PickyBroker(orders[1].order_id, QmtlError("E_UNAVAILABLE", "the venue is away"))
    router = OrderRouter(desk.database, SqlOrderLog(desk.database), {Domain.DRYRUN: broker})
    monkeypatch.setattr("activities.brokers.router._RETRY_S", 0.0)
    router.step()
    assert broker.calls == 1
    assert filled(desk) == set()
    broker.bad = ""
    router.step()
    assert filled(desk) == {order.order_id for order in orders}


def test_an_order_whose_row_cannot_be_read_does_not_stop_the_others(desk: Desk) -> None:
    orders = accepted(desk, 3)
    columns = "at, world_id, kind, epoch, strategy_id, reason"
    with desk.database.write("test", bookkeeping=True) as tx:
        connection, of = tx.session.connection(), {"ref": orders[0].order_id}
        connection.execute(
            text(
                f"INSERT INTO order_log ({columns}, ref, body) "
                f"SELECT {columns}, 'order:old', '{{}}' FROM order_log WHERE ref = :ref"
            ),
            of,
        )
        connection.execute(
            text(
                "INSERT INTO open_order (order_id, world_id, accepted_at) "
                "SELECT 'order:old', world_id, '2020-01-01T00:00:00+00:00' FROM open_order "
                "WHERE order_id = :ref"
            ),
            of,
        )
    router = OrderRouter(desk.database, SqlOrderLog(desk.database), {Domain.DRYRUN: PaperBroker("paper")})
    router.step()
    with desk.database.read() as session:
        rows = session.connection().execute(text("SELECT ref FROM order_log WHERE kind = 'filled'"))
        assert {row.ref for row in rows} == {order.order_id for order in orders}
    assert [row.order_id for row in SqlOrderLog(desk.database).waiting(10)] == ["order:old"]


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
