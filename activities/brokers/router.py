"""The order router: sends accepted orders to the broker of their domain, and records what becomes of them.

`python -m activities.brokers.router` runs it until SIGTERM. One router works for a database at a time; others
wait until its process ends. For each domain and world, in turn (`execution.py`):

1. It asks the venue for the orders that were sent and have not ended, and asks it to cancel those that are to
   be cancelled.
2. It marks accepted orders as sent, in a transaction that checks the fence again, and then sends them.
3. It records the venue's reports.

First of all, and then once a minute, it compares the account of the broker with ledger and order log
(`reconciliation.py`).

Each domain has a thread of its own: a venue that is away, or that does not answer, holds up no other.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf

import structlog

from activities.brokers.broker import Broker, BrokerSettings, open_broker
from activities.brokers.calls import BrokerCalls, BrokerUnavailableError
from activities.brokers.execution import ExecutionHandler
from activities.brokers.reconciliation import RECONCILE_EVERY_S, AccountReconciler
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.reconciliations import SqlReconciliations
from activities.order_settings import OrdersSettings
from activities.process import run_process
from activities.settings import Settings
from activities.storage.database import Database
from activities.storage.elected import run_elected
from activities.storage.transactions import LockHeldError
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import retry_pause_s
from qmtl_sdk.contracts.worlds import World
from qmtl_sdk.data.roots import restrict

# Orders of a domain that one step handles.
BATCH = 500

# Seconds that a turn waits for the domains. One that takes longer goes on beside the next turns.
_TURN_S = 0.5

# Seconds at most between two reads where no order is open. A commit wakes the router within 0.1 s.
_IDLE_S = 60.0

# Seconds between two turns while due orders cannot be handled, such as those of a venue that is away or of a
# world whose fence is held. The pause doubles with each such turn, up to the longest.
_SHORTEST_S = 0.02
_LONGEST_S = 0.5

# Seconds before a world is handled again whose fence was held.
_HELD_S = 0.05

# Seconds before a world is handled again that failed; they double with each failure.
_RETRY_S = 1.0

# Seconds between two failures of a world at most.
_RETRY_LIMIT_S = 60.0

_log = structlog.get_logger()


def brokers(config: OrdersSettings, worlds: Callable[[str], World] | None = None) -> dict[Domain, Broker]:
    """Open the broker of each domain that trades, as the configuration names it."""
    names = {Domain.DRYRUN: config.dryrun_broker, Domain.LIVE: config.live_broker}
    return {
        domain: open_broker(
            name,
            BrokerSettings(
                domain=domain,
                account=config.account_of(domain),
                fill_delay_s=config.paper_fill_delay_s,
                options=config.broker_options,
                worlds=worlds,
            ),
        )
        for domain, name in names.items()
    }


class DomainRouter:
    """Handles the open orders of one domain, world by world, and reconciles its account."""

    def __init__(
        self,
        orders: SqlOpenOrders,
        domain: Domain,
        broker: Broker,
        reconciliations: SqlReconciliations | None = None,
        reconcile_every_s: float = RECONCILE_EVERY_S,
    ) -> None:
        self._orders = orders
        self._domain = domain
        self.calls = BrokerCalls(broker)
        self._execution = ExecutionHandler(orders, self.calls)
        self._reconciler = (
            AccountReconciler(reconciliations, orders, self.calls, domain, reconcile_every_s)
            if reconciliations is not None
            else None
        )
        self._paused: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    @property
    def due_in_s(self) -> float:
        """Seconds until its account is to be compared again."""
        return self._reconciler.due_in_s if self._reconciler else inf

    def step(self) -> int:
        """Handle the orders that are due. Returns how many states have changed.

        A world that fails, or whose fence is held, is handled again later. The others go on.
        """
        if self.calls.is_unavailable:
            return 0
        try:
            changes = self._reconciler.step() if self._reconciler else 0
        except Exception as error:  # orders go on, whatever is wrong with the books
            changes = 0
            _log.error("an account cannot be reconciled", domain=self._domain.value, error=repr(error))
        clock = time.monotonic()
        self._paused = {world: until for world, until in self._paused.items() if until > clock}
        for world, orders in self._orders.due(self._domain, BATCH, self._paused).items():
            try:
                changes += self._execution.handle(world, orders)
                self._failures.pop(world, None)
            except BrokerUnavailableError:
                break
            except LockHeldError:
                self._paused[world] = time.monotonic() + _HELD_S
            except Exception as error:  # whatever one world's rows hold, the others go on
                self._failures[world] = self._failures.get(world, 0) + 1
                pause = retry_pause_s(self._failures[world], _RETRY_S, _RETRY_LIMIT_S)
                self._paused[world] = time.monotonic() + pause
                _log.error("orders cannot be routed", world=world, error=repr(error), retry_s=pause)
        return changes


class OrderRouter:
    """Sends accepted orders to brokers, and records what becomes of them."""

    def __init__(
        self,
        database: Database,
        orders: SqlOpenOrders,
        brokers: Mapping[Domain, Broker],
        reconcile_every_s: float = RECONCILE_EVERY_S,
    ) -> None:
        self._database = database
        self._orders = orders
        books = SqlReconciliations(database)
        self._domains = {
            domain: DomainRouter(orders, domain, broker, books, reconcile_every_s)
            for domain, broker in brokers.items()
        }
        self._steps: dict[Domain, _Step] = {}
        self._idle_turns = 0

    def run(self, stop: threading.Event) -> None:
        """Route orders until `stop` is set. A database that cannot be reached is tried again."""
        run_elected(self._database, "router", self._turn, stop, self.fault)

    def step(self) -> int:
        """Handle the due orders of each domain, one after the other. Returns how many states have changed."""
        return sum(router.step() for router in self._domains.values())

    def fault(self) -> str:
        """Return why live orders cannot be sent: their broker fails, or does not answer; empty otherwise."""
        router = self._domains.get(Domain.LIVE)
        return router.calls.fault if router is not None else ""

    def _turn(self) -> float:
        """Handle each domain on its thread. Returns the seconds until the next turn is due.

        Raises what a domain's step raises, such as a database that cannot be reached.
        """
        left = self._left_s()
        if left > 0 and not self._steps:  # heartbeats are commits too: most turns of a quiet time end here
            return left
        for domain, router in self._domains.items():
            if domain not in self._steps:
                self._steps[domain] = _Step(router)
        deadline, changes = time.monotonic() + _TURN_S, 0
        for domain, step in list(self._steps.items()):
            if step.ended(max(deadline - time.monotonic(), 0.0)):
                del self._steps[domain]
                changes += step.result()
        left = self._left_s()
        self._idle_turns = self._idle_turns + 1 if not changes and left <= 0 else 0
        if changes:
            return 0.0
        return max(left, retry_pause_s(self._idle_turns, _SHORTEST_S, _LONGEST_S))

    def _left_s(self) -> float:
        """Return the seconds until an order or a reconciliation is due, `_IDLE_S` at most."""
        due = self._orders.next_due()
        books_s = min((router.due_in_s for router in self._domains.values()), default=inf)
        orders_s = (due - datetime.now(UTC)).total_seconds() if due is not None else inf
        return min(orders_s, books_s, _IDLE_S)


class _Step:
    """A step of one domain on a thread of its own, which does not keep the process from ending."""

    def __init__(self, router: DomainRouter) -> None:
        self._router = router
        self._changes = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="route", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._changes = self._router.step()
        except BaseException as error:  # `result` raises it
            self._error = error

    def ended(self, within_s: float) -> bool:
        """Wait for the end of the step; return whether it has ended."""
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def result(self) -> int:
        """Return how many states have changed, or raise what the step raised."""
        if self._error is not None:
            raise self._error
        return self._changes


@contextmanager
def _open(config: Settings, database: Database) -> Iterator[OrderRouter]:
    restrict(config.data_roots)
    orders = SqlOpenOrders(database, config.orders.send_within_s)
    venues = brokers(config.orders, SqlWorldStore(database).world)
    yield OrderRouter(database, orders, venues, config.orders.reconcile_every_s)


if __name__ == "__main__":
    sys.exit(run_process("router", _open))
