"""The interface of a broker, which executes orders."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import Fill, Order
from qmtl_sdk.contracts.registry import Options, Registry

BROKERS = Registry("qmtl.brokers", "broker", {"paper": "activities.brokers.paper:open_paper"})
"""Each is a callable that takes `BrokerSettings` and returns a `Broker`."""


class BrokerSettings(Model):
    """What a broker is opened with. `options` are those of the configuration, for brokers of packages."""

    domain: Domain
    fill_delay_s: float = 0.0
    options: Options = {}


class Broker(Protocol):
    """Executes orders. `name` is the venue that its fills report."""

    name: str

    def place(self, orders: Sequence[tuple[Order, datetime]], now: datetime) -> list[Fill]:
        """Send orders, each with the time of its acceptance, and return the fills known at `now`.

        Idempotent by order id: an order that is sent again is not placed again. Raises QmtlError
        (E_UNAVAILABLE) or OSError where the venue cannot be reached. After any other error each order is sent
        on its own.
        """


def open_broker(name: str, settings: BrokerSettings) -> Broker:
    """Open the broker of this name.

    Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such broker; E_EXTENSION.
    """
    broker: Broker = BROKERS.load(name)(settings)
    return broker
