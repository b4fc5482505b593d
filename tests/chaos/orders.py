"""Kill worker, Gateway, Temporal server and runners while four runners trade without pause and one apply
follows another; then check the order log and the audit trail.

An operator asks for applies and rollbacks, approves, rejects, aborts, halts, resumes, takes live away in the
midst of it, closes the edge, lets decisions become stale, sets a circuit breaker. Every choice is seeded. At
the end it waits until nothing is under way, and `order_checker` checks what was written.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from activities.applies.requests import SqlApplyRequests
from tests.chaos.acts import Operator
from tests.chaos.routers import NO_ROUTER_AFTER_S
from tests.chaos.traders import Traders
from tests.chaos.world import OrderWorld
from tests.support.fence_model import Unrouted
from tests.support.machine import Machine, wait_for
from tests.support.order_checker import order_violations
from tests.support.sabotage import SABOTAGES


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


@dataclass
class Killing:
    """What kills in a run, and whom: every choice is of its `rng`."""

    report: Report
    operator: Operator
    traders: Traders
    rng: random.Random


class OrderChaos:
    """`leak`: the check that the Gateway's fence lacks."""

    victims: tuple[str, ...] = ("worker", "gateway", "temporal", "runner")

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

    def sabotage(self, name: str) -> None:
        """Put in a defect of `SABOTAGES` in place of an earlier one."""
        sabotage, env = SABOTAGES[name], {"QMTL_TEST_SABOTAGE": name}
        for part in ("gateway", "router"):
            self.machine.kill(part)
        if sabotage.part == "gateway":
            self.machine.start_router()
            self.machine.start_gateway("tests.chaos.leaky_gateway", **env)
        else:
            self.machine.start_router("tests.chaos.leaky_router", **env)
            self.machine.start_gateway()

    def close(self) -> None:
        if self._traders is not None:
            self._traders.end_all()
        self.machine.close()

    def run(
        self,
        seed: int,
        applies: int,
        kills: int | None = None,
        thorough: bool = False,
        acts: Sequence[str] = (),
        answers: int = 0,
    ) -> Report:
        """`thorough`: everything that an operator does is done at least once, in a world that is live.

        `acts` are done first, in a world in paper trading. It trades on until so many orders were answered.
        """
        report, began = Report(seed), time.monotonic()
        world = OrderWorld(self.machine, seed)
        operator = Operator(self.machine, world, random.Random(seed))
        traders = self._traders = Traders(self.machine, world)
        stop = threading.Event()
        killing = Killing(report, operator, traders, random.Random(seed + 1))
        limit = applies if kills is None else kills
        threads = [
            threading.Thread(target=world.renew_decisions, args=(stop,)),
            threading.Thread(target=self._kill, args=(killing, stop, limit)),
        ]
        for number in range(traders.count):
            traders.start(number, seed)
        for thread in threads:
            thread.start()
        try:
            if acts:
                operator.try_acts(acts)
            if thorough:
                operator.try_everything()
            for number in range(applies):
                report.applies[operator.episode(number)] += 1
            if answers:
                wait_for(lambda: len(traders.verdicts()[0]) >= answers, "answers to orders", 120)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self._check(world, traders, report, operator.routers.unrouted)
        report.seconds = time.monotonic() - began
        return report

    def _kill(self, run: Killing, stop: threading.Event, limit: int) -> None:
        kills, rng = run.report.kills, run.rng
        while sum(kills.values()) < limit and not stop.wait(1.0 + rng.random() * 4.0):
            victim = rng.choice(self.victims)
            if victim == "runner":
                number = rng.randrange(run.traders.count)
                run.traders.end(number)
                run.traders.start(number, rng.randrange(10**9))
            else:
                victim = self.kill(victim, run)
            kills[victim] += 1

    def kill(self, victim: str, run: Killing) -> str:
        """Kill a process of this kind, and start it again at once; return how the kill is counted."""
        self.machine.kill(victim)
        self.machine.restart(victim)
        return victim

    def _check(self, world: OrderWorld, traders: Traders, report: Report, unrouted: list[Unrouted]) -> None:
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
            verdicts, contradictions = traders.verdicts()
            report.acknowledged = len(verdicts)
            report.violations += contradictions
            report.orders = world.client.fence(world.name).orders
            report.violations += order_violations(database, world.name, verdicts, unrouted=unrouted)
        finally:
            database.close()
            world.close()
