"""Kill the order router again and again while orders flow to an unkind exchange and halts come and go.

1. The exchange is a process of its own, and so is the router; whoever trades and halts is this process, over
   the same database. There is no Gateway: what is judged is the way from an accepted order to the exchange.
2. Halts come every 0.3 to 0.8 s. Some begin and end while no router lives.
3. The router compares the account of the exchange with the ledger three times a second. Whatever is killed,
   nothing differs for longer than an order may be in flight, and at the end nothing differs at all.
4. At the end everything rests. Then `order_checker` reads the log, and here it is compared with all that the
   exchange was told.
"""

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import text

from activities.artifacts.folder import FolderArtifacts
from activities.fence.acceptance import OrderAcceptance
from activities.fence.order_log import SqlOrderLog
from activities.fence.reconciliations import SqlReconciliations
from activities.ledger.sql import SqlLedger
from activities.order_settings import OrdersSettings
from activities.retention.archives import Archives
from activities.retention.ledger import LedgerProjection
from activities.storage.database import Database
from activities.storage.heartbeats import processes
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.reconciliation import Reconciliation
from temporal.server import free_port
from tests.chaos.exchange import TIME_IN_FLIGHT_S, ask, install
from tests.support import ROOT
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for
from tests.support.order_checker import order_violations

ACCOUNT = "exchange"
ORDERS_AT_ONCE = 8
SESSION_S = 20.0

# How much longer than asked it may trade until as many orders were placed as asked.
MORE_S = 120.0

# Seconds after a halt in which an order may reach the exchange that was marked as sent before the halt.
SENT_BEFORE_S = 3.0


@dataclass
class Report:
    seed: int
    sabotage: str
    kills: int = 0
    halts: int = 0
    lifted_unseen: int = 0
    placed: int = 0
    states: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        return json.dumps(
            {
                "seed": self.seed,
                "sabotage": self.sabotage,
                "orders": dict(self.verdicts),
                "ends": dict(self.states),
                "placed": self.placed,
                "kills": self.kills,
                "halts": self.halts,
                "lifted_without_a_router": self.lifted_unseen,
                "violations": len(self.violations),
                "first": self.violations[:3],
                "seconds": round(self.seconds, 1),
            }
        )


class RoutingChaos:
    """`believes_404`: the router takes an order that the exchange does not know for one that never came."""

    def __init__(self, home: Path, seed: int, believes_404: bool = False) -> None:
        self._port = free_port()
        options = {"port": self._port, "time_in_flight_s": 0.0 if believes_404 else TIME_IN_FLIGHT_S}
        env = {
            "PYTHONPATH": f"{ROOT}:{install(home)}",
            "QMTL_ORDERS__DRYRUN_BROKER": "exchange",
            "QMTL_ORDERS__DRYRUN_ACCOUNT": ACCOUNT,
            "QMTL_ORDERS__BROKER_OPTIONS": json.dumps(options),
            "QMTL_ORDERS__RECONCILE_EVERY_S": "0.3",
        }
        self._machine = Machine(home, None, 2.0, **env)
        self._report = Report(seed, "believes 404" * believes_404)
        self._exchange: subprocess.Popen[bytes] | None = None
        self._told = 0
        self._stop = threading.Event()
        self._halting = threading.Lock()
        self._errors = list[BaseException]()

    def close(self) -> None:
        self._stop.set()
        if self._exchange is not None:
            self._exchange.kill()
            self._exchange.wait()
        self._machine.close()

    def run(self, seconds: float, placed: int = 0) -> Report:
        """Trade for so many seconds, and until so many orders were placed; then rest and check."""
        report, began = self._report, time.monotonic()
        self._database = self._machine.database()
        try:
            self._desk = Desk(self._database, strategies=2)
            self._desk.apply("dryrun")
            self._acceptance = OrderAcceptance(self._database, OrdersSettings(dryrun_account=ACCOUNT))
            self._start()
            told = self._storm(seconds, placed)
            ask(self._port, "/kind", [])
            told |= self.settle()
            log = SqlOrderLog(self._database)
            try:
                wait_for(lambda: log.open_orders(self._desk.world) == 0, "end of all orders", 90)
            except AssertionError as error:
                report.violations.append(f"it did not come to rest: {error}")
            theirs = ask(self._port, "/all")
            report.placed = len(theirs["told"])
            report.verdicts = Counter(told.values())
            report.violations += order_violations(self._database, self._desk.world, told)
            report.violations += self._compare(theirs) + self.compare_more()
            report.violations += _book_differences(self._database)
        finally:
            self._database.close()
        report.seconds = time.monotonic() - began
        return report

    def _start(self) -> None:
        with (self._machine.home / "exchange.log").open("ab") as log:
            self._exchange = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.exchange", str(self._port), str(self._report.seed)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        wait_for(self._exchange_answers, "exchange")
        self._machine.start_router()
        wait_for(self._is_routed, "router")

    def _exchange_answers(self) -> bool:
        try:
            return bool(ask(self._port, "/all"))
        except OSError:
            return False

    def _storm(self, seconds: float, placed: int) -> dict[str, str]:
        """Send orders while halts and kills go on; return what each order was told."""
        threads = [
            threading.Thread(target=self._guarded, args=(act, random.Random(self._report.seed * 10 + number)))
            for number, act in enumerate((self._halt, self._kill))
        ]
        for thread in threads:
            thread.start()
        told = dict[str, str]()
        until, session, session_until = time.monotonic() + seconds, "", 0.0
        try:
            while not self._errors and (time.monotonic() < until or self._placed() < placed):
                if time.monotonic() > until + MORE_S:
                    raise AssertionError(f"{self._placed()} of {placed} orders were placed in time")
                if time.monotonic() > session_until:
                    session, session_until = self._desk.session(), time.monotonic() + SESSION_S
                told |= self.trade(session)
                self._stop.wait(0.1)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        return told

    def trade(self, session: str) -> dict[str, str]:
        """Send some orders of the first strategy; return what each was told."""
        orders = [self._desk.order(session, self._desk.epoch) for _ in range(ORDERS_AT_ONCE)]
        verdicts = self._acceptance.publish(orders, self._desk.caller)
        return {
            order.order_id: verdict.reason.value if verdict.reason else "accepted"
            for order, verdict in zip(orders, verdicts, strict=True)
        }

    def settle(self) -> dict[str, str]:
        """Trade on until everything may rest, with the exchange kind and no kills; return what was told."""
        return {}

    def compare_more(self) -> list[str]:
        """Say what else is not as it should be at rest."""
        return []

    def _placed(self) -> int:
        """How many orders the exchange was told of; as before where it does not answer in time."""
        with suppress(OSError):
            self._told = len(ask(self._port, "/all")["told"])
        return self._told

    def _guarded(self, act: Any, rng: random.Random) -> None:
        try:
            act(rng)
        except BaseException as error:  # the storm raises it
            self._errors.append(error)

    def _halt(self, rng: random.Random) -> None:
        while not self._stop.wait(0.2 + rng.random() * 0.3):
            with self._halting:
                self._desk.fence.halt(self._desk.world, "olga", "chaos")
                self._report.halts += 1
                self._stop.wait(0.1 + rng.random() * 0.2)
                self._resume()

    def _resume(self) -> None:
        self._desk.steps.resume(self._desk.world, "olga", "chaos")

    def _kill(self, rng: random.Random) -> None:
        """Kill the router when it has worked for a moment; half of the times, a halt begins and ends then."""
        while not self._stop.wait(0.3 + rng.random() * 3.0):
            self._machine.kill("router")
            self._report.kills += 1
            if rng.random() < 0.5:
                with self._halting:
                    self._desk.fence.halt(self._desk.world, "olga", "chaos")
                    self._report.halts += 1
                    self._report.lifted_unseen += 1
                    self._resume()
            self._machine.restart("router")
            wait_for(lambda: self._is_routed() or self._stop.is_set(), "router")

    def _is_routed(self) -> bool:
        pid = self._machine.pids["router"]
        return any(item.pid == pid and item.state == "running" for item in processes(self._database))

    def _compare(self, theirs: Any) -> list[str]:
        """Say where the log and the exchange disagree. (Any: JSON.)"""
        log = _Log(self._database, self._desk.world)
        self._report.states = Counter(log.ends.values())
        broken = [f"order {ref} was placed twice with other content" for ref in theirs["doubled"]]
        broken += [f"halted without a difference: {reason}" for reason in log.differences]
        for ref, at in theirs["told"]:
            if ref not in log.sent:
                broken.append(f"order {ref} is at the exchange, and was never marked as sent")
                continue
            halted_at = log.first_halt(ref)
            late = (datetime.fromisoformat(at) - halted_at).total_seconds() if halted_at else 0.0
            if late > SENT_BEFORE_S:
                broken.append(f"order {ref} was placed {late:.1f} s after a halt")
        for ref, end in log.ends.items():
            there = theirs["orders"].get(ref)
            if there is None:
                if end not in ("cancelled", "expired") or log.filled.get(ref):
                    broken.append(f"order {ref} is {end} in the log, and the exchange has never had it")
            elif not there["has_ended"]:
                broken.append(f"order {ref} rests at the exchange, and is {end} in the log")
            elif (end, log.filled.get(ref, Decimal(0))) != (there["state"], Decimal(there["filled"])):
                broken.append(
                    f"order {ref}: the log says {end} with {log.filled.get(ref, 0)} filled, "
                    f"the exchange {there['state']} with {there['filled']}"
                )
            if there is not None and there["order"] != log.orders[ref]:
                broken.append(f"order {ref} has other content at the exchange")
        world, orders = self._desk.world, theirs["orders"].values()
        return broken + _compare_ledger(self._database, self._machine.home, world, orders)


def _compare_ledger(database: Database, home: Path, world: str, orders: Iterable[Any]) -> list[str]:
    """Say where the ledger is not what the exchange has filled, or what the log says. (Any: JSON.)"""
    held = dict.fromkeys({found["order"]["symbol"] for found in orders}, Decimal(0))
    cash = Decimal(0)
    for found in orders:
        sign = 1 if found["order"]["side"] == "buy" else -1
        for fill in found["fills"]:
            quantity, price, fee = (Decimal(fill[name]) for name in ("quantity", "price", "fee"))
            held[found["order"]["symbol"]] += sign * quantity
            cash -= sign * quantity * price + fee
    positions = SqlLedger(database).positions(world, PositionFilter(closed=True))
    ours = dict.fromkeys(held, Decimal(0))
    for item in positions:
        ours[item.symbol] += item.position.quantity
    broken = []
    if ours != held:
        broken.append(f"the ledger holds {ours}, the exchange {held}")
    booked = sum((item.position.cash for item in positions), Decimal(0))
    if booked != cash:
        broken.append(f"the ledger has {booked} in cash, the exchange {cash}")
    check = LedgerProjection(database, Archives(FolderArtifacts(home / "artifacts"))).verify(world)
    return broken + list(check.differences)


class _Log:
    """The order log of a world, as the comparison needs it."""

    def __init__(self, database: Database, world: str) -> None:
        self.orders: dict[str, Any] = {}
        self.ends: dict[str, str] = {}
        self.sent = set[str]()
        self.filled: dict[str, Decimal] = {}
        self._accepted: dict[str, int] = {}
        self._halts: list[tuple[int, datetime]] = []
        self.differences: list[str] = []
        with database.read() as session:
            rows = session.connection().execute(
                text("SELECT * FROM order_log WHERE world_id = :w ORDER BY seq"),
                {"w": world},
            )
            for row in rows.mappings():
                self._add(row)

    def _add(self, row: Any) -> None:
        kind, ref = row["kind"], row["ref"]
        if kind == "halt":
            self._halts.append((row["seq"], datetime.fromisoformat(row["at"])))
            if row["reason"].startswith("reconciliation"):
                self.differences.append(row["reason"])
        elif kind == "accepted":
            self.orders[ref] = json.loads(row["body"])
            self.ends[ref] = kind
            self._accepted[ref] = row["seq"]
        elif ref in self.ends:
            self.ends[ref] = kind
            if kind == "sent":
                self.sent.add(ref)
            elif row["body"]:
                fills = json.loads(row["body"])["fills"]
                now = sum((Decimal(fill["quantity"]) for fill in fills), Decimal(0))
                self.filled[ref] = self.filled.get(ref, Decimal(0)) + now

    def first_halt(self, ref: str) -> datetime | None:
        """When the world was first halted after an order was accepted."""
        return next((at for seq, at in self._halts if seq > self._accepted[ref]), None)


def _book_differences(database: Database) -> list[str]:
    """Say what the router itself finds different, once everything rests."""
    books, rested = SqlReconciliations(database), datetime.now(UTC)

    def seen() -> Reconciliation | None:
        found = books.newest(ACCOUNT)
        return found if found is not None and found.at > rested and not found.fault else None

    wait_for(seen, "a comparison after everything rests", 30)
    found = seen()
    assert found is not None
    return [f"the router finds {found.model_dump_json()}"] if found.differences else []
