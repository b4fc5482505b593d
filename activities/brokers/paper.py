"""The paper broker: simulated fills."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from activities.brokers.broker import BrokerSettings
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Fill, Order


class PaperBroker:
    """Fills every order in full at its reference price, `delay_s` seconds after it was accepted.

    It has no state, so a crash cannot make it lose or double an order.
    """

    def __init__(self, name: str, delay_s: float = 0.0) -> None:
        self.name = name
        self._delay = timedelta(seconds=delay_s)

    def place(self, orders: Sequence[tuple[Order, datetime]], now: datetime) -> list[Fill]:
        """Return the fills of all orders that were accepted long enough ago."""
        return [
            Fill(
                order_id=order.order_id, quantity=order.quantity, price=order.reference_price, venue=self.name
            )
            for order, at in orders
            if now - at >= self._delay
        ]


def open_paper(settings: BrokerSettings) -> PaperBroker:
    """Open the paper broker of a domain."""
    venue = "paper-live" if settings.domain is Domain.LIVE else "paper"
    return PaperBroker(venue, settings.fill_delay_s)
