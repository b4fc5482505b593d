"""The paper broker: simulated fills."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from activities.brokers.broker import AcceptedOrder, BrokerSettings
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import OrderReport


class PaperBroker:
    """Fills every order in full at its reference price, `delay_s` seconds after it was accepted.

    An order without one is rejected.

    It has no state but the orders that were cancelled before they were filled, so a crash cannot make it lose
    or double an order.
    """

    batch = 500
    time_in_flight_s = 0.0

    def __init__(self, name: str, delay_s: float = 0.0) -> None:
        self.name = name
        self._delay = timedelta(seconds=delay_s)
        self._cancelled = set[str]()

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Report orders that were accepted long enough ago as filled, the others as open."""
        return [self._report(order, now) for order in orders]

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Report orders as `place` does."""
        reports = [self._report(order, now) for order in orders]
        self._cancelled -= {report.order_id for report in reports}  # reported, so nobody asks again
        return reports

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Cancel the orders that are not filled by now."""
        self._cancelled |= {order.order_id for order, at in orders if now - at < self._delay}

    def _report(self, placed: AcceptedOrder, now: datetime) -> OrderReport:
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


def open_paper(settings: BrokerSettings) -> PaperBroker:
    """Open the paper broker of a domain."""
    venue = "paper-live" if settings.domain is Domain.LIVE else "paper"
    return PaperBroker(venue, settings.fill_delay_s)
