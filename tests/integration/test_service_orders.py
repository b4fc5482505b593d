"""Orders that the service decides: each is answered once, and no transaction writes them without a record."""

from decimal import Decimal

import pytest
from sqlalchemy import text

from activities.fence.flatten_orders import flatten_order
from activities.fence.service_orders import accept_orders
from activities.fence.state import locked_fence
from activities.storage.database import Database
from activities.storage.tables import FlatteningRow
from qmtl_sdk.contracts.orders import Order
from tests.support.flatten_floor import Floor


def closing(floor: Floor) -> Order:
    row = FlatteningRow(
        world_id=floor.world, strategy_id=floor.strategy, execution_domain="dryrun", flatten_id="f"
    )
    return flatten_order(row, "AAPL", Decimal("-2"), Decimal(100), 1)


def test_an_order_that_is_accepted_again_stands_once(database: Database) -> None:
    floor = Floor(database)
    first, second = closing(floor), closing(floor)
    with database.write("test", bookkeeping=True) as tx:
        fence = locked_fence(tx, floor.world)
        assert accept_orders(tx, fence, [first]) == {first.order_id}
        assert accept_orders(tx, fence, [first, second]) == {second.order_id}
        assert accept_orders(tx, fence, []) == set()
    assert [item.order for item in floor.opened()] == [first, second]
    with database.read() as session:
        found = session.connection().execute(text("SELECT order_id, origin FROM open_order")).all()
        counted = session.connection().execute(text("SELECT kind, reason, orders FROM order_count")).all()
    assert {tuple(row) for row in found} == {(first.order_id, "flatten"), (second.order_id, "flatten")}
    assert [tuple(row) for row in counted] == [("accepted", "", 2)]


def test_orders_that_nothing_records_are_not_committed(database: Database) -> None:
    floor = Floor(database)
    with pytest.raises(RuntimeError, match="without a record"), database.write("test") as tx:
        accept_orders(tx, locked_fence(tx, floor.world), [closing(floor)])
    assert not floor.opened()
