"""Orders out of a strategy: the node that hands its input's orders on. Whether they leave is not its business (`runtime.orders`)."""

from collections.abc import Mapping
from typing import Any

from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView

SIDES = {"BUY", "SELL"}


class TradeOrderPublisherNode(Node):
    """Its input's newest row is an order: `action` (BUY or SELL) and `size`."""

    def __init__(self, input: Node, *, name: str = "orders") -> None:
        super().__init__(input, _passed_on, name=name)

    @staticmethod
    def order(payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """The order that a row asks for; None for a row that asks for none."""
        side, size = str(payload.get("action", "")).upper(), payload.get("size")
        if side not in SIDES or not isinstance(size, int | float) or isinstance(size, bool) or not size > 0:
            return None
        return {**payload, "action": side, "size": float(size)}


def _passed_on(view: CacheView) -> dict[str, float]:
    window = view[next(iter(view))]
    return {name: float(values[-1]) for name, values in window.columns.items()}
