"""The order router: sends accepted orders to the broker of their domain, and records the fills.

`python -m activities.brokers.router` runs it until SIGTERM. One router works for a database at a time; others
wait until its process ends. A router that is killed between sending an order and recording its fill sends the
order again under the same id, which a broker places once.
"""

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf

import structlog

from activities.brokers.broker import Broker, BrokerSettings, open_broker
from activities.fence.order_log import SqlOrderLog
from activities.process import run_process
from activities.settings import OrdersSettings, Settings
from activities.storage.database import Database
from activities.storage.elected import run_elected, unreachable
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Fill, Order

# Orders that one step sends.
BATCH = 500

# Seconds at most between two sends of orders that are not filled yet.
_UNFILLED_S = 0.05

# Seconds at most between two reads where no order is open. A commit wakes the router within 0.1 s.
_IDLE_S = 60.0

# Seconds before the first repetition of an order that failed; it doubles with each failure.
_RETRY_S = 1.0

# Seconds between two repetitions at most.
_RETRY_LIMIT_S = 60.0

# Orders at most that a batch leaves out because they failed: a statement has room for so many ids.
_DELAYED = 10_000

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


@dataclass(frozen=True, slots=True)
class _Retry:
    """When an order that failed is tried again, on the monotonic clock, and the pause before that."""

    at: float
    pause_s: float


class OrderRouter:
    """Sends accepted orders to brokers."""

    def __init__(self, database: Database, orders: SqlOrderLog, brokers: Mapping[Domain, Broker]) -> None:
        self._database = database
        self._orders = orders
        self._brokers = brokers
        self._retries: dict[str, _Retry] = {}
        self._unfilled = False

    def run(self, stop: threading.Event) -> None:
        """Route orders until `stop` is set. A database that cannot be reached is tried again."""
        run_elected(self._database, "router", self._turn, stop)

    def _turn(self) -> float:
        """Send a batch. Returns the seconds until the next one is due, if no commit comes first."""
        if self.step():
            return 0.0
        if self._unfilled:
            return _UNFILLED_S
        retry_at = min((retry.at for retry in self._retries.values()), default=inf)
        return min(max(retry_at - time.monotonic(), _UNFILLED_S), _IDLE_S)

    def step(self) -> int:
        """Send a batch of open orders, and record the fills. Returns how many there were.

        An order that cannot be read or that its broker raises for is logged and tried again later. The
        others go on.
        """
        clock = time.monotonic()
        # A retry that is long past belongs to an order that is no longer open.
        self._retries = {
            key: retry for key, retry in self._retries.items() if retry.at > clock - _RETRY_LIMIT_S
        }
        delayed = [order_id for order_id, retry in self._retries.items() if retry.at > clock][:_DELAYED]
        orders: defaultdict[Domain, list[tuple[Order, datetime]]] = defaultdict(list)
        for waiting in self._orders.waiting(BATCH, delayed):
            try:
                order, accepted_at = waiting.order(), waiting.accepted_at
            except ValueError as error:
                self._failed([waiting.order_id], error)
            else:
                orders[order.execution_domain].append((order, accepted_at))
        self._unfilled = bool(orders)
        fills: list[Fill] = []
        for domain, batch in orders.items():
            fills += self._place(domain, batch)
        self._orders.record_fills(fills)
        return len(fills)

    def _place(self, domain: Domain, orders: Sequence[tuple[Order, datetime]]) -> list[Fill]:
        """Send orders to the broker of a domain together, and one by one where it raises."""
        broker = self._brokers.get(domain)
        if broker is None:
            return []
        now = datetime.now(UTC)
        try:
            fills = broker.place(orders, now)
        except Exception as error:  # a broker is an extension, and may raise anything
            if unreachable(error) or len(orders) == 1:
                self._failed([order.order_id for order, _ in orders], error)
                return []
            return [fill for one in orders for fill in self._place(domain, [one])]
        for order, _ in orders:
            self._retries.pop(order.order_id, None)
        return fills

    def _failed(self, order_ids: Sequence[str], error: Exception) -> None:
        """Log a failure, and delay the next try of these orders, each time for longer."""
        _log.error(
            "orders cannot be sent", orders=list(order_ids[:10]), count=len(order_ids), error=repr(error)
        )
        for order_id in order_ids:
            last = self._retries.get(order_id)
            pause = min(2 * last.pause_s, _RETRY_LIMIT_S) if last else _RETRY_S
            self._retries[order_id] = _Retry(time.monotonic() + pause, pause)


@contextmanager
def _open(config: Settings, database: Database) -> Iterator[OrderRouter]:
    yield OrderRouter(database, SqlOrderLog(database), brokers(config.orders))


if __name__ == "__main__":
    sys.exit(run_process("router", _open))
