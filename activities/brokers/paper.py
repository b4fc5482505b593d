"""The paper broker: simulated fills.

How it fills follows from the world of an order (`contracts.fees.PaperFills`): from the world's bars as they
close (`bar_fills.py`), or in full at the order's reference price. An order whose symbol has no bars in its
world is filled at its reference price in any case.

It has no books of its own: what it holds is what the ledger says, so there is nothing to reconcile.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from math import inf
from typing import TYPE_CHECKING

from activities.brokers.broker import AcceptedOrder, Broker, BrokerSettings
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.worlds import World

if TYPE_CHECKING:
    from activities.brokers.bar_fills import BarFills

# Seconds for which a world that was read is believed: its data may be changed.
_WORLD_S = 10.0

# Seconds for which one look reads bars: a call may take no longer than `CALL_LIMIT_S`. The next look goes on.
_LOOK_S = 2.0

# Worlds that are remembered at most.
_WORLDS = 1000


class PaperBroker(Broker):
    """Fills orders from the bars of their worlds, or at reference prices, `delay_s` after acceptance.

    An order that is to be filled at its reference price and has none is rejected.

    What it makes of an order follows from the order, its acceptance and the bars. Beside that it knows only
    which orders were cancelled before they were filled, so a crash makes it lose or double no fill.
    """

    batch = 500
    time_in_flight_s = 0.0

    def __init__(self, name: str, delay_s: float = 0.0, worlds: Callable[[str], World] | None = None) -> None:
        self.name = name
        self._delay = timedelta(seconds=delay_s)
        self._cancelled = set[str]()
        self._read_world = worlds
        self._worlds: dict[str, tuple[World, float]] = {}
        self._loaded: BarFills | None = None

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Report orders as open or rejected, or as filled where that happened at once.

        It reads no bars: data that is faulty is a fault of its orders, not of sending.
        """
        return [report for order in orders for report in self._reports(order, now, until=-inf)]

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Report what was filled of orders by now. Raises QmtlError where the bars of one cannot be read."""
        until = time.monotonic() + _LOOK_S
        reports = [report for order in orders for report in self._reports(order, now, until)]
        self._cancelled -= {report.order_id for report in reports}  # reported, so nobody asks again
        return reports

    def quiet_s(self, order: AcceptedOrder, now: datetime) -> float:
        """Return the seconds until the next bar of an order closes, or until its delay is over."""
        world = self._simulated(order.order)
        quiet = self._bar_fills.quiet_s(order.order.order_id, world, now) if world is not None else None
        return (order.accepted_at + self._delay - now).total_seconds() if quiet is None else quiet

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Cancel what is not filled by now."""
        until = time.monotonic() + _LOOK_S
        for placed in orders:
            world = self._simulated(placed.order)
            if world is not None and self._bar_fills.cancel(placed, world, now, until):
                continue
            if now - placed.accepted_at < self._delay:
                self._cancelled.add(placed.order.order_id)

    def _reports(self, placed: AcceptedOrder, now: datetime, until: float) -> list[OrderReport]:
        """Report on an order; its bars are read only before `until` on the monotonic clock."""
        world = self._simulated(placed.order)
        reports = self._bar_fills.reports(placed, world, now, until) if world is not None else []
        return reports or [self._at_reference(placed, now)]

    def _at_reference(self, placed: AcceptedOrder, now: datetime) -> OrderReport:
        order, at = placed
        if order.order_id in self._cancelled:
            return OrderReport(order_id=order.order_id, state="cancelled")
        if now - at < self._delay:
            return OrderReport(order_id=order.order_id, state="sent")
        if order.reference_price is None:
            reason = "it has no reference price, at which the paper broker fills"
            return OrderReport(order_id=order.order_id, state="rejected", reason=reason)
        fill = Fill(
            fill_id=order.order_id,
            quantity=order.quantity,
            price=order.reference_price,
            account=self.name,
            at=at + self._delay,
        )
        return OrderReport(order_id=order.order_id, state="filled", fills=(fill,))

    def _simulated(self, order: Order) -> World | None:
        """Return the world of an order that is filled from bars; None where it is not."""
        if self._read_world is None:
            return None
        world, read_at = self._worlds.get(order.world_id, (None, 0.0))
        if world is None or time.monotonic() - read_at > _WORLD_S:
            world = self._read_world(order.world_id)
            while len(self._worlds) >= _WORLDS:
                self._worlds.pop(next(iter(self._worlds)))
            self._worlds[order.world_id] = world, time.monotonic()
        return world if world.spec.execution.fill != "reference" else None

    @property
    def _bar_fills(self) -> "BarFills":
        if self._loaded is None:
            # Loaded when it is needed: reading bars takes 100 MB, and most routers read none.
            from activities.brokers.bar_fills import BarFills

            self._loaded = BarFills(self.name)
        return self._loaded


def open_paper(settings: BrokerSettings) -> PaperBroker:
    """Open the paper broker of a domain."""
    return PaperBroker(settings.account, settings.fill_delay_s, settings.worlds)
