"""The orders of flattens: how they are built, and accepted without the rules of strategies' orders."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import insert, update

from activities.fence.log_line import ACCEPTED, LogLine
from activities.fence.rules import FLATTEN
from activities.storage.tables import FenceRow, OpenOrderRow, OrderCountRow, OrderLogRow
from activities.storage.transactions import Transaction, table_of, utc_text
from qmtl_sdk.contracts.orders import Order, OrderState, order_id_prefix

_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)
_count = table_of(OrderCountRow)


def flatten_order(row: Any, symbol: str, quantity: Decimal, mark: Decimal, epoch: int) -> Order:
    """Build an order that closes `quantity` (positive buys) of a position, whose mark is its price.

    Its id is random: nobody can use it before. (Any: the columns of `FlatteningRow`.)
    """
    return Order.model_validate(
        {
            "order_id": order_id_prefix(row.world_id, row.strategy_id) + uuid.uuid4().hex,
            "world_id": row.world_id,
            "strategy_id": row.strategy_id,
            "execution_domain": row.execution_domain,
            "epoch": epoch,
            "symbol": symbol,
            "side": "buy" if quantity > 0 else "sell",
            "quantity": quantity.copy_abs(),
            "reference_price": mark or None,
            "reduce_only": True,
            "origin": FLATTEN,
        }
    )


def accept_orders(tx: Transaction, fence: FenceRow, orders: Sequence[Order]) -> None:
    """Write orders into the log and the table of open orders, and count them. The caller holds the fence."""
    if not orders:
        return
    at = datetime.now(UTC)
    # A microsecond apart, as those of strategies, so that the router sends them in this order.
    dated = [(utc_text(at + timedelta(microseconds=n)), order) for n, order in enumerate(orders)]
    tx.connection.execute(insert(_log), [_line(fence, time, order)._asdict() for time, order in dated])
    tx.connection.execute(insert(_open), [_open_row(fence, time, order) for time, order in dated])
    key = {"world_id": fence.world_id, "kind": ACCEPTED, "reason": ""}
    tx.insert_new_values(_count, [{**key, "orders": 0}])
    mine = [_count.c[name] == value for name, value in key.items()]
    tx.connection.execute(update(_count).where(*mine).values(orders=_count.c.orders + len(orders)))


def _line(fence: FenceRow, time: str, order: Order) -> LogLine:
    body = order.model_dump_json()
    return LogLine(time, order.world_id, ACCEPTED, order.order_id, fence.epoch, order.strategy_id, "", body)


def _open_row(fence: FenceRow, time: str, order: Order) -> dict[str, object]:
    return {
        "order_id": order.order_id,
        "world_id": order.world_id,
        "strategy_id": order.strategy_id,
        "execution_domain": order.execution_domain.value,
        "symbol": order.symbol,
        "quantity": str(order.signed),
        "price": str(order.reference_price or ""),
        "epoch": fence.epoch,
        "accepted_at": time,
        "next_at": time,
        "state": OrderState.ACCEPTED.value,
        "sent_at": "",
        "acknowledged": False,
        "filled_quantity": "",
        "cancel_reason": "",
        "origin": order.origin,
    }
