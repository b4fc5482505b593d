"""The node that publishes a strategy's orders. Whether an order is sent is decided by `runtime.orders`."""

import math
from collections.abc import Mapping
from typing import Any

from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView

SIDES = {"BUY", "SELL"}
"""The actions of an order that is fed by hand."""

ORDER = ("quantity", "price")
"""The columns of an order that a running strategy publishes."""


class TradeOrderPublisherNode(Node):
    """Publishes the newest row of its input as an order.

    In a running strategy, a row has `quantity` (signed: positive buys; 0 or missing is no order) and
    optionally `price`. `symbol` is the instrument to trade; it defaults to that of the one price stream that
    the input derives from. A row that is fed by hand has `action` (BUY or SELL) and `size`.
    """

    def __init__(self, input: Node, *, symbol: str = "", name: str = "orders") -> None:
        super().__init__(
            input, _newest_order, name=name, period=1, params={"symbol": symbol} if symbol else None
        )
        self.symbol = symbol

    @staticmethod
    def quantity(row: Mapping[str, float]) -> float:
        """Return the signed quantity to trade; 0 for a row without an order."""
        found = row.get("quantity", 0.0)
        return found if math.isfinite(found) else 0.0

    @staticmethod
    def order(payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the order in a row that was fed by hand; None for a row without an order."""
        side = str(payload.get("action", "")).upper()
        size = payload.get("size")
        if side not in SIDES or not isinstance(size, int | float) or isinstance(size, bool) or not size > 0:
            return None
        return {**payload, "action": side, "size": float(size)}


def _newest_order(view: CacheView) -> dict[str, float]:
    window = view[next(iter(view))]
    # A column `position` beside `quantity` is left to the input: it would count as a second instrument here.
    wanted = ORDER if "quantity" in window.columns else tuple(window.columns)
    return {name: float(window.columns[name][-1]) for name in wanted if name in window.columns}
