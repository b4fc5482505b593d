"""Orders out of a strategy: the node that hands its input's orders on. Whether they leave is not its business (`runtime.orders`)."""

import math
from collections.abc import Mapping
from typing import Any

from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView

SIDES = {"BUY", "SELL"}
ORDER = ("quantity", "price")


class TradeOrderPublisherNode(Node):
    """Its input's newest row is an order.

    While the strategy runs: `quantity` (signed, positive buys; 0 or missing: no order) and, if the input has one, `price`. `symbol` is what is traded; left out, it is that of the one
    stream with prices that the input derives from. Fed by hand, a row is `action` (BUY or SELL) and `size`.
    """

    def __init__(self, input: Node, *, symbol: str = "", name: str = "orders") -> None:
        super().__init__(
            input, _passed_on, name=name, period=1, params={"symbol": symbol} if symbol else None
        )
        self.symbol = symbol

    @staticmethod
    def quantity(row: Mapping[str, float]) -> float:
        """The signed quantity that a row asks for; 0 for a row that asks for none."""
        found = row.get("quantity", 0.0)
        return found if math.isfinite(found) else 0.0

    @staticmethod
    def order(payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """The order that a row fed by hand asks for; None for a row that asks for none."""
        side, size = str(payload.get("action", "")).upper(), payload.get("size")
        if side not in SIDES or not isinstance(size, int | float) or isinstance(size, bool) or not size > 0:
            return None
        return {**payload, "action": side, "size": float(size)}


def _passed_on(view: CacheView) -> dict[str, float]:
    window = view[next(iter(view))]
    wanted = (
        ORDER if "quantity" in window.columns else tuple(window.columns)
    )  # a position beside it is the input's, not held twice
    return {name: float(window.columns[name][-1]) for name in wanted if name in window.columns}
