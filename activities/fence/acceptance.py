"""Acceptance of orders and targets: the fence in front of the order log.

1. Callers submit orders or targets; one transaction answers everything that arrived while the one before it
   ran. Of a target it makes the order that the strategy's position lacks (`targets.py`), or none.
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
from datetime import timedelta

from activities.fence.callers import OrderCaller
from activities.fence.deciding import Grounds, NewRequests
from activities.fence.halts import store_counts
from activities.fence.lock_waits import LockWaitQueues
from activities.fence.log_line import LogLine
from activities.fence.position_limits import AccountLimits
from activities.fence.requests import OrdersRequest, next_batch
from activities.fence.snapshot import FenceHeldError, FenceSnapshot
from activities.fence.statements import statements_of
from activities.fence.targets import WorldSizings
from activities.fence.verdicts import BatchVerdicts
from activities.order_settings import OrdersSettings
from activities.storage.database import Database
from activities.storage.transactions import Transaction, utc_before
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import OrderRequest, OrderVerdict
from qmtl_sdk.contracts.refusals import Refusal

# Seconds that a transaction waits for callers that were just answered and will come again.
_GATHER_S = 0.001


class OrderAcceptance:
    """Accepts or refuses orders.

    One transaction at a time, besides those of worlds whose fence is held (`lock_waits.py`).
    """

    def __init__(self, database: Database, settings: OrdersSettings | None = None) -> None:
        """Take what `settings` say of accounts, and of live orders without a router; or the defaults."""
        settings = settings or OrdersSettings()
        self._database = database
        self._no_router_after = timedelta(seconds=settings.no_router_after_s)
        self._sizings = WorldSizings()
        self._accounts = AccountLimits.of(settings)
        self._statements = statements_of(database)
        self._held = LockWaitQueues(lambda batch: self._answer_batch(batch, wait=True), self._enqueue)
        self._waiting = deque[OrdersRequest]()
        self._mutex = threading.Lock()
        self._serving = False
        self._last_batch = 1
        self._expected = 1
        self._all_arrived = threading.Condition(self._mutex)
        self._threads = ThreadPoolExecutor(1, "fence")

    def publish(self, orders: Sequence[OrderRequest], caller: OrderCaller) -> list[OrderVerdict]:
        """Return a verdict for each order or target, in the same order; a `TargetVerdict` for a target.

        Raises QmtlError: E_WORLD_UNKNOWN; E_TOKEN_REVOKED where the caller's token is revoked or unknown;
        E_UNAVAILABLE where other transactions held the fence of a world for 10 s. Then none is accepted.
        """
        return self.submit(orders, caller).result()

    def submit(self, orders: Sequence[OrderRequest], caller: OrderCaller) -> "Future[list[OrderVerdict]]":
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

        If one request cannot be answered, as where it holds a value that the database cannot store, each is
        answered alone, so that only that one fails. Raises FenceHeldError, and then has answered none, or
        those before it.
        """
        try:
            self._answer(batch, wait)
        except FenceHeldError:
            raise
        except BaseException as error:  # every caller of the batch gets it
            is_away = isinstance(error, QmtlError) and error.status >= 500
            if len(batch) > 1 and isinstance(error, Exception) and not is_away:
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
            asked = [order for request in requests for order in request.orders]
            tokens = {request.caller.token_id for request in requests if request.caller.token_id}
            snapshot = self._statements.read(tx.connection, asked, tokens, wait)
            good = [request for request in requests if request.is_valid(snapshot)]
            new: dict[str, OrderRequest] = {}
            for request in good:
                for order in request.authorised_orders(snapshot):
                    if order.order_id not in snapshot.earlier:
                        new.setdefault(order.order_id, order)
            lines, unwritten = self._decide(tx, new, snapshot)
            verdicts = BatchVerdicts(snapshot, new, snapshot.earlier | lines, unwritten)
            for request in good:
                request.verdicts = list(map(verdicts.verdict, request.orders, request.authorised))

    def _decide(
        self, tx: Transaction, requests: dict[str, OrderRequest], snapshot: FenceSnapshot
    ) -> tuple[dict[str, LogLine], dict[str, Refusal | None]]:
        """Decide about new requests, and write each order into the log.

        Returns the lines that answer their ids, and the answers to targets that no order follows from.
        """
        if not requests:
            return {}, {}
        routed = snapshot.router_at > utc_before(self._no_router_after)
        decided = NewRequests(tx, requests.values(), Grounds(snapshot, routed, self._accounts, self._sizings))
        lines = {order_id: new.line for order_id, new in decided.lines.items()}
        writes_more = decided.has_targets or any(fence.has_breaker for fence in snapshot.fences.values())
        write = self._statements.write if writes_more else self._statements.write_last
        written = write(tx.connection, list(decided.lines.values()))
        if len(written) < len(lines):  # another Gateway wrote the same ids first: its answers stand
            lost = sorted(lines.keys() - written)
            lines |= self._statements.earlier(tx.connection, lost)
            for order_id in lost:
                del requests[order_id]  # so that it is compared with the line that stands
        store_counts(tx, snapshot.fences, decided.counts)
        return lines, decided.unwritten
