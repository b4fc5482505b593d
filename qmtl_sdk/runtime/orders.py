"""Send orders where the context allows them, and count blocked orders by reason.

`OrderPublisher` sends a running strategy's orders through its gate to the fence, on a thread of its own, so
that computing never waits for a Gateway. An order without a response is retried under the same id; the fence
is idempotent by order id. An order that no request can hold is blocked and counted. Nothing that an author's
values or callbacks do ends the thread.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from pydantic import ValidationError

from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import AMOUNT_LIMIT, AMOUNT_PLACES, Order, OrderVerdict, order_id
from qmtl_sdk.runtime.activation import OrderGate
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.contained import contained, set_fault

BATCH_SIZE = 200
"""Orders per request."""

RETRY_S = 0.2
"""Pause before a retry, in seconds."""

WAKE_S = 0.5
"""How often the thread checks for work without being woken, in seconds."""

OnVerdict = Callable[[Order, OrderVerdict], None]


class TradeExecutionService(Protocol):
    """Receives the orders of a strategy that is fed by hand."""

    def post_order(self, order: dict[str, Any]) -> Any: ...


class ManualOrderGate:
    """The gate of strategies that are fed by hand through `Runner.feed_queue_data`."""

    def __init__(self) -> None:
        self.enabled = False
        self.service: TradeExecutionService | None = None
        self.blocked: Counter[str] = Counter()

    def send(self, order: dict[str, Any], context: ComputeContext | None) -> bool:
        """Post the order to the service if its context allows it; return whether it was posted."""
        reason = self.reason(context)
        if reason or self.service is None:
            self.blocked[reason or "no trade execution service"] += 1
            return False
        self.service.post_order(order)
        return True

    def reason(self, context: ComputeContext | None) -> str:
        """Return why orders are blocked; empty if they are allowed."""
        if context is None:
            return "no context"
        if context.execution_domain is Domain.SHADOW:
            return "shadow"
        if not context.orders_allowed:
            return (
                context.downgrade_reason.value
                if context.downgrade_reason
                else f"domain {context.execution_domain.value}"
            )
        return "" if self.enabled else "trade submission is off"


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


class OrderPublisher:
    """Sends orders and freeze acknowledgements on its own thread.

    `session` returns the session's id, which changes when a lost session is opened again.
    """

    def __init__(
        self,
        client: GatewayClient,
        gate: OrderGate,
        world_id: str,
        strategy_id: str,
        session: Callable[[], str],
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
        self._acks: deque[tuple[str, int]] = deque()
        self._orders: deque[tuple[float, Order]] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qmtl-orders", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and wait for it. Orders that are still queued are not sent."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def enqueue(self, intent: OrderIntent) -> bool:
        """Queue the order for the fence if the gate is open; return whether it was queued.

        Blocked orders are counted by reason, and so are those that an `Order` cannot hold. A quantity that
        rounds to 0 is no order. The order carries the current epoch, so a later freeze makes it stale.
        """
        epoch, reason = self._gate.manager.epoch, self._gate.reason
        domain = self._gate.domain
        if reason or domain is None:
            self.blocked[reason or "no domain"] += 1
            return False
        quantity = amount(abs(intent.quantity))
        if quantity == 0:
            return False
        if quantity is None:
            self.blocked["no order can hold its quantity"] += 1
            return False
        try:
            order = self._order(intent, domain, epoch, quantity)
        except ValidationError as error:
            first = error.errors()[0]
            self.blocked[f"no order can hold it: {'.'.join(map(str, first['loc']))}: {first['msg']}"] += 1
            return False
        self._orders.append((time.monotonic(), order))
        self._wake.set()
        return True

    def _order(self, intent: OrderIntent, domain: Domain, epoch: int, quantity: Decimal) -> Order:
        return Order(
            order_id=order_id(
                self._world_id, self._strategy_id, intent.node_id, intent.bar, intent.symbol, domain.value
            ),
            world_id=self._world_id,
            strategy_id=self._strategy_id,
            session_id=self._session(),
            execution_domain=domain,
            epoch=epoch,
            symbol=intent.symbol,
            side="buy" if intent.quantity > 0 else "sell",
            quantity=quantity,
            reference_price=positive(intent.price),
            decided_at=intent.close,
        )

    def acknowledge(self, session_id: str, sequence: int) -> None:
        """Queue the acknowledgement of a freeze or unfreeze. The gate has already closed or opened."""
        self._acks.append((session_id, sequence))
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(WAKE_S)
            self._wake.clear()
            while (self._acks or self._orders) and not self._stop.is_set():
                try:
                    self._send()
                except QmtlError as error:
                    if error.code not in ("E_UNAVAILABLE", "E_RATE"):
                        self._drop_refused(error)
                    self._stop.wait(RETRY_S)
                except BaseException as error:  # this thread also acknowledges freezes: it must go on
                    set_fault(self._gate.faults, "orders", "orders can't be sent", error)
                    self._stop.wait(RETRY_S)
                else:
                    self._gate.faults.pop("orders", None)

    def _send(self) -> None:
        """Send the acknowledgements in order, then a batch of orders."""
        while self._acks:
            self._client.ack_session(*self._acks[0])
            self._acks.popleft()
        # An order older than the decision's TTL is no longer valid: the gate would be closed by now.
        oldest = time.monotonic() - self._gate.manager.ttl_s
        while self._orders and self._orders[0][0] < oldest:
            self._orders.popleft()
            self.undelivered += 1
        batch = [order for _, order in list(self._orders)[:BATCH_SIZE]]
        if not batch:
            return
        verdicts = self._client.publish_orders(batch, patience_s=0.0)
        for order, verdict in list(zip(batch, verdicts, strict=True)):
            self._orders.popleft()
            if verdict.accepted:
                self.accepted += 1
            elif verdict.reason is not None:
                self.refused[verdict.reason.value] += 1
            self._on_verdict(order, verdict)

    def _drop_refused(self, error: QmtlError) -> None:
        """Drop what the Gateway refused (unknown session, deleted world) and count the orders."""
        if self._acks:
            self._acks.popleft()
        else:
            self.refused[error.code] += len(self._orders)
            self._orders.clear()


def amount(value: float) -> Decimal | None:
    """Convert a quantity or price to Decimal, rounded to twelve places; None if an order can't hold it."""
    if not math.isfinite(value) or abs(value) >= AMOUNT_LIMIT:
        return None
    return round(Decimal(repr(float(value))), AMOUNT_PLACES).normalize() + Decimal(0)


def positive(price: float | None) -> Decimal | None:
    """Convert a price to Decimal; None where there is none that an order can hold, or none above 0."""
    found = amount(price) if price is not None else None
    return found if found is not None and found > 0 else None
