"""A stand-in for an exchange, as unkind as real ones.

It lives outside the router, and knows orders by their ids.

Some calls are cut although their order arrives, at once or while it was in flight, or never. Orders fill in
parts, rest, or are rejected. It keeps everything that it was told, so that a test compares it with the log.
"""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from activities.brokers.broker import AcceptedOrder, Broker, Capabilities
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill, ReportedFill
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.reconciliation import AccountState

State = Literal["sent", "partially_filled", "filled", "cancelled", "rejected"]


@dataclass
class Resting:
    """An order at the exchange, which does not know it before `arrives` on the monotonic clock."""

    order: Order
    arrives: float
    placed_at: datetime
    state: State = "sent"
    fills: list[Fill] = field(default_factory=list)
    ended_at: datetime | None = None
    looks: int = 0

    @property
    def filled(self) -> Decimal:
        """What was filled of it so far."""
        return sum((fill.quantity for fill in self.fills), Decimal(0))


@dataclass
class Exchange:
    """What the exchange has. Each restarted router opens an `ExchangeBroker` over the same one."""

    seed: int
    in_flight_s: float = 0.2
    unkind: bool = True
    orders: dict[str, Resting] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    told: list[tuple[str, datetime]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.lock = threading.Lock()

    def known(self, order_id: str) -> Resting | None:
        """The order, once it has arrived."""
        found = self.orders.get(order_id)
        return found if found is not None and found.arrives <= time.monotonic() else None

    def place(self, order: Order, now: datetime, after_s: float = 0.0) -> None:
        """Take an order, once for each id; one whose content differs is a second order under that id."""
        self.told.append((order.order_id, now))
        there = self.orders.get(order.order_id)
        if there is not None:
            if there.order != order:
                self.doubled.append(order.order_id)
            there.arrives = min(there.arrives, time.monotonic() + after_s)
            return
        self.orders[order.order_id] = Resting(order, time.monotonic() + after_s, now)


class ExchangeBroker(Broker):
    """A broker over an exchange."""

    name = "exchange"
    batch = 20
    capabilities = Capabilities(open_orders=True, positions=True, fills_since=True, account=True)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.time_in_flight_s = exchange.in_flight_s

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Place orders. Half of the calls are unkind."""
        exchange = self._exchange
        with exchange.lock:
            luck = exchange.rng.random() if exchange.unkind else 1.0
            for order, _ in orders:
                if luck < 0.1:
                    continue  # cut, and it never arrives
                late = exchange.rng.random() * exchange.in_flight_s if luck < 0.3 else 0.0
                exchange.place(order, now, late)
            if luck < 0.5:
                raise QmtlError("E_UNAVAILABLE", "the connection was cut")
            return self._reports(orders, now)

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Look up orders. A look at one that is open may fill a part of it."""
        exchange = self._exchange
        with exchange.lock:
            self._may_cut()
            return self._reports(orders, now)

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Cancel open orders; what it does not know is not remembered."""
        with self._exchange.lock:
            for order, _ in orders:
                found = self._exchange.known(order.order_id)
                if found is not None and found.ended_at is None:
                    found.state, found.ended_at = "cancelled", now

    def open_orders(self, now: datetime) -> list[str]:
        """Those that have arrived and have not ended."""
        with self._exchange.lock:
            self._may_cut()
            return [
                order_id
                for order_id, found in self._exchange.orders.items()
                if found.ended_at is None and self._exchange.known(order_id) is not None
            ]

    def positions(self, now: datetime) -> dict[str, Decimal]:
        """The sums of all fills."""
        held: dict[str, Decimal] = {}
        with self._exchange.lock:
            self._may_cut()
            for found in self._exchange.orders.values():
                sign, symbol = (1 if found.order.side == "buy" else -1), found.order.symbol
                held[symbol] = held.get(symbol, Decimal(0)) + sign * found.filled
        return held

    def fills_since(self, since: datetime, now: datetime) -> list[ReportedFill]:
        """All fills since then, in no order that one may rely on, and some of them twice."""
        with self._exchange.lock:
            self._may_cut()
            fills = [
                ReportedFill(order_id=order_id, fill=fill)
                for order_id, found in self._exchange.orders.items()
                for fill in found.fills
                if fill.at is not None and fill.at >= since
            ]
            twice = [fill for fill in fills if self._exchange.rng.random() < 0.1]
            return self._exchange.rng.sample([*fills, *twice], len(fills) + len(twice))

    def account(self, now: datetime) -> AccountState:
        """What was received less what was paid."""
        cash = Decimal(0)
        with self._exchange.lock:
            for found in self._exchange.orders.values():
                sign = 1 if found.order.side == "buy" else -1
                cash -= sum(
                    (sign * fill.quantity * fill.price + fill.fee for fill in found.fills), Decimal(0)
                )
        return AccountState(currency="USD", cash=cash)

    def _may_cut(self) -> None:
        if self._exchange.unkind and self._exchange.rng.random() < 0.1:
            raise QmtlError("E_UNAVAILABLE", "the connection was cut")

    def _reports(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        known = [self._exchange.known(order.order_id) for order, _ in orders]
        return [self._report(found, now) for found in known if found is not None]

    def _report(self, found: Resting, now: datetime) -> OrderReport:
        if found.ended_at is None:
            self._trade(found, now)
        # Exchanges tell of all fills of an order again and again, and in no order that one may rely on.
        fills = self._exchange.rng.sample(found.fills, len(found.fills))
        return OrderReport(order_id=found.order.order_id, state=found.state, fills=tuple(fills))

    def _trade(self, found: Resting, now: datetime) -> None:
        found.looks += 1
        luck = self._exchange.rng.random()
        if found.looks == 1 and luck < 0.05:
            found.state, found.ended_at = "rejected", now
        elif luck < 0.3 and not found.filled:
            found.state = "partially_filled"
            self._fill(found, found.order.quantity / 2, now)
        elif luck < 0.6:
            found.state, found.ended_at = "filled", now
            self._fill(found, found.order.quantity - found.filled, now)

    def _fill(self, found: Resting, quantity: Decimal, now: datetime) -> None:
        price = found.order.reference_price or Decimal(1)
        price += Decimal(self._exchange.rng.randrange(-100, 101)) / 1000
        fill_id = f"{found.order.order_id}/{len(found.fills) + 1}"
        found.fills.append(
            Fill(
                fill_id=fill_id,
                quantity=quantity,
                price=price,
                fee=Decimal("0.01"),
                account=self.name,
                at=now,
            )
        )
