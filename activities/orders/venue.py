"""Where accepted orders go: a broker, behind one narrow interface, and the desk that takes them there.

The desk may be killed between sending an order and noting its fill. Then it sends the order again under the same id: a broker takes an id once.
"""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from activities.orders.sql import SqlOrderStore
from activities.storage.database import Database
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Fill, Order

BATCH, IDLE_S, AWAY_S, TAKE_OVER_S = 500, 0.05, 1.0, 0.5
_log = structlog.get_logger()


class Broker(Protocol):
    name: str

    def place(self, orders: Sequence[tuple[Order, datetime]], now: datetime) -> list[Fill]:
        """Send orders, each with the time of its acceptance, and say which are filled by now. Sent again, an order is not placed again."""


class PaperBroker:
    """Fills every order in full at the price that its decision saw, `delay_s` after it was accepted. It keeps nothing, so that a crash can't make it forget or double."""

    def __init__(self, name: str, delay_s: float = 0.0) -> None:
        self.name, self._delay = name, timedelta(seconds=delay_s)

    def place(self, orders: Sequence[tuple[Order, datetime]], now: datetime) -> list[Fill]:
        return [
            Fill(
                order_id=order.order_id, quantity=order.quantity, price=order.reference_price, venue=self.name
            )
            for order, at in orders
            if now - at >= self._delay
        ]


def brokers(delay_s: float) -> dict[Domain, Broker]:
    """The broker of each domain that trades. Dryrun has the paper venue; live has a paper implementation of the broker's interface until a real one is built."""
    return {Domain.DRYRUN: PaperBroker("paper", delay_s), Domain.LIVE: PaperBroker("paper-live", delay_s)}


class OrderRouter:
    """One at a time for a database."""

    def __init__(self, database: Database, orders: SqlOrderStore, venues: Mapping[Domain, Broker]) -> None:
        self._database, self._orders, self._venues = database, orders, venues

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with self._database.elected("venues") as mine:
                    while mine and not stop.is_set():
                        if not self.step():
                            stop.wait(IDLE_S)
                    stop.wait(TAKE_OVER_S)
            except QmtlError as error:
                _log.warning("orders wait for their venue", why=str(error))
                stop.wait(AWAY_S)

    def step(self) -> int:
        """Take what waits to its venue, and note what is filled; how many that were."""
        waiting = self._orders.waiting(BATCH)
        fills = [
            fill
            for domain, venue in self._venues.items()
            for fill in venue.place(
                [(order, at) for order, at in waiting if order.execution_domain is domain], datetime.now(UTC)
            )
        ]
        self._orders.filled(fills)
        return len(fills)
