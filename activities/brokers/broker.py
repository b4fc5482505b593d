"""The interface of a broker, which executes orders."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from qmtl_sdk.contracts.orders import Fill, Order


class Broker(Protocol):
    """Executes orders. `name` is the venue that its fills report."""

    name: str

    def place(self, orders: Sequence[tuple[Order, datetime]], now: datetime) -> list[Fill]:
        """Send orders, each with the time of its acceptance, and return the fills known at `now`.

        Idempotent by order id: an order that is sent again is not placed again.
        """
