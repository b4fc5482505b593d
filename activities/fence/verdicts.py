"""The answers of one transaction of the fence, one for each order or target that was asked about."""

from dataclasses import dataclass
from decimal import Decimal

from activities.fence.log_line import ACCEPTED, LogLine
from activities.fence.snapshot import FenceSnapshot
from qmtl_sdk.contracts.amounts import ZERO
from qmtl_sdk.contracts.orders import Order, OrderRequest, OrderVerdict
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import TargetVerdict


@dataclass(frozen=True)
class BatchVerdicts:
    """What a transaction answers.

    `lines`: the line of each id. `written`: the requests whose lines it wrote itself. `unwritten`: answers to
    targets that leave no line, by order id: the refusal, or None where nothing is missing.
    """

    snapshot: FenceSnapshot
    written: dict[str, OrderRequest]
    lines: dict[str, LogLine]
    unwritten: dict[str, Refusal | None]

    def verdict(self, request: OrderRequest, authorised: bool) -> OrderVerdict:
        """Return the verdict of the request's id, or why this request does not get it.

        `authorised`: its caller holds its session.
        """
        epoch = self.snapshot.fences[request.world_id].epoch
        if not authorised:
            return _answer(request, Refusal.NO_SESSION, epoch)
        line = self.lines.get(request.order_id)
        if line is None:
            return _answer(request, self.unwritten[request.order_id], epoch)
        written = self.written.get(request.order_id) is request
        order = None if written and isinstance(request, Order) else _order_of(line)
        if not written and not _is_of(request, order):
            return _answer(request, Refusal.ORDER_REUSED, epoch)
        reason = Refusal(line.reason) if line.reason else None
        accepted = line.kind == ACCEPTED
        return _answer(request, reason, line.epoch, order.signed if order and accepted else ZERO, accepted)


def _answer(
    request: OrderRequest,
    reason: Refusal | None,
    epoch: int,
    ordered: Decimal = ZERO,
    accepted: bool | None = None,
) -> OrderVerdict:
    accepted = reason is None if accepted is None else accepted
    if isinstance(request, Order):
        return OrderVerdict(order_id=request.order_id, accepted=accepted, reason=reason, epoch=epoch)
    return TargetVerdict(
        order_id=request.order_id, accepted=accepted, reason=reason, epoch=epoch, ordered=ordered
    )


def _order_of(line: LogLine) -> Order | None:
    try:
        return line.order()
    except ValueError:  # a row of another version: nothing says what it ordered
        return None


def _is_of(request: OrderRequest, order: Order | None) -> bool:
    """Return whether an order is the one that was asked for, or one for the same target."""
    if order is None:
        return False
    if isinstance(request, Order):
        return order.content == request.content
    return all(getattr(order, name) == getattr(request, name) for name in _OF_TARGET)


_OF_TARGET = ("world_id", "strategy_id", "session_id", "execution_domain", "symbol", "decided_at")
