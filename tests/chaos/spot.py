"""Trade through ccxt on an unkind exchange, while the order router and the exchange are killed.

1. The exchange speaks Binance's API (`spot_server.py`): it limits requests, cuts connections whose orders
   arrive later or never, lists trades late and twice, and goes on after a kill with what its file has.
2. Orders are sent until as many were sent as asked, and both were killed; what rests for long is cancelled.
   The router compares the account again and again: a difference that lasts halts the world, which is a
   violation.
3. Then the exchange is kind, and everything comes to rest: each order is at the exchange once at most, as the
   log has it, and positions and cash of ledger and exchange are the same to the last digit.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from activities.fence.acceptance import OrderAcceptance
from activities.fence.order_log import SqlOrderLog
from activities.fence.reconciliations import SqlReconciliations
from activities.order_settings import OrdersSettings
from activities.storage.heartbeats import processes
from qmtl_sdk.contracts.orders import CancelRequest, Order
from tests.chaos.spot_books import compare
from tests.chaos.spot_server import KEY, SECRET
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for
from tests.support.order_checker import order_violations
from tests.support.spot import ACCOUNT, CREDENTIALS, Spot

# Orders of one request, and those that may be open when the next is sent.
AT_ONCE = 8
OPEN = 24

SESSION_S = 20.0

# Seconds in which a run of that many orders has to come to an end, for each order and beside that.
ORDER_S = 3.0
MORE_S = 120.0

# Seconds in which a run that is sabotaged has to come to rest. It may never do so.
SABOTAGED_S = 15.0


@dataclass
class Report:
    seed: int
    sabotage: str
    verdicts: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    trades: int = 0
    doubled: int = 0
    limited: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        return json.dumps(
            {
                "seed": self.seed,
                "sabotage": self.sabotage,
                "orders": dict(self.verdicts),
                "ends": dict(self.states),
                "trades": self.trades,
                "kills": dict(self.kills),
                "limited_requests": self.limited,
                "doubled": self.doubled,
                "violations": len(self.violations),
                "first": self.violations[:3],
                "seconds": round(self.seconds, 1),
            }
        )


class SpotChaos:
    """`nameless`: each attempt of an order has another client order id."""

    def __init__(self, home: Path, seed: int, nameless: bool = False) -> None:
        self._spot = Spot(home, seed)
        env = {
            **CREDENTIALS,
            "QMTL_ORDERS__DRYRUN_BROKER": "ccxt",
            "QMTL_ORDERS__DRYRUN_ACCOUNT": ACCOUNT,
            "QMTL_ORDERS__BROKER_OPTIONS": json.dumps(self._spot.options(rate_limit_ms=12)),
            "QMTL_ORDERS__RECONCILE_EVERY_S": "1.5",
        }
        self._machine = Machine(home, None, 2.0, **env)
        self._module = "tests.chaos.nameless_router" if nameless else "activities.brokers.router"
        self._report = Report(seed, "nameless" * nameless)
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._errors = list[BaseException]()

    def close(self) -> None:
        self._stop.set()
        self._spot.kill()
        self._machine.close()

    def run(self, orders: int) -> Report:
        """Trade until so many orders were accepted; then rest and check."""
        report, began = self._report, time.monotonic()
        self._database = self._machine.database()
        try:
            self._desk = Desk(self._database)
            self._desk.apply("dryrun")
            self._log = SqlOrderLog(self._database)
            self._spot.start()
            self._machine.start_router(self._module)
            wait_for(self._is_routed, "router")
            told = self._storm(orders)
            self._control("kind")
            self._rest()
            theirs = self._control("all")
            report.verdicts = Counter(told.values())
            report.violations += order_violations(self._database, self._desk.world, told)
            report.trades = len(theirs["trades"])
            report.limited = theirs["limited"]
            found = compare(self._database, self._desk.world, theirs)
            report.states = Counter(found.ends.values())
            report.doubled = found.doubled
            report.violations += found.broken + self._book_differences()
        finally:
            self._database.close()
        report.seconds = time.monotonic() - began
        return report

    def _storm(self, orders: int) -> dict[str, str]:
        """Send orders while both are killed; return what each order was told."""
        acceptance = OrderAcceptance(self._database, OrdersSettings(dryrun_account=ACCOUNT))
        kills = (self._kill_router, self._kill_exchange)
        threads = [threading.Thread(target=self._guarded, args=(act,)) for act in kills]
        for thread in threads:
            thread.start()
        told = dict[str, str]()
        until, session, session_until = time.monotonic() + MORE_S + orders * ORDER_S, "", 0.0
        try:
            while not self._errors and not self._is_enough(told, orders):
                if time.monotonic() > until:
                    raise AssertionError(f"{len(told)} of {orders} orders were sent in time")
                if time.monotonic() > session_until:
                    session, session_until = self._desk.session(), time.monotonic() + SESSION_S
                if len(told) < orders and self._log.open_orders(self._desk.world) < OPEN:
                    sent = [self._order(session) for _ in range(AT_ONCE)]
                    for order, verdict in zip(sent, acceptance.publish(sent, self._desk.caller), strict=True):
                        told[order.order_id] = verdict.reason.value if verdict.reason else "accepted"
                    self._cancel(list(told)[: -4 * AT_ONCE])
                self._stop.wait(0.1)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        return told

    def _cancel(self, order_ids: list[str]) -> None:
        """Cancel those of the newest of these that still rest."""
        if order_ids:
            request = CancelRequest(order_ids=tuple(order_ids[-AT_ONCE:]), reason="chaos")
            self._log.cancel(self._desk.world, request, "olga")

    def _is_enough(self, told: dict[str, str], orders: int) -> bool:
        """Whether so many were sent, and both killed; nothing more is accepted in a world that is halted."""
        if list(told.values()).count("halted") > OPEN:
            return True
        return len(told) >= orders and len(self._report.kills) == 2

    def _order(self, session: str) -> Order:
        """An order near the price of the exchange; some in steps that it does not have."""
        rng, symbol = self._rng, self._rng.choice(["BTC", "ETH"])
        near, step = (30000, "0.0001") if symbol == "BTC" else (2000, "0.001")
        quantity = rng.randrange(10, 400) * Decimal(step)
        if rng.random() < 0.03:
            quantity += Decimal(step) / 2
        return self._desk.order(
            session,
            self._desk.epoch,
            symbol=symbol,
            side="buy" if rng.random() < 0.6 else "sell",
            quantity=str(quantity),
            reference_price=str(near + Decimal(rng.randrange(-200, 201)) / 100_000 * near),
            time_in_force=rng.choice(["GTC", "GTC", "GTC", "IOC", "FOK"]),
        )

    def _guarded(self, act: Callable[[random.Random], None]) -> None:
        try:
            act(random.Random(f"{self._report.seed} {act.__name__}"))
        except BaseException as error:  # the storm raises it
            self._errors.append(error)

    def _kill_router(self, rng: random.Random) -> None:
        pause_s = 1.0
        while not self._stop.wait(pause_s):
            self._machine.kill("router")
            self._report.kills["router"] += 1
            self._machine.restart("router")
            pause_s = 1 + rng.random() * 10
            wait_for(lambda: self._is_routed() or self._stop.is_set(), "router")

    def _kill_exchange(self, rng: random.Random) -> None:
        pause_s = 2.0
        while not self._stop.wait(pause_s):
            self._spot.kill()
            self._report.kills["exchange"] += 1
            pause_s = 3 + rng.random() * 12
            self._stop.wait(rng.random())
            self._spot.start()

    def _is_routed(self) -> bool:
        pid = self._machine.pids["router"]
        return any(item.pid == pid and item.state == "running" for item in processes(self._database))

    def _control(self, what: str) -> Any:
        """What the exchange says. (Any: JSON.)"""
        found: Any = None

        def said() -> bool:
            nonlocal found
            try:
                found = self._spot.control(what)
            except httpx.TransportError:
                return False
            return True

        wait_for(said, "the exchange")
        return found

    def _rest(self) -> None:
        limit_s = SABOTAGED_S if self._report.sabotage else MORE_S
        try:
            wait_for(lambda: self._log.open_orders(self._desk.world) == 0, "end of all orders", limit_s)
        except AssertionError as error:
            self._report.violations.append(f"it did not come to rest: {error}")

    def _book_differences(self) -> list[str]:
        """Say what the router itself finds different, and where a credential was written."""
        books, rested = SqlReconciliations(self._database), datetime.now(UTC)
        wait_for(
            lambda: (found := books.newest(ACCOUNT)) is not None and found.at > rested and not found.fault,
            "a comparison after everything rests",
            60,
        )
        found = books.newest(ACCOUNT)
        assert found is not None
        broken = [f"the router finds {found.model_dump_json()}"] if found.differences else []
        for file in self._machine.home.rglob("*"):
            if file.is_file() and file.suffix in (".log", ".db", ".db-wal"):
                data = file.read_bytes()
                broken += [
                    f"{file.name} has a credential" for value in (KEY, SECRET) if value.encode() in data
                ]
        return broken
