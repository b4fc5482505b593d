"""Kill worker, Gateway, Temporal server and runners while four runners trade without pause and one apply
follows another; then let the order log and the audit trail speak.

An operator asks for applies and rollbacks, approves, rejects, aborts, halts, resumes, takes live away in the
midst of it, closes the edge, lets decisions become stale, sets a circuit breaker. Every choice is seeded. At
the end everything is left alone until it rests, and `order_checker` reads what was written.
"""

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from activities.applies.requests import SqlApplyRequests
from tests.chaos.acts import NO_ROUTER_AFTER_S, Operator
from tests.chaos.traders import Traders
from tests.chaos.world import OrderWorld
from tests.support.machine import Machine, wait_for
from tests.support.order_checker import order_violations

VICTIMS = ("worker", "gateway", "temporal", "runner")


@dataclass
class Report:
    seed: int
    applies: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    orders: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        body = {
            "seed": self.seed,
            "applies": dict(self.applies),
            "kills": dict(self.kills),
            "orders": self.orders,
            "acknowledged": self.acknowledged,
        }
        return json.dumps(
            {
                **body,
                "violations": len(self.violations),
                "first": self.violations[:3],
                "seconds": round(self.seconds, 1),
            }
        )


class OrderChaos:
    """`leak`: the check that the Gateway's fence lacks."""

    def __init__(self, home: Path, leak: str = "", dsn: str | None = None) -> None:
        self._gateway = "tests.chaos.leaky_gateway" if leak else "api.gateway"
        env = {"QMTL_TEST_LEAK": leak} if leak else {}
        self.machine = Machine(
            home,
            dsn,
            **{
                "QMTL_EVENTS__HEARTBEAT_S": "0.5",
                "QMTL_GATEWAY__SESSION_LEASE_S": "3",
                "QMTL_GATEWAY__RATE_PER_S": "5000",
                "QMTL_ORDERS__PAPER_FILL_DELAY_S": "0.02",
                "QMTL_ORDERS__NO_ROUTER_AFTER_S": str(NO_ROUTER_AFTER_S),
                **env,
            },
        )
        self._traders: Traders | None = None

    def up(self) -> "OrderChaos":
        machine = self.machine
        machine.start_temporal()
        machine.start_worker()
        machine.start_relay()
        machine.start_router()
        machine.start_gateway(self._gateway)
        return self

    def close(self) -> None:
        if self._traders is not None:
            self._traders.end_all()
        self.machine.close()

    def run(self, seed: int, applies: int, kills: int | None = None, thorough: bool = False) -> Report:
        """`thorough`: everything that an operator does is done at least once, in a world that is live."""
        report, began = Report(seed), time.monotonic()
        world = OrderWorld(self.machine, seed)
        operator = Operator(self.machine, world, random.Random(seed))
        traders = self._traders = Traders(self.machine, world)
        stop = threading.Event()
        rng = random.Random(seed + 1)
        limit = applies if kills is None else kills
        threads = [
            threading.Thread(target=world.renew_decisions, args=(stop,)),
            threading.Thread(target=self._kill, args=(rng, stop, traders, report, limit)),
        ]
        for number in range(traders.count):
            traders.start(number, seed)
        for thread in threads:
            thread.start()
        try:
            if thorough:
                operator.try_everything()
            for number in range(applies):
                report.applies[operator.episode(number)] += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self._check(world, traders, report, operator.unrouted)
        report.seconds = time.monotonic() - began
        return report

    def _kill(
        self, rng: random.Random, stop: threading.Event, traders: Traders, report: Report, limit: int
    ) -> None:
        while sum(report.kills.values()) < limit and not stop.wait(1.0 + rng.random() * 4.0):
            victim = rng.choice(VICTIMS)
            if victim == "runner":
                number = rng.randrange(traders.count)
                traders.end(number)
                traders.start(number, rng.randrange(10**9))
            else:
                self.machine.kill(victim)
                {
                    "worker": self.machine.start_worker,
                    "gateway": lambda: self.machine._start("gateway", self._gateway, {}),
                    "temporal": self.machine.start_temporal,
                }[victim]()
            report.kills[victim] += 1

    def _check(
        self, world: OrderWorld, traders: Traders, report: Report, unrouted: list[tuple[str, str]]
    ) -> None:
        """Wait until everything has ended; then check what was written."""
        traders.end_all()
        database = self.machine.database()
        try:
            applies = SqlApplyRequests(database)
            try:
                wait_for(lambda: not applies.unfinished(), "end of all applies", 120)
                wait_for(lambda: world.client.fence(world.name).open_orders == 0, "end of all orders", 60)
            except AssertionError as error:
                report.violations.append(f"it did not come to rest: {error}")
            verdicts = traders.verdicts()
            report.acknowledged = len(verdicts)
            report.orders = world.client.fence(world.name).orders
            report.violations += order_violations(database, world.name, verdicts, unrouted=unrouted)
        finally:
            database.close()
            world.close()
