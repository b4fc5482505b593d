"""Acceptance of orders: the fence in front of the order log.

1. Callers submit orders; one transaction answers everything that arrived while the one before it ran.
2. The transaction shares each world's fence, reads the fence row, activations and sessions, checks
   `rules.refusal`, and writes a row for every order, accepted or refused.
3. An order id is answered once: a repetition gets the same answer.

The order log is its own audit trail: rows are only ever added, and changes of the fence lie between the
orders.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy import Connection

from activities.fence.halts import halt
from activities.fence.rows import ACCEPTED, REFUSED, FenceSnapshot, LogLine, order_rows
from activities.fence.rules import BreakerCount, FenceState, OrderContext, refusal
from activities.storage.database import Database
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction, utc_now
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict, Refusal

# Orders that one transaction answers.
_BATCH = 500

# Seconds that a transaction waits for callers that were just answered and will come again.
_GATHER_S = 0.001


class OrderAcceptance:
    """Accepts or refuses orders, one transaction at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows = order_rows(database)
        self._counted = set[str]()  # worlds with a circuit breaker
        self._waiting = deque[_Request]()
        self._mutex = threading.Lock()
        self._serving = False
        self._last_batch = 1
        self._expected = 1
        self._all_arrived = threading.Condition(self._mutex)
        self._threads = ThreadPoolExecutor(1, "fence")

    def publish(self, orders: Sequence[Order]) -> list[OrderVerdict]:
        """Return a verdict for each order, in the same order.

        Raises QmtlError: E_WORLD_UNKNOWN; E_ORDER_REUSED where an id was used for another order. Then none is
        accepted.
        """
        return self.submit(orders).result()

    def submit(self, orders: Sequence[Order]) -> "Future[list[OrderVerdict]]":
        """Start the same without waiting for its result."""
        request = _Request(orders)
        with self._mutex:
            self._waiting.append(request)
            if len(self._waiting) >= self._expected:
                self._all_arrived.notify()
            if not self._serving:
                self._serving = True
                self._threads.submit(self._serve)
        return request.answer

    def _serve(self) -> None:
        """Answer until no request waits."""
        while batch := self._next():
            self._answer_batch(batch)

    def _answer_batch(self, batch: "Sequence[_Request]") -> None:
        """Answer each request with its verdicts or an error.

        If a request holds a value that the database cannot store, each request is answered alone, so that
        only that one fails.
        """
        try:
            self._answer(batch)
        except BaseException as error:  # every caller of the batch gets it
            if len(batch) > 1 and isinstance(error, QmtlError) and error.status < 500:
                for request in batch:
                    self._answer_batch([request])
                return
            for request in batch:
                request.error = error
        for request in batch:
            request.set_answer()

    def _next(self) -> "list[_Request]":
        """Collect the next batch, waiting up to 1 ms for callers that were just answered.

        Otherwise callers split into two groups that take turns, and each pays for a whole transaction.
        """
        batch, count = list[_Request](), 0
        with self._mutex:
            self._expected = self._last_batch + len(self._waiting)
            self._all_arrived.wait_for(lambda: len(self._waiting) >= self._expected, _GATHER_S)
            while self._waiting and (not batch or count + len(self._waiting[0].orders) <= _BATCH):
                request = self._waiting.popleft()
                if request.answer.set_running_or_notify_cancel():  # else its caller has cancelled
                    count += len(request.orders)
                    batch.append(request)
            self._serving = bool(batch)
        self._last_batch = len(batch) or 1
        return batch

    def _answer(self, requests: "Sequence[_Request]") -> None:
        while True:
            try:
                return self._attempt(requests)
            except _CountedError:
                continue  # the next attempt holds its fence exclusively

    def _attempt(self, requests: "Sequence[_Request]") -> None:
        with self._database.write("fence", bookkeeping=True) as tx:
            orders = {order.order_id: order for request in requests for order in request.orders}
            connection = tx.session.connection()
            snapshot = self._rows.read(connection, orders.values(), self._counted)
            counted = {
                world_id
                for world_id, fence in snapshot.fences.items()
                if fence.max_orders is not None or fence.max_refused is not None
            }
            if (
                not counted <= self._counted
            ):  # a circuit breaker was set since: counting needs the fence exclusively
                self._counted |= counted
                raise _CountedError
            good = [request for request in requests if not request.refuse(snapshot, orders)]
            asked = [order for request in good for order in request.orders]
            verdicts = {
                order.order_id: _earlier_verdict(snapshot.earlier[order.order_id])
                for order in asked
                if order.order_id in snapshot.earlier
            }
            verdicts |= self._judge(
                tx,
                connection,
                {order.order_id: order for order in asked if order.order_id not in snapshot.earlier},
                snapshot,
            )
            for request in good:
                request.verdicts = [verdicts[order.order_id] for order in request.orders]

    def _judge(
        self, tx: Transaction, connection: Connection, orders: dict[str, Order], snapshot: FenceSnapshot
    ) -> dict[str, OrderVerdict]:
        """Decide about new orders, and write each into the log."""
        if not orders:
            return {}
        verdicts, lines, now = {}, [], utc_now()
        counts = {world_id: BreakerCount(fence, now) for world_id, fence in snapshot.fences.items()}
        for _, order in sorted(orders.items()):  # every writer takes index locks in the same order
            fence = snapshot.fences[order.world_id]
            reason = refusal(
                OrderContext(
                    order,
                    fence,
                    snapshot.activations.get((order.world_id, order.strategy_id)),
                    snapshot.sessions.get(order.session_id),
                    now,
                )
            )
            if reason is None and counts[order.world_id].tripped:  # by an order before it in this batch
                reason = Refusal.CIRCUIT_BREAKER
            counts[order.world_id].count(reason)
            verdicts[order.order_id] = OrderVerdict(
                order_id=order.order_id, accepted=reason is None, reason=reason, epoch=fence.epoch
            )
            kind, why = (REFUSED, reason.value) if reason else (ACCEPTED, "")
            lines.append(
                LogLine(
                    now,
                    order.world_id,
                    kind,
                    order.order_id,
                    fence.epoch,
                    order.strategy_id,
                    why,
                    order.model_dump_json(),
                )
            )
        written = self._rows.write(connection, lines)
        if len(written) < len(lines):  # another Gateway wrote the same ids first: its answers stand
            earlier = self._rows.earlier(connection, sorted(set(orders) - written))
            verdicts |= {order_id: _earlier_verdict(line) for order_id, line in earlier.items()}
        self._count(tx, snapshot.fences, counts)
        return verdicts

    @staticmethod
    def _count(tx: Transaction, fences: dict[str, FenceState], counts: dict[str, BreakerCount]) -> None:
        """Store the counts of worlds with a circuit breaker, and halt those where it has tripped."""
        for world_id, fence in fences.items():
            if fence.max_orders is None and fence.max_refused is None:
                continue
            row = tx.session.get_one(FenceRow, world_id, populate_existing=True)
            row.minute, row.orders, row.refused = fence.minute, fence.orders, fence.refused
            tx.session.add(row)
            if counts[world_id].tripped and not row.halted:
                halt(tx, row, counts[world_id].tripped)


def _earlier_verdict(line: LogLine) -> OrderVerdict:
    """Return the answer that an order got before."""
    return OrderVerdict(
        order_id=line.ref,
        accepted=line.kind == ACCEPTED,
        reason=Refusal(line.reason) if line.reason else None,
        epoch=line.epoch,
    )


class _CountedError(Exception):
    """A world has a circuit breaker, and its fence was only shared."""


class _Request:
    """The orders of one caller, and the answer: `verdicts`, or the `error` that refuses all of them."""

    __slots__ = ("answer", "error", "orders", "verdicts")

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders = orders
        self.answer = Future[list[OrderVerdict]]()
        self.verdicts: list[OrderVerdict] = []
        self.error: BaseException | None = None

    def refuse(self, snapshot: FenceSnapshot, orders: dict[str, Order]) -> bool:
        """Check whether the whole request is refused, and set its error."""
        for order in self.orders:
            earlier = snapshot.earlier.get(order.order_id)
            if order.world_id not in snapshot.fences:
                self.error = QmtlError(
                    "E_WORLD_UNKNOWN", f"there is no world {order.world_id!r}", "qmtl world list prints them"
                )
            elif order != (
                orders[order.order_id] if earlier is None else Order.model_validate_json(earlier.body)
            ):
                self.error = QmtlError(
                    "E_ORDER_REUSED",
                    f"the order id {order.order_id[:64]} was used for another order",
                    "give every order an id of its own",
                )
        return self.error is not None

    def set_answer(self) -> None:
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.verdicts)
