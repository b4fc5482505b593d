"""The interface of a broker, which executes orders."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.registry import Options, Registry

BROKERS = Registry("qmtl.brokers", "broker", {"paper": "activities.brokers.paper:open_paper"})
"""Each is a callable that takes `BrokerSettings` and returns a `Broker`."""


class BrokerSettings(Model):
    """What a broker is opened with. `options` are those of the configuration, for brokers of packages."""

    domain: Domain
    fill_delay_s: float = 0.0
    options: Options = {}


CALL_LIMIT_S = 5.0
"""Seconds that a call of a broker takes at most; a longer one counts as a fault."""


class AcceptedOrder(NamedTuple):
    """An order with the time of its acceptance (UTC)."""

    order: Order
    accepted_at: datetime


class Broker(Protocol):
    """Executes orders at one venue. Orders are named by their ids, which the venue keeps as client order ids.

    `name` is the account that its fills name. `batch` is how many orders one call takes. `time_in_flight_s`
    is how long after the end of a call an order of it may still arrive at the venue: until then, an order
    that the venue does not know may yet be placed.

    A method raises QmtlError (E_UNAVAILABLE) or OSError where the venue cannot be reached. A call ends within
    `CALL_LIMIT_S`, whatever the venue does: when the router is replaced during a call, the next router waits
    for so long before it believes that an order has not arrived.
    """

    name: str
    batch: int
    time_in_flight_s: float

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Send orders; return what the venue says of them. One without a report is asked for later.

        Idempotent by order id: an order that is sent again is not placed again. After an error that does not
        say that the venue is away, each order is sent on its own.
        """

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Look up orders at the venue by their ids, those that have ended too.

        One that the venue does not know has no report. An order that the venue acknowledged, and that is left
        out for longer than `time_in_flight_s`, is recorded as cancelled.
        """

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Ask the venue to cancel orders. `find` then tells what became of them.

        Orders that the venue does not know, or that have ended, are no error.
        """


def open_broker(name: str, settings: BrokerSettings) -> Broker:
    """Open the broker of this name.

    Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such broker; E_EXTENSION.
    """
    broker: Broker = BROKERS.load(name)(settings)
    return broker
