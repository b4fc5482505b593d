"""Acceptance of orders: the fence in front of the order log.

1. Callers submit orders; one transaction answers everything that arrived while the one before it ran.
2. The transaction locks each world's fence, and reads the fence row, activations, sessions and the callers'
   tokens. It refuses an order whose caller does not hold its session, without a row (`callers.py`). For every
   other order it checks `rules.refusal` and writes a row, accepted or refused.
3. An order id is answered once: a repetition gets the same answer. Another order under the id is refused.
4. Requests of a world whose fence is held wait in a queue of its own (`lock_waits.py`).

The order log is its own audit trail: rows are only ever added, and changes of the fence lie between the
orders.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta

from sqlalchemy import Connection

from activities.fence.callers import OrderCaller
from activities.fence.halts import halt
from activities.fence.lock_waits import LockWaitQueues
from activities.fence.log_line import ACCEPTED, REFUSED, LogLine
from activities.fence.requests import OrdersRequest, next_batch
from activities.fence.rules import BreakerCount, FenceState, OrderContext, refusal
from activities.fence.statements import FenceHeldError, FenceSnapshot, statements_of
from activities.fence.verdicts import BatchVerdicts
from activities.storage.database import Database
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction, utc_before, utc_now, utc_text
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict, Refusal

NO_ROUTER_AFTER_S = 20.0
"""Seconds without a working order router after which live orders are refused, unless a setting says so."""

# Seconds that a transaction waits for callers that were just answered and will come again.
_GATHER_S = 0.001


class OrderAcceptance:
    """Accepts or refuses orders.

    One transaction at a time, besides those of worlds whose fence is held (`lock_waits.py`).
    """

    def __init__(self, database: Database, no_router_after_s: float = NO_ROUTER_AFTER_S) -> None:
        """`no_router_after_s`: seconds without a working order router after which live orders are refused."""
        self._database = database
        self._no_router_after = timedelta(seconds=no_router_after_s)
        self._statements = statements_of(database)
        self._held = LockWaitQueues(lambda batch: self._answer_batch(batch, wait=True), self._enqueue)
        self._waiting = deque[OrdersRequest]()
        self._mutex = threading.Lock()
        self._serving = False
        self._last_batch = 1
        self._expected = 1
        self._all_arrived = threading.Condition(self._mutex)
        self._threads = ThreadPoolExecutor(1, "fence")

    def publish(self, orders: Sequence[Order], caller: OrderCaller) -> list[OrderVerdict]:
        """Return a verdict for each order, in the same order.

        Raises QmtlError: E_WORLD_UNKNOWN; E_TOKEN_REVOKED where the caller's token is revoked or unknown;
        E_UNAVAILABLE where other transactions held the fence of a world for 10 s. Then none is accepted.
        """
        return self.submit(orders, caller).result()

    def submit(self, orders: Sequence[Order], caller: OrderCaller) -> "Future[list[OrderVerdict]]":
        """Start the same without waiting for its result."""
        request = OrdersRequest(orders, caller, time.monotonic())
        if not self._held.enqueue_if_held(request):
            self._enqueue([request])
        return request.answer

    def _enqueue(self, requests: Sequence[OrdersRequest]) -> None:
        """Let requests wait for the next transaction."""
        with self._mutex:
            self._waiting.extend(requests)
            if len(self._waiting) >= self._expected:
                self._all_arrived.notify()
            if self._waiting and not self._serving:
                self._serving = True
                self._threads.submit(self._serve)

    def _serve(self) -> None:
        """Answer until no request waits."""
        while batch := self._next():
            while batch:
                try:
                    self._answer_batch(batch, wait=False)
                    break
                except FenceHeldError as error:
                    held = error.worlds
                    self._held.enqueue([request for request in batch if request.worlds & held], held)
                    batch = [request for request in batch if not request.worlds & held]

    def _answer_batch(self, batch: Sequence[OrdersRequest], wait: bool) -> None:
        """Answer each request with its verdicts or an error.

        If a request holds a value that the database cannot store, each request is answered alone, so that
        only that one fails. Raises FenceHeldError, and then has answered none, or those before it.
        """
        try:
            self._answer(batch, wait)
        except FenceHeldError:
            raise
        except BaseException as error:  # every caller of the batch gets it
            if len(batch) > 1 and isinstance(error, QmtlError) and error.status < 500:
                self._answer_alone(batch, wait)
                return
            for request in batch:
                request.error = error
        for request in batch:
            request.set_answer()

    def _answer_alone(self, batch: Sequence[OrdersRequest], wait: bool) -> None:
        """Answer each request in a transaction of its own."""
        for request in batch:
            try:
                self._answer_batch([request], wait)
            except FenceHeldError as error:
                self._held.enqueue([request], error.worlds)

    def _next(self) -> list[OrdersRequest]:
        """Collect the next batch, waiting up to 1 ms for callers that were just answered.

        Otherwise callers split into two groups that take turns, and each pays for a whole transaction.
        """
        with self._mutex:
            self._expected = self._last_batch + len(self._waiting)
            self._all_arrived.wait_for(lambda: len(self._waiting) >= self._expected, _GATHER_S)
            batch = next_batch(self._waiting)
            self._serving = bool(batch)
        self._last_batch = len(batch) or 1
        return batch

    def _answer(self, requests: Sequence[OrdersRequest], wait: bool) -> None:
        with self._database.reserved(), self._database.write("fence", bookkeeping=True) as tx:
            connection = tx.connection
            asked = [order for request in requests for order in request.orders]
            tokens = {request.caller.token_id for request in requests if request.caller.token_id}
            snapshot = self._statements.read(connection, asked, tokens, wait)
            good = [request for request in requests if request.is_valid(snapshot)]
            new: dict[str, Order] = {}
            for request in good:
                for order in request.authorised_orders(snapshot):
                    if order.order_id not in snapshot.earlier:
                        new.setdefault(order.order_id, order)
            lines = snapshot.earlier | self._decide(tx, connection, new, snapshot)
            verdicts = BatchVerdicts(snapshot, new, lines)
            for request in good:
                request.verdicts = list(map(verdicts.verdict, request.orders, request.authorised))

    def _decide(
        self, tx: Transaction, connection: Connection, orders: dict[str, Order], snapshot: FenceSnapshot
    ) -> dict[str, LogLine]:
        """Decide about new orders, and write each into the log. Returns the lines that answer their ids."""
        if not orders:
            return {}
        lines, now = dict[str, LogLine](), utc_now()
        at = datetime.fromisoformat(now)
        routed = snapshot.router_at > utc_before(self._no_router_after)
        counts = {world_id: BreakerCount(fence, now) for world_id, fence in snapshot.fences.items()}
        for number, order in enumerate(orders.values()):
            fence = snapshot.fences[order.world_id]
            reason = refusal(
                OrderContext(
                    order,
                    fence,
                    snapshot.activations.get((order.world_id, order.strategy_id)),
                    snapshot.sessions.get(order.session_id),
                    now,
                    routed,
                )
            )
            if reason is None and counts[order.world_id].tripped:  # by an order before it in this batch
                reason = Refusal.CIRCUIT_BREAKER
            counts[order.world_id].count(reason)
            kind, why = (REFUSED, reason.value) if reason else (ACCEPTED, "")
            lines[order.order_id] = LogLine(
                # A microsecond apart, so that the router sends a caller's orders in the caller's order.
                utc_text(at + timedelta(microseconds=number)),
                order.world_id,
                kind,
                order.order_id,
                fence.epoch,
                order.strategy_id,
                why,
                order.model_dump_json(),
            )
        written = self._statements.write(
            connection, [(line, orders[key].execution_domain.value) for key, line in lines.items()]
        )
        if len(written) < len(lines):  # another Gateway wrote the same ids first: its answers stand
            lost = sorted(lines.keys() - written)
            lines |= self._statements.earlier(connection, lost)
            for order_id in lost:
                del orders[order_id]  # so that it is compared with the line that stands
        self._count(tx, snapshot.fences, counts)
        return lines

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
