"""A row of the order log: its kinds, the conditions of its partial indexes, and what is written with it."""

from typing import NamedTuple, Self

from sqlalchemy import text

from qmtl_sdk.contracts.orders import Order, Origin, WithheldOrder

ACCEPTED = "accepted"
REFUSED = "refused"
WITHHELD = "withheld"
FILL = "fill"
BOOKING = "booking"

# The conditions of the log's partial indexes, in their exact words.
IS_VERDICT = text("order_log.kind IN ('accepted', 'refused', 'withheld')")
HAS_REASON = text("order_log.kind IN ('refused', 'withheld')")
IS_UNDERWAY = text("order_log.kind IN ('sent', 'partially_filled', 'fill')")
IS_END = text("order_log.kind IN ('filled', 'cancelled', 'rejected', 'expired')")


class LogLine(NamedTuple):
    """A row of the order log: an order's verdict, a change of its state, or a change of the fence.

    `ref` is the order's id; for a change of the fence the apply's run_id, the world or the strategy; for a
    booking the name of its entry in the ledger. `body` is the order, its new fills, the entry, or empty. The
    kind `fill` is of fills that leave the order's state as it is. `epoch` is the world's at that moment.
    """

    at: str
    world_id: str
    kind: str
    ref: str
    epoch: int
    strategy_id: str
    reason: str
    body: str

    def order(self) -> Order:
        """Read the order. Raises ValueError where the row is not of this version."""
        if self.kind == WITHHELD:
            return WithheldOrder.model_validate_json(self.body).order
        return Order.model_validate_json(self.body)


class NewLine(NamedTuple):
    """A row for the order log, and what an open order has of it: `quantity` is signed (positive buys)."""

    line: LogLine
    domain: str = ""
    symbol: str = ""
    quantity: str = ""
    price: str = ""
    origin: Origin = "strategy"

    @classmethod
    def of(cls, line: LogLine, order: Order) -> Self:
        """Build the row of an order's verdict."""
        price = str(order.reference_price or "")
        return cls(line, order.execution_domain.value, order.symbol, str(order.signed), price, order.origin)
