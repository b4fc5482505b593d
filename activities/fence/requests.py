"""A caller's request to accept orders, and the batches of one transaction."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from activities.access.sql import require_good
from activities.fence.proofs import OrderCaller
from activities.fence.rows import FenceSnapshot
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict

# Orders that one transaction answers.
_BATCH = 500


class OrdersRequest:
    """The orders of one caller, and the answer: `verdicts`, or the `error` that refuses all of them."""

    __slots__ = ("answer", "caller", "error", "orders", "proven", "since", "verdicts", "worlds")

    def __init__(self, orders: Sequence[Order], caller: OrderCaller, since: float) -> None:
        self.orders = orders
        self.caller = caller
        self.worlds = frozenset(order.world_id for order in orders)
        self.since = since
        self.answer = Future[list[OrderVerdict]]()
        self.proven: list[bool] = []
        self.verdicts: list[OrderVerdict] = []
        self.error: BaseException | None = None

    def may_be_judged(self, snapshot: FenceSnapshot) -> bool:
        """Check that the token is good and that the world of each order exists; set the error."""
        token_id = self.caller.token_id
        if token_id:
            try:
                require_good(snapshot.tokens.get(token_id, "unknown"))
            except QmtlError as error:
                self.error = error
                return False
        for order in self.orders:
            if order.world_id not in snapshot.fences:
                self.error = QmtlError(
                    "E_WORLD_UNKNOWN", f"there is no world {order.world_id!r}", "qmtl world list prints them"
                )
        return self.error is None

    def provable_orders(self, snapshot: FenceSnapshot) -> list[Order]:
        """List the orders whose session the caller holds; `proven` says of each whether it is one."""
        self.proven = [self.caller.may_send(order, snapshot.sessions) for order in self.orders]
        return [order for order, proven in zip(self.orders, self.proven, strict=True) if proven]

    def set_answer(self) -> None:
        """Give the caller the verdicts or the error."""
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.verdicts)


def next_batch(waiting: "deque[OrdersRequest]") -> list[OrdersRequest]:
    """Take the requests of one transaction. Requests whose caller has cancelled are dropped."""
    batch, count = list[OrdersRequest](), 0
    while waiting and (not batch or count + len(waiting[0].orders) <= _BATCH):
        request = waiting.popleft()
        if request.answer.running() or request.answer.set_running_or_notify_cancel():
            count += len(request.orders)
            batch.append(request)
    return batch
