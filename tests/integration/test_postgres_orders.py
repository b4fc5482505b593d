"""The statements of the fence on PostgreSQL, which go to the server as texts of several."""

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest

from activities.fence.acceptance import OrderAcceptance
from activities.fence.log_line import ACCEPTED, LogLine, NewLine
from activities.fence.postgres_statements import PostgresStatements
from activities.fence.snapshot import FenceHeldError
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction, utc_before
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.orders import Order
from tests.support.desk import Desk

pytestmark = pytest.mark.parametrize("dsn", ["postgres"], indirect=True)


@pytest.fixture
def desk(database: Database) -> Desk:
    desk = Desk(database)
    desk.apply("dryrun")
    return desk


def line_of(order: Order, at: str) -> NewLine:
    line = LogLine(
        at, order.world_id, ACCEPTED, order.order_id, 1, order.strategy_id, "", order.model_dump_json()
    )
    return NewLine.of(line, order)


def test_an_order_that_another_gateway_wrote_first_keeps_its_line(database: Database, desk: Desk) -> None:
    session, statements = desk.session(), PostgresStatements()
    first, second = (desk.order(session, desk.epoch) for _ in range(2))
    earlier = utc_before(timedelta(seconds=1))
    with database.write("fence", bookkeeping=True) as tx:
        statements.read(tx.connection, [first, second], set(), wait=False)
        with database.write("test", bookkeeping=True) as other:
            statements.write(other.connection, [line_of(first, earlier)])
        mine = [line_of(order, utc_before(timedelta())) for order in (first, second)]
        assert statements.write_last(tx.connection, mine) == {second.order_id}
    with database.read() as read:
        found = statements.earlier(read.connection(), [first.order_id, second.order_id])
    assert found[first.order_id].at == earlier
    assert found[second.order_id] == mine[1].line


def test_a_connection_that_forgot_its_statements_prepares_them_again(database: Database, desk: Desk) -> None:
    """The driver lets a connection forget them after some errors."""
    session, acceptance = desk.session(), OrderAcceptance(database)
    for _ in range(2):
        assert acceptance.publish([desk.order(session, desk.epoch)], desk.caller)[0].accepted
        with database.reserved(), database.write("test", bookkeeping=True) as tx:
            tx.connection.exec_driver_sql("DEALLOCATE ALL")
    assert acceptance.publish([desk.order(session, desk.epoch)], desk.caller)[0].accepted


def _reads(tx: Transaction, orders: list[Order], tokens: set[str]) -> None:
    PostgresStatements().read(tx.connection, orders, tokens, wait=False)


def _writes(tx: Transaction, orders: list[Order], tokens: set[str]) -> None:
    _reads(tx, orders, set())
    lines = [line_of(order, token) for order in orders for token in tokens]
    PostgresStatements().write_last(tx.connection, lines)


@pytest.mark.parametrize("act", [_reads, _writes])
def test_a_text_that_ends_a_literal_ends_no_statement(
    database: Database, desk: Desk, act: Callable[[Transaction, list[Order], set[str]], None]
) -> None:
    """Texts are checked at the door; here they come without that."""
    order = desk.order(desk.session(), desk.epoch)
    for text in ("'); DROP TABLE order_log; --", "\\'); DROP TABLE order_log; --", '"}', "%s $1 {}"):
        with database.write("fence", bookkeeping=True) as tx:
            act(tx, [order], {text})
            tx.connection.rollback()
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM order_log").scalar_one()
    error = pytest.raises(QmtlError, match="E_BODY_INVALID")
    with error, database.write("fence", bookkeeping=True) as tx:
        act(tx, [order], {"zero \0 byte"})


def test_a_transaction_that_has_begun_keeps_its_locks_and_what_it_wrote(
    dsn: str, database: Database, desk: Desk
) -> None:
    """The first read of a connection rolled back: a rebalancing went on without its locks and checks."""
    order = desk.order("0" * 32, desk.epoch)
    with closing(open_database(dsn)) as fresh, fresh.write("test", bookkeeping=True) as tx:
        tx.lock("allocation")
        tx.session.get_one(FenceRow, desk.world).minute = "kept"
        tx.session.flush()
        found = PostgresStatements().read(tx.connection, [order], set(), wait=False)
        assert found.fences[desk.world].minute == "kept"
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert tx.connection.exec_driver_sql(held).scalar_one() == 2, "that of allocations, and the fence"


def test_of_two_worlds_the_held_one_is_named_and_the_other_one_is_free_again(
    database: Database, desk: Desk
) -> None:
    other = Desk(database, "v")
    orders = [desk.order("0" * 32, 1), other.order("0" * 32, 1)]
    with database.write("test", bookkeeping=True) as holder:
        holder.lock(f"fence:{desk.world}")
        with pytest.raises(FenceHeldError) as held, database.write("fence", bookkeeping=True) as tx:
            PostgresStatements().read(tx.connection, orders, set(), wait=False)
        assert held.value.worlds == {desk.world}
        assert other.fence.halt(other.world, "olga", "stop", 0.5), "its fence was still locked"
