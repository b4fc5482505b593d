"""Kills of processes in a chaos run of rebalancings, counted by the step that a run was at."""

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import text

from activities.storage.database import Database

VICTIMS = ("worker", "gateway", "router", "exchange", "temporal")
STEPS = ("approval", "begin", "reductions", "increases", "end", "ended")


@dataclass
class Report:
    seed: int
    sabotage: str = ""
    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kills: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in VICTIMS})
    applies: Counter[str] = field(default_factory=Counter)
    trades: Counter[str] = field(default_factory=Counter)
    crossed: int = 0
    placed: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Report") -> None:
        """Count what another report counts as well."""
        for name in VICTIMS:
            self.kills[name] += other.kills[name]
        self.outcomes += other.outcomes
        self.applies += other.applies
        self.trades += other.trades
        self.runs += other.runs
        self.crossed += other.crossed
        self.placed += other.placed
        self.violations += other.violations
        self.seconds += other.seconds

    def line(self) -> str:
        return json.dumps(
            {
                "seed": self.seed,
                "sabotage": self.sabotage,
                "runs": self.runs,
                "outcomes": dict(self.outcomes),
                "kills": {name: dict(counts) for name, counts in self.kills.items()},
                "applies": dict(self.applies),
                "trades": dict(self.trades),
                "crossed": self.crossed,
                "placed": self.placed,
                "violations": len(self.violations),
                "first": self.violations[:5],
                "seconds": round(self.seconds, 1),
            }
        )


class Processes(Protocol):
    """Processes that can be killed and started again, by name."""

    def kill(self, victim: str) -> None: ...

    def restart(self, victim: str) -> None: ...


class Kills:
    """Kills processes of a machine, one at a time of each kind, and counts them by the step they were at."""

    def __init__(self, processes: "Processes", report: Report) -> None:
        self._processes = processes
        self._report = report
        self._lock = threading.Lock()
        self._of = {name: threading.Lock() for name in VICTIMS}
        self._wanted = Counter[tuple[str, str]]()

    def choose(self, rng: random.Random) -> tuple[str, str]:
        """Return a process and a step, of those that were hit and chosen least."""
        with self._lock:
            pairs = [(name, step) for name in VICTIMS for step in STEPS[:-1]]
            counts = {pair: self._report.kills[pair[0]][pair[1]] + self._wanted[pair] for pair in pairs}
            least = min(counts.values())
            pair = rng.choice([item for item in pairs if counts[item] == least])
            self._wanted[pair] += 1
            return pair

    def hit(self, pair: tuple[str, str], found: str, pause_s: float) -> None:
        """Kill a process at the step `found` (empty: the step never came) and start it again."""
        victim = pair[0]
        if found:
            with self._of[victim]:
                self._processes.kill(victim)
                time.sleep(pause_s)
                self._processes.restart(victim)
        with self._lock:
            self._wanted[pair] -= 1
            if found:
                self._report.kills[victim][found] += 1


def run_row(database: Database, run_id: str) -> Any:
    """Read how far a run is. (Any: a row.)"""
    query = (
        "SELECT state, outcome, ended_at, locked_at, approvals, (SELECT count(*) FROM approval WHERE "
        "about = 'rebalancing' AND subject = run_id AND verdict = 'approve') AS given FROM rebalancing "
        "WHERE run_id = :run"
    )
    with database.read() as session:
        return session.connection().execute(text(query), {"run": run_id}).one()


def step_of(database: Database, run_id: str) -> str:
    """The step that a run is at."""
    row = run_row(database, run_id)
    if row.ended_at:
        return "ended"
    if not row.locked_at:
        return "approval" if row.given < row.approvals else "begin"
    query = (
        "SELECT count(*) FROM rebalancing_trade t WHERE run_id = :run AND (state = 'planned' OR (state = "
        "'ordered' AND EXISTS (SELECT 1 FROM open_order o WHERE o.order_id = t.order_id)))"
    )
    with database.read() as session:
        left = session.connection().execute(text(query), {"run": run_id}).scalar_one()
    return "end" if row.state == "increases" and not left else str(row.state)
