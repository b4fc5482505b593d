"""The order router: sends accepted orders to the broker of their domain, and records the fills.

`python -m activities.brokers.router` runs it until SIGTERM. One router works for a database at a time; others
wait until its process ends. A router that is killed between sending an order and recording its fill sends the
order again under the same id, which a broker places once.
"""

import signal
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from activities.brokers.broker import Broker, BrokerSettings, open_broker
from activities.fence.order_log import SqlOrderLog
from activities.settings import OrdersSettings, Settings, settings
from activities.storage.database import Database
from activities.storage.opening import open_database
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError

# Orders that one step sends.
BATCH = 500

# Seconds between two looks for orders when there are none.
_IDLE_S = 0.05

# Seconds before the database is tried again when it cannot be reached.
_UNAVAILABLE_S = 1.0

# Seconds between two tries to become the router of the database.
_ELECTION_S = 0.5

_log = structlog.get_logger()


def brokers(config: OrdersSettings) -> dict[Domain, Broker]:
    """Open the broker of each domain that trades, as the configuration names it."""
    names = {Domain.DRYRUN: config.dryrun_broker, Domain.LIVE: config.live_broker}
    return {
        domain: open_broker(
            name,
            BrokerSettings(
                domain=domain, fill_delay_s=config.paper_fill_delay_s, options=config.broker_options
            ),
        )
        for domain, name in names.items()
    }


class OrderRouter:
    """Sends accepted orders to brokers."""

    def __init__(self, database: Database, orders: SqlOrderLog, brokers: Mapping[Domain, Broker]) -> None:
        self._database = database
        self._orders = orders
        self._brokers = brokers

    def run(self, stop: threading.Event) -> None:
        """Route orders until `stop` is set. A database that cannot be reached is tried again."""
        while not stop.is_set():
            try:
                with self._database.elected("router") as elected:
                    while elected and not stop.is_set():
                        if not self.step():
                            stop.wait(_IDLE_S)
                    stop.wait(_ELECTION_S)
            except QmtlError as error:
                _log.warning("the router cannot send orders", why=str(error))
                stop.wait(_UNAVAILABLE_S)

    def step(self) -> int:
        """Send a batch of open orders, and record the fills. Returns how many there were."""
        waiting = self._orders.waiting(BATCH)
        now = datetime.now(UTC)
        fills = []
        for domain, broker in self._brokers.items():
            orders = [(order, at) for order, at in waiting if order.execution_domain is domain]
            fills += broker.place(orders, now)
        self._orders.record_fills(fills)
        return len(fills)


def run(config: Settings) -> None:
    """Run the router until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database = open_database(config.database_dsn)
    try:
        router = OrderRouter(database, SqlOrderLog(database), brokers(config.orders))
        print("router: ready", flush=True)
        router.run(stop)
    finally:
        database.close()


def main() -> int:
    """Run the router with the settings of this folder. Returns the exit code."""
    try:
        config = settings()
        config.require_profile()
        run(config)
    except QmtlError as error:
        print(f"router: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
