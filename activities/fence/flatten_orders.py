"""The orders of flattens."""

import uuid
from decimal import Decimal
from typing import Any

from activities.fence.rules import FLATTEN
from qmtl_sdk.contracts.orders import Order, order_id_prefix


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
