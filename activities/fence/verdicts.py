"""The answers of one transaction of the fence, one for each order that was asked about."""

from dataclasses import dataclass

from activities.fence.log_line import ACCEPTED, LogLine
from activities.fence.statements import FenceSnapshot
from qmtl_sdk.contracts.orders import Order, OrderVerdict, Refusal


@dataclass(frozen=True)
class BatchVerdicts:
    """What a transaction answers: the line of each id, and the orders of the lines that it wrote itself."""

    snapshot: FenceSnapshot
    written: dict[str, Order]
    lines: dict[str, LogLine]

    def verdict(self, order: Order, authorised: bool) -> OrderVerdict:
        """Return the verdict of the order's id, or why this order does not get it.

        `authorised`: its caller holds its session.
        """
        epoch = self.snapshot.fences[order.world_id].epoch
        if not authorised:
            return _refused(order, Refusal.NO_SESSION, epoch)
        line = self.lines[order.order_id]
        if self.written.get(order.order_id) is not order and not _has_content_of(line, order):
            return _refused(order, Refusal.ORDER_REUSED, epoch)
        reason = Refusal(line.reason) if line.reason else None
        return OrderVerdict(
            order_id=line.ref, accepted=line.kind == ACCEPTED, reason=reason, epoch=line.epoch
        )


def _refused(order: Order, reason: Refusal, epoch: int) -> OrderVerdict:
    """Return a refusal that leaves no row."""
    return OrderVerdict(order_id=order.order_id, accepted=False, reason=reason, epoch=epoch)


def _has_content_of(line: LogLine, order: Order) -> bool:
    try:
        return line.order().content == order.content
    except ValueError:  # a row of another version: nothing says that it is the same order
        return False
