"""Reconciliation of a broker's account: when the router starts, and on a schedule.

1. The broker is asked for its positions and open orders, then for its fills since the last look. What is new
   of these is recorded as if their orders had been looked up, so that only true differences are left.
2. The account is compared with the ledgers of all worlds, and its open orders with the order log
   (`comparison.py`).
3. A difference that lasts longer than an order may be in flight halts the worlds that it concerns. An
   operator books what is missing, and resumes them.

What the broker cannot tell is not asked (`Broker.capabilities`).
"""

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf

import structlog
from pydantic import TypeAdapter

from activities.brokers.calls import BooksError, BrokerCalls
from activities.brokers.comparison import Looked, compare_positions, reasons_to_halt, stray_orders
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.reconciliations import SqlReconciliations
from activities.storage.transactions import LockHeldError
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Fill, ReportedFill
from qmtl_sdk.contracts.reconciliation import MAX_COMPARED, AccountState, Reconciliation

RECONCILE_EVERY_S = 60.0
"""Seconds between two reconciliations, unless the configuration says otherwise."""

# How far before the last look fills are asked for again: a venue may list them late.
_OVERLAP = timedelta(minutes=5)

# How far back the first look at an account asks for fills.
_FIRST = timedelta(days=1)

# Seconds between two looks at least while something differs that has not lasted long enough.
_AGAIN_S = 1.0

# Seconds that a fill may take to be reported where the broker cannot list fills: that long an order for which
# the broker failed is not looked up.
_UNREPORTED_S = 35.0

_POSITIONS = TypeAdapter(dict[str, Decimal])
_IDS = TypeAdapter(list[str])
_FILLS = TypeAdapter(list[ReportedFill])
_STATE = TypeAdapter(AccountState)

_log = structlog.get_logger()


class AccountReconciler:
    """Compares the account of one broker with the ledger and the order log."""

    def __init__(
        self,
        store: SqlReconciliations,
        orders: SqlOpenOrders,
        calls: BrokerCalls,
        domain: Domain,
        every_s: float = RECONCILE_EVERY_S,
    ) -> None:
        self._store = store
        self._orders = orders
        self._calls = calls
        self._domain = domain
        self._every_s = every_s
        self._due_at = 0.0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next look is due; infinite where the broker has no books."""
        return max(self._due_at - time.monotonic(), 0.0)

    def step(self) -> int:
        """Look if it is due. Returns how many rows of fills, and halts, were recorded."""
        if self.due_in_s > 0:
            return 0
        self._due_at = time.monotonic() + self._every_s
        account, at = self._calls.broker.name, datetime.now(UTC)
        before = self._store.newest(account)
        if not self._calls.broker.capabilities.books:
            self._store.save(Reconciliation(account=account, domain=self._domain, at=at))
            self._due_at = inf
            return 0
        try:
            result = self._look(at, before)
        except BooksError as error:
            known = before or Reconciliation(account=account, domain=self._domain, at=at - _FIRST)
            self._store.save(known.model_copy(update={"fault": str(error)}))
            return 0
        self._store.save(result)
        return result.fills_recorded + self._halt(result)

    def _look(self, at: datetime, before: Reconciliation | None) -> Reconciliation:
        broker, can = self._calls.broker, self._calls.broker.capabilities
        earlier = self._store.holdings(broker.name)
        positions = self._calls.ask(broker.positions, _POSITIONS) if can.positions else None
        opened = self._calls.ask(broker.open_orders, _IDS) if can.open_orders else []
        state = self._calls.ask(broker.account, _STATE) if can.account else None
        since = before.at - _OVERLAP if before else at - _FIRST
        recorded = self._record_fills(since) if can.fills_since else 0
        held = self._store.holdings(broker.name)
        traded = {
            symbol
            for symbol in earlier.keys() | held.keys()
            if exact_sum(earlier.get(symbol, {}).values()) != exact_sum(held.get(symbol, {}).values())
        }
        looked = Looked(at, held, traded, self._store.trading(self._domain))
        compared = [] if positions is None else compare_positions(looked, positions, before)
        return Reconciliation(
            account=broker.name,
            domain=self._domain,
            at=at,
            compared=can.books,
            positions=tuple(compared[:MAX_COMPARED]),
            left_out=max(len(compared) - MAX_COMPARED, 0),
            orders=stray_orders(looked, self._strays(opened), before),
            fills_recorded=recorded,
            state=state,
        )

    def _record_fills(self, since: datetime) -> int:
        """Record the broker's fills that are not booked. Returns how many reports there were.

        A world whose fence is held gets its fills in the next look.
        """
        broker = self._calls.broker
        fills = defaultdict[str, list[Fill]](list)
        for item in self._calls.ask(lambda now: broker.fills_since(since, now), _FILLS):
            fills[item.order_id].append(item.fill)
        recorded = 0
        for world, reports in self._store.unrecorded(fills).items():
            try:
                recorded += self._orders.record(world, reports, {})
            except LockHeldError:
                continue
            _log.warning("fills that no look-up had found", world=world, orders=len(reports))
        return recorded

    def _strays(self, opened: Sequence[str]) -> dict[str, str]:
        """Return the open orders of a broker that are not open here, each with the world that accepted it."""
        placed = self._store.placed(opened)
        return {
            order_id: placed[order_id].world_id if order_id in placed else ""
            for order_id in opened
            if order_id not in placed or not placed[order_id].is_open
        }

    def _halt(self, result: Reconciliation) -> int:
        """Halt the worlds that a lasting difference concerns; look again soon at one that may not last."""
        broker = self._calls.broker
        patience_s = broker.time_in_flight_s + (0.0 if broker.capabilities.fills_since else _UNREPORTED_S)
        reasons = reasons_to_halt(result, timedelta(seconds=patience_s))
        halted = 0
        for world, reason in reasons.items():
            try:
                halted += self._store.halt(world, reason)
            except LockHeldError:
                self._due_at = time.monotonic() + _AGAIN_S
        if self._may_pass(result, reasons):
            self._due_at = time.monotonic() + min(self._every_s, max(patience_s, _AGAIN_S))
        return halted

    @staticmethod
    def _may_pass(result: Reconciliation, reasons: Collection[str]) -> bool:
        """Return whether something differs for which not all worlds are halted yet."""
        differing = [item.worlds for item in result.positions if item.difference]
        differing += [order.worlds for order in result.orders]
        return any(not set(worlds) <= set(reasons) for worlds in differing)
