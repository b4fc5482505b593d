"""The SDK's order gate: orders leave only where the context allows them. What is kept back is counted by reason.

A running strategy's orders go through its gate to the fence, on a thread of their own (`OrderPublisher`): computing never waits for a Gateway. An order that was not
answered is sent again under the same id; the fence answers an id once.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict, order_id
from qmtl_sdk.runtime.activation import Gate
from qmtl_sdk.runtime.client import GatewayClient

BATCH, AGAIN_S = 200, 0.2
OnVerdict = Callable[[Order, OrderVerdict], None]


class TradeExecutionService(Protocol):
    """Where orders go."""

    def post_order(self, order: dict[str, Any]) -> Any: ...


class OrderGate:
    def __init__(self) -> None:
        self.enabled = False
        self.service: TradeExecutionService | None = None
        self.blocked: Counter[str] = Counter()

    def send(self, order: dict[str, Any], context: ComputeContext | None) -> bool:
        """Whether it left."""
        reason = self.reason(context)
        if reason or self.service is None:
            self.blocked[reason or "no trade execution service"] += 1
            return False
        self.service.post_order(order)
        return True

    def reason(self, context: ComputeContext | None) -> str:
        """Why orders are kept back; nothing where they are not."""
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
    """What a publisher node asks for at a bar. `quantity` is signed: positive buys."""

    node_id: str
    bar: int
    close: datetime
    symbol: str
    quantity: float
    price: float | None


class OrderPublisher:
    """`session` gives the session's id, which changes when its lease was lost and it was opened anew."""

    def __init__(
        self,
        client: GatewayClient,
        gate: Gate,
        world_id: str,
        strategy_id: str,
        session: Callable[[], str],
        on_verdict: OnVerdict | None = None,
    ) -> None:
        self._client, self._gate, self._world_id, self._strategy_id, self._session, self._on_verdict = (
            client,
            gate,
            world_id,
            strategy_id,
            session,
            on_verdict,
        )
        self.accepted = self.undelivered = 0
        self.refused: Counter[str] = Counter()
        self.blocked: Counter[str] = Counter()
        self._acks: deque[tuple[str, int]] = deque()
        self._orders: deque[tuple[float, Order]] = deque()
        self._news, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="qmtl-orders", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._news.set()
        self._thread.join()

    def offer(self, wanted: OrderIntent) -> bool:
        """Whether it goes to the fence; what the gate keeps back is counted by reason. The epoch is that of now: news that comes later makes it stale."""
        epoch, reason = self._gate.manager.epoch, self._gate.reason
        if reason or self._gate.domain is None:
            self.blocked[reason or "no domain"] += 1
            return False
        domain = self._gate.domain
        order = Order(
            order_id=order_id(
                self._world_id, self._strategy_id, wanted.node_id, wanted.bar, wanted.symbol, domain.value
            ),
            world_id=self._world_id,
            strategy_id=self._strategy_id,
            session_id=self._session(),
            execution_domain=domain,
            epoch=epoch,
            symbol=wanted.symbol,
            side="buy" if wanted.quantity > 0 else "sell",
            quantity=amount(abs(wanted.quantity)),
            reference_price=amount(wanted.price) if wanted.price is not None and wanted.price > 0 else None,
            decided_at=wanted.close,
        )
        self._orders.append((time.monotonic(), order))
        self._news.set()
        return True

    def acknowledge(self, session_id: str, sequence: int) -> None:
        """Say that a freeze or unfreeze was acted on: the gate has closed or opened already."""
        self._acks.append((session_id, sequence))
        self._news.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.wait(0.5)
            self._news.clear()
            while (self._acks or self._orders) and not self._stop.is_set():
                try:
                    self._step()
                except QmtlError as error:
                    if error.code != "E_UNAVAILABLE" and error.code != "E_RATE":
                        self._give_up(error)
                    self._stop.wait(AGAIN_S)

    def _step(self) -> None:
        """Acknowledgements first, in order; then orders."""
        while self._acks:
            self._client.ack_session(*self._acks[0])
            self._acks.popleft()
        limit = (
            time.monotonic() - self._gate.manager.ttl_s
        )  # an order that nobody has heard for so long is no longer meant
        while self._orders and self._orders[0][0] < limit:
            self._orders.popleft()
            self.undelivered += 1
        batch = [order for _, order in list(self._orders)[:BATCH]]
        if not batch:
            return
        for order, verdict in zip(batch, self._client.publish_orders(batch, patience_s=0.0), strict=True):
            self._orders.popleft()
            if verdict.accepted:
                self.accepted += 1
            elif verdict.reason is not None:
                self.refused[verdict.reason.value] += 1
            if self._on_verdict is not None:
                self._on_verdict(order, verdict)

    def _give_up(self, error: QmtlError) -> None:
        """The Gateway refuses the request itself: a session that it does not know, a world that is gone. What it was about is counted."""
        if self._acks:
            self._acks.popleft()
        else:
            self.refused[error.code] += len(self._orders)
            self._orders.clear()


def amount(value: float) -> Decimal:
    """A quantity or price at the order boundary: what the float shows, to twelve places."""
    return round(Decimal(repr(float(value))), 12).normalize() + Decimal(0)
