"""The interface of a broker, which executes orders."""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple, Protocol

from pydantic import Field

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import ReportedFill
from qmtl_sdk.contracts.instruments import TimeInForce
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.reconciliation import AccountState
from qmtl_sdk.contracts.registry import Options, Registry
from qmtl_sdk.contracts.worlds import World

BROKERS = Registry(
    "qmtl.brokers",
    "broker",
    {
        "paper": "activities.brokers.paper:open_paper",
        "ccxt": "activities.brokers.ccxt_broker:open_ccxt",
    },
)
"""Each is a callable that takes `BrokerSettings` and returns a `Broker`."""


class BrokerSettings(Model):
    """What a broker is opened with. `options` are those of the configuration, for brokers of packages.

    `account` is the name of the account in which it trades: its fills name it, and so does `Broker.name`.
    `worlds` reads a world by its id; None where there are none, as in a check of the configuration.
    """

    domain: Domain
    account: str
    fill_delay_s: float = 0.0
    options: Options = {}
    worlds: Callable[[str], World] | None = Field(None, exclude=True)


CALL_LIMIT_S = 5.0
"""Seconds that a call of a broker takes at most; a longer one counts as a fault."""


class Capabilities(Model):
    """What a broker can do besides placing, finding and cancelling orders. The rest is never called.

    An order with another time in force than these is rejected before it reaches the broker.
    """

    time_in_force: frozenset[TimeInForce] = frozenset({"GTC", "DAY", "IOC", "FOK"})
    open_orders: bool = False
    positions: bool = False
    fills_since: bool = False
    account: bool = False

    @property
    def books(self) -> tuple[str, ...]:
        """What the broker has books of, which are compared with ours."""
        return tuple(name for name in ("open_orders", "positions", "fills_since") if getattr(self, name))


class AcceptedOrder(NamedTuple):
    """An order with the time of its acceptance (UTC)."""

    order: Order
    accepted_at: datetime


class Broker(Protocol):
    """Executes orders at one venue. Orders are named by their ids, which the venue keeps as client order ids.

    A broker derives from this class. `name` is the account that its fills name. `batch` is how many orders
    one call takes, `lookup_batch` how many a look-up or a cancel takes where that differs. `time_in_flight_s`
    is how long after the end of a call an order of it may still arrive at the venue: until then, an order
    that the venue does not know may yet be placed.

    A method raises QmtlError (E_UNAVAILABLE) or OSError where the venue cannot be reached. A call ends within
    `CALL_LIMIT_S`, whatever the venue does: when the router is replaced during a call, the next router waits
    for so long before it believes that an order has not arrived. Calls come one at a time.

    An order is never changed at its venue: each order is decided by the fence, so another quantity is another
    order.
    """

    name: str
    batch: int
    lookup_batch: int = 0
    time_in_flight_s: float
    capabilities: Capabilities = Capabilities()

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

    def quiet_s(self, order: AcceptedOrder, now: datetime) -> float:
        """Return the seconds for which nothing can become of an order that was just found open; 0: unknown.

        It asks no venue. A cancel is carried out at once all the same.
        """
        return 0.0

    def open_orders(self, now: datetime) -> Sequence[str]:
        """List the ids of the orders that are open in the account, whoever placed them."""
        return ()

    def positions(self, now: datetime) -> dict[str, Decimal]:
        """Return what the account holds, by symbol as orders name it (negative: short); 0 may be left out."""
        return {}

    def fills_since(self, since: datetime, now: datetime) -> Sequence[ReportedFill]:
        """List the fills of the account since a time, with the ids that reports of their orders give them."""
        return ()

    def account(self, now: datetime) -> AccountState:
        """Return the money in the account."""
        return AccountState()


def open_broker(name: str, settings: BrokerSettings) -> Broker:
    """Open the broker of this name.

    Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such broker; E_EXTENSION
    where it fails, names another account than its settings, or does not say what it can do.
    """
    opened = BROKERS.load(name)
    try:
        broker: Broker = opened(settings)
    except QmtlError:
        raise
    except Exception as error:  # a package of others may fail in any way, and say anything
        raise QmtlError(
            "E_EXTENSION",
            f"the broker {name!r} cannot be opened: {type(error).__name__}",
            f"its options are orders.broker_options: {', '.join(settings.options) or 'none are given'}",
        ) from error
    if broker.name != settings.account:
        raise QmtlError(
            "E_EXTENSION",
            f"the broker {name!r} trades in the account {broker.name!r}, and was given {settings.account!r}",
            "its `name` is the account of its settings: positions are looked up there",
        )
    if not isinstance(getattr(broker, "capabilities", None), Capabilities):
        raise QmtlError(
            "E_EXTENSION",
            f"the broker {name!r} does not say what it can do",
            "derive its class from activities.brokers.broker.Broker, and set `capabilities`",
        )
    return broker
