"""A row of the order log: its kinds, the conditions of its partial indexes, and an order's row."""

from typing import NamedTuple

from sqlalchemy import text

from qmtl_sdk.contracts.orders import Order, WithheldOrder

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
