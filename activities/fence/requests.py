"""A caller's request to accept orders, and the batches of one transaction."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from activities.access.sql import require_good
from activities.fence.callers import OrderCaller
from activities.fence.snapshot import FenceSnapshot
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import OrderRequest, OrderVerdict

# Orders that one transaction answers.
_BATCH = 500


class OrdersRequest:
    """The orders of one caller, and the answer: `verdicts`, or the `error` that refuses all of them."""

    __slots__ = ("answer", "authorised", "caller", "error", "orders", "since", "verdicts", "worlds")

    def __init__(self, orders: Sequence[OrderRequest], caller: OrderCaller, since: float) -> None:
        self.orders = orders
        self.caller = caller
        self.worlds = frozenset(order.world_id for order in orders)
        self.since = since
        self.answer = Future[list[OrderVerdict]]()
        self.authorised: list[bool] = []
        self.verdicts: list[OrderVerdict] = []
        self.error: BaseException | None = None

    def is_valid(self, snapshot: FenceSnapshot) -> bool:
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

    def authorised_orders(self, snapshot: FenceSnapshot) -> list[OrderRequest]:
        """List the orders whose session the caller holds; `authorised` says of each whether it is one."""
        self.authorised = [self.caller.may_send(order, snapshot.sessions) for order in self.orders]
        return [order for order, authorised in zip(self.orders, self.authorised, strict=True) if authorised]

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
