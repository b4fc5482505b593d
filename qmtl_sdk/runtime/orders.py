"""Send orders where the context allows them, and count blocked orders by reason.

`OrderPublisher` sends a running strategy's orders through its gate to the fence, on a thread of its own, so
that computing never waits for a Gateway. An order without a response is retried under the same id; the fence
is idempotent by order id. What is not sent is reported as withheld, with the reason. An order that no request
can hold is blocked and counted. Nothing that an author's values or callbacks do ends the thread.
"""

import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from pydantic import ValidationError

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderRequest, OrderVerdict, order_id
from qmtl_sdk.runtime.acks import Acknowledgements
from qmtl_sdk.runtime.activation import OrderGate
from qmtl_sdk.runtime.batches import BatchSize
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.contained import contained, set_fault
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.targets import TargetIntent, TargetPublisher
from qmtl_sdk.runtime.withheld import RETRIED, WithheldOrders

BATCH_SIZE = 200
"""Orders per request."""

RETRY_S = 0.2
"""Pause before a retry, in seconds."""

WAKE_S = 0.5
"""How often the thread checks for work without being woken, in seconds."""

OnVerdict = Callable[[OrderRequest, OrderVerdict], None]
"""Is called with each order, and each target that something was ordered for or that was refused."""


@dataclass(frozen=True)
class OrderIntent:
    """An order of a publisher node at a bar, before it is sent.

    `bar` is the bar's time in ns, `close` its close. `quantity` is signed: positive buys.
    """

    node_id: str
    bar: int
    close: datetime
    symbol: str
    quantity: float
    price: float | None


class QueuedOrder(NamedTuple):
    """An order that waits to be sent, since when (monotonic seconds), and the session that it is of."""

    queued_at: float
    order: Order
    session: SessionKey


class OrderPublisher:
    """Sends orders, targets and freeze acknowledgements on its own thread.

    `session` returns the session's key, which changes when a lost session is opened again.
    """

    def __init__(
        self,
        client: GatewayClient,
        gate: OrderGate,
        world_id: str,
        strategy_id: str,
        session: Callable[[], SessionKey],
        on_verdict: OnVerdict | None = None,
    ) -> None:
        self._client = client
        self._gate = gate
        self._world_id = world_id
        self._strategy_id = strategy_id
        self._session = session
        self._on_verdict = contained(on_verdict, "on_verdict", gate.faults)
        self.accepted = 0
        self.undelivered = 0
        self.refused: Counter[str] = Counter()
        self.blocked: Counter[str] = Counter()
        self.withheld = WithheldOrders(client)
        self.targets = TargetPublisher(client, gate, world_id, strategy_id, session)
        self._batch_size = BatchSize(BATCH_SIZE)
        self._acks = Acknowledgements(client)
        self._orders: deque[QueuedOrder] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qmtl-orders", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and wait for it. Orders that are still queued are not sent, but reported."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._report_rest()

    def enqueue(self, intent: OrderIntent) -> bool:
        """Queue the order for the fence if the gate is open; return whether it was queued.

        Blocked orders are counted by reason, and so are those that an `Order` cannot hold. A quantity that
        rounds to 0 is no order. The order carries the current epoch, so a later freeze makes it stale.
        """
        epoch, reason = self._gate.manager.epoch, self._gate.reason
        if reason or self._gate.domain is None:
            self.withhold(intent, reason or "no domain")
            return False
        order = self._order(intent, epoch)
        if order is None:
            return False
        self._orders.append(order)
        self._wake.set()
        return True

    def set_targets(self, intents: Sequence[TargetIntent]) -> None:
        """Set what the strategy wants to hold. It is sent when the gate is open, until the fence takes it."""
        self.targets.set(intents)
        self._wake.set()

    def withhold(self, intent: OrderIntent, reason: str) -> None:
        """Count an order that is not sent, and report it to the fence. Shadow has no orders to report."""
        self.blocked[reason] += 1
        if self._gate.domain not in (Domain.DRYRUN, Domain.LIVE):
            return
        order = self._order(intent, self._gate.manager.epoch)
        if order is not None:
            self.withheld.add(order.order, order.session, reason)
            self._wake.set()

    def _order(self, intent: OrderIntent, epoch: int) -> QueuedOrder | None:
        """Build the order; return None where there is none, or count why no `Order` can hold it."""
        domain, session = self._gate.domain, self._session()
        quantity = amount(abs(intent.quantity))
        if quantity == 0 or domain is None:
            return None
        if quantity is None:
            self.blocked["no order can hold its quantity"] += 1
            return None
        try:
            order = Order(
                order_id=order_id(
                    self._world_id, self._strategy_id, intent.node_id, intent.bar, intent.symbol, domain.value
                ),
                world_id=self._world_id,
                strategy_id=self._strategy_id,
                session_id=session.session_id,
                execution_domain=domain,
                epoch=epoch,
                symbol=intent.symbol,
                side="buy" if intent.quantity > 0 else "sell",
                quantity=quantity,
                reference_price=positive(intent.price),
                decided_at=intent.close,
            )
        except ValidationError as error:
            first = error.errors()[0]
            self.blocked[f"no order can hold it: {'.'.join(map(str, first['loc']))}: {first['msg']}"] += 1
            return None
        return QueuedOrder(time.monotonic(), order, session)

    def acknowledge(self, session: SessionKey, sequence: int) -> None:
        """Queue the acknowledgement of a freeze or unfreeze. The gate has already closed or opened."""
        self._acks.add(session, sequence)
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(WAKE_S)
            self._wake.clear()
            while self._has_work() and not self._stop.is_set():
                try:
                    self._acks.send()
                    self._send_orders()
                    self._send_targets()
                    self.withheld.send()
                except QmtlError:  # no Gateway answers: everything is sent again
                    self._stop.wait(RETRY_S)
                except BaseException as error:  # this thread also acknowledges freezes: it must go on
                    set_fault(self._gate.faults, "orders", "orders can't be sent", error)
                    self._stop.wait(RETRY_S)
                else:
                    self._gate.faults.pop("orders", None)

    def _has_work(self) -> bool:
        return bool(self._acks or self._orders or self.withheld or self.targets.due())

    def _send_targets(self) -> None:
        """Send the targets that are due."""
        for target, verdict in self.targets.send():
            if verdict.reason is not None:
                self.refused[verdict.reason.value] += 1
            elif verdict.ordered:
                self.accepted += 1
            else:
                continue
            self._on_verdict(target, verdict)

    def _send_orders(self) -> None:
        """Send the oldest orders of one session.

        Where the Gateway refuses a batch, send each order alone.
        """
        # An order older than the decision's TTL is no longer valid: the gate would be closed by now.
        oldest = time.monotonic() - self._gate.manager.ttl_s
        while self._orders and self._orders[0].queued_at < oldest:
            self._drop_order("no Gateway answered within the decision's ttl")
            self.undelivered += 1
        batch = self._batch()
        if not batch:
            return
        try:
            verdicts = self._client.publish_orders(
                [item.order for item in batch], batch[0].session, patience_s=0.0
            )
        except QmtlError as error:
            if error.code in RETRIED:
                self._batch_size.failed(error, len(batch))
                raise
            if len(batch) == 1:
                self.refused[error.code] += 1
                self._drop_order(f"the Gateway refused the request: {error.code}")
            self._batch_size.items = 1
            return
        self._batch_size.succeeded()
        for item, verdict in zip(batch, verdicts, strict=True):
            self._orders.popleft()
            if verdict.accepted:
                self.accepted += 1
            elif verdict.reason is not None:
                self.refused[verdict.reason.value] += 1
            self._on_verdict(item.order, verdict)

    def _batch(self) -> list[QueuedOrder]:
        """Return the oldest orders that one request holds: all of one session."""
        batch = list(itertools.islice(self._orders, self._batch_size.items))
        return list(itertools.takewhile(lambda item: item.session == batch[0].session, batch))

    def _drop_order(self, reason: str) -> None:
        """Report the oldest order as withheld. If the fence has it all the same, its answer stands."""
        item = self._orders.popleft()
        self.withheld.add(item.order, item.session, reason)

    def _report_rest(self) -> None:
        """Report what was not sent, if a Gateway answers now."""
        while self._orders:
            self._drop_order("the strategy was stopped before it was sent")
        try:
            while self.withheld:
                self.withheld.send()
        except QmtlError:  # what waits is counted in `withheld`
            return


def amount(value: float) -> Decimal | None:
    """Convert a quantity or price to Decimal, rounded to twelve places; None if an order can't hold it."""
    if not math.isfinite(value) or abs(value) >= AMOUNT_LIMIT:
        return None
    return round(Decimal(repr(float(value))), AMOUNT_PLACES).normalize() + Decimal(0)


def positive(price: float | None) -> Decimal | None:
    """Convert a price to Decimal; None where there is none that an order can hold, or none above 0."""
    found = amount(price) if price is not None else None
    return found if found is not None and found > 0 else None
