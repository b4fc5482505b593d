"""Kill each process of the embedded stack, and each pair, while orders, an apply and submissions go on.

One case, in a world of its own that trades in dryrun and live:

1. Two traders order without pause, an author submits, an apply waits for its approval.
2. The supervisor is killed, then the processes of the case at once. So the dead stay dead.
3. `qmtl status` must name them all, and nobody else, within `NAMED_S`.
4. Where the router is dead and a Gateway lives, live orders must be refused (`no_router`) once the router is
   away for longer than the fence allows.
5. The apply is approved: just before the kill where the Gateway dies, otherwise now.
6. `qmtl world halt` must take effect in the store within `HALTED_S` of being typed.
7. `qmtl up` brings everything back. The world is resumed, and orders must pass again.
8. At rest, the order log, the audit trail and the commit log are checked: no acknowledged order or submission
   is lost, no order rests in `accepted`, each apply and each submission has ended.

Then the cases with one dead process are repeated with the supervisor alive, which must bring it back.
"""

import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from sqlalchemy import text

from activities.applies.requests import SqlApplyRequests
from activities.storage.database import Database
from activities.storage.tables import FenceRow
from activities.storage.transactions import utc_now, utc_text
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.runtime.embedded import ProcessRecord
from tests.chaos.author import Author
from tests.chaos.traders import Traders
from tests.chaos.world import OrderWorld, attempt
from tests.support.command import Person
from tests.support.command_machine import CommandMachine
from tests.support.fence_model import Unrouted
from tests.support.machine import wait_for
from tests.support.order_checker import order_violations
from tests.support.submission_checker import submission_violations
from tests.support.worlds import POLICY, WORLD

PROCESSES = ("temporal", "worker", "relay", "router", "gateway")
NAMED_S = 10.0
"""Seconds after the kill within which `qmtl status` names what is dead."""
HALTED_S = 2.0
"""Seconds within which a halt takes effect, from the start of the command."""
BACK_S = 90.0
"""Seconds in which everything must be back."""
REST_S = 120.0
"""Seconds in which everything must come to rest."""
NO_ROUTER_AFTER_S = 6.0
TTL_S = 600
"""Seconds for which a decision is valid: orders pass although no worker renews it."""
TRADING = (0, 2)
"""The strategies that trade: the first is live, the second in dryrun."""


def all_cases() -> list[tuple[str, ...]]:
    """Each process alone, then each pair."""
    return [(name,) for name in PROCESSES] + list(itertools.combinations(PROCESSES, 2))


@dataclass
class Case:
    """What was killed, and what was seen of it. Times are in seconds."""

    dead: tuple[str, ...]
    by: str
    """What brings it back: up or supervisor."""
    named_after_s: float | None = None
    halted_after_s: float | None = None
    halted_by: str = ""
    """What wrote the halt: the Gateway, or the command into the store."""
    command_s: float | None = None
    process_start_s: float | None = None
    """What it takes to start a process that loads what the halt command loads, measured just before."""
    back_after_s: float | None = None
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    withheld: int = 0
    submissions: int = 0
    apply: str = ""
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        body = asdict(self)
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in body.items()}
        return json.dumps(
            {**rounded, "violations": len(self.violations), "first": self.violations[:4]}, ensure_ascii=False
        )


class OrderTail:
    """Counts what the order log tells of a world, by kind or reason and domain, as it grows."""

    def __init__(self, database: Database, world: str) -> None:
        self._database = database
        self._world = world
        self._seq = 0
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, what: str, domain: str | None = None) -> int:
        """The orders with a verdict so far, in one domain or in all."""
        self._read()
        return sum(
            count for (kind, where), count in self._counts.items() if kind == what and domain in (None, where)
        )

    def verdicts(self) -> dict[str, int]:
        """All orders by verdict."""
        self._read()
        found: Counter[str] = Counter()
        for (kind, _), count in self._counts.items():
            found[kind] += count
        return dict(sorted(found.items()))

    def _read(self) -> None:
        query = (
            "SELECT seq, kind, reason, body FROM order_log WHERE world_id = :w AND seq > :seq "
            "AND kind IN ('accepted', 'refused', 'withheld') ORDER BY seq"
        )
        with self._database.read() as session:
            found = session.connection().execute(text(query), {"w": self._world, "seq": self._seq})
            rows = found.mappings().all()
        for row in rows:
            domain = json.loads(row["body"]).get("execution_domain", "")
            what = row["reason"] if row["kind"] == "refused" else row["kind"]
            self._counts[what, domain] += 1
            self._seq = row["seq"]


class PairChaos:
    """A stack that the command starts, and cases in it one after the other."""

    def __init__(self, folder: Path) -> None:
        self.machine = CommandMachine(
            folder,
            QMTL_EVENTS__HEARTBEAT_S="0.5",
            QMTL_GATEWAY__SESSION_LEASE_S="3",
            QMTL_GATEWAY__LEASE_HEARTBEAT_S="20",
            QMTL_GATEWAY__RATE_PER_S="5000",
            QMTL_ORDERS__PAPER_FILL_DELAY_S="0.02",
            QMTL_ORDERS__NO_ROUTER_AFTER_S=str(NO_ROUTER_AFTER_S),
        )
        self._database: Database | None = None

    def up(self) -> "PairChaos":
        self.machine.up()
        self._database = self.machine.database()
        return self

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
        self.machine.close()

    def run(self, dead: tuple[str, ...], by: str, seed: int, start_counts: bool = True) -> Case:
        """`start_counts`: whether the limit of a halt includes the start of the command's process.

        Where other tests keep the processors busy, it takes seconds.
        """
        assert self._database is not None, "it is not up"
        case, began = Case(dead, by), time.monotonic()
        with TradingWorld(self.machine, self._database, seed).open() as world:
            rng = random.Random(seed)
            CaseRun(self.machine, self._database, world, case, rng, start_counts).play()
        case.seconds = time.monotonic() - began
        return case


class TradingWorld:
    """A world with two strategies in live and two in dryrun, of which one each trades, and an author."""

    def __init__(self, machine: CommandMachine, database: Database, seed: int) -> None:
        self._machine = machine
        self._seed = seed
        self.world = OrderWorld(machine, seed)
        self.name = self.world.name
        self.tail = OrderTail(database, self.name)
        self.traders = Traders(machine, self.world)
        authors = f"authors-{self.name}"
        self.world.client.create_world({**WORLD, "world": authors}, POLICY)
        self.author = Author(machine.client(away_limit_s=1.0), authors)

    @contextmanager
    def open(self) -> Iterator["TradingWorld"]:
        """Bring its strategies to their stages; they trade and the author submits until the end."""
        world = self.world
        world.client.add_policy(self.name, {**world.policy, "decision_ttl": TTL_S})
        world.client.decide(self.name, f"decide-{self.name}")
        for run_id, stage, strategies in (
            ("to-dryrun", "dryrun", world.strategies),
            ("to-live", "live", world.strategies[:2]),
        ):
            self.request(run_id, stage, strategies)
            self.approve(run_id)
            outcome = wait_for(
                lambda run_id=run_id: world.client.apply_status(self.name, run_id, wait_s=20).outcome,  # type: ignore[misc]
                f"end of {run_id}",
                REST_S,
            )
            assert outcome == "completed", f"{run_id} ended as {outcome}"
        for number in TRADING:
            self.traders.start(number, self._seed)
            # Runners are other machines: what serves them has the processors first.
            psutil.Process(self.traders._processes[number].pid).nice(10)
        self.author.start()
        try:
            yield self
        finally:
            self.traders.end_all()
            self.author.close()
            self.world.close()

    def request(self, run_id: str, stage: str, strategies: Sequence[str]) -> None:
        rng = random.Random(f"{self._seed} {run_id}")
        weights = {name: round(0.05 + rng.random() / 5, 4) for name in strategies}
        wanted = ApplyRequest.model_validate(
            {"run_id": run_id, "to": stage, "strategies": strategies, "weights": weights}
        )
        self.world.client.apply(self.name, wanted, live=True)

    def approve(self, run_id: str) -> bool:
        return attempt(lambda: self.world.ana.approve(self.name, run_id, ApprovalBody(), live=True))

    def await_orders(self, limit_s: float = 60.0) -> None:
        """Until more orders of each domain have been accepted since."""
        for domain in ("live", "dryrun"):
            before = self.tail.count("accepted", domain)
            wait_for(
                lambda domain=domain, before=before: self.tail.count("accepted", domain) > before + 20,  # type: ignore[misc]
                f"orders in {domain}",
                limit_s,
            )


class NoRouter:
    """The time of a case without an order router: `refused_from` is when live orders are refused for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.refused_from = ""
        self.times: list[Unrouted] = []

    def begins(self) -> None:
        """Note that no router lives any more."""
        with self._database.read() as session:
            query = text("SELECT max(worked_at) FROM process WHERE name = 'router'")
            worked_at = datetime.fromisoformat(session.connection().execute(query).scalar_one())
        self.refused_from = utc_text(worked_at + timedelta(seconds=NO_ROUTER_AFTER_S))

    def await_refusals(self) -> None:
        """Wait until live orders are refused."""
        wait_for(lambda: utc_now() > self.refused_from, "time without a router", NO_ROUTER_AFTER_S + 10)

    def is_over(self, until: str) -> None:
        """Note that one works again. Before `until`, nothing could start one."""
        if begun := self.refused_from:
            self.times.append(Unrouted(begun, until, begun, utc_now()))


def named_dead(person: Person) -> set[str]:
    """Those whom `qmtl status` calls dead in its own line."""
    for line in person.types("status").stdout.splitlines():
        if line.startswith("dead   "):
            return set(line.removeprefix("dead").partition(":")[0].strip().split(", "))
    return set()


def is_healthy(person: Person) -> bool:
    """Whether `qmtl status` says that every process runs and the Gateway's health is ok."""
    found = person.reads("status")
    states = {name: part["state"] for name, part in found["processes"].items()}
    return all(states.get(name) == "running" for name in PROCESSES) and bool(
        found["running"] and found["health"]["status"] == "ok"
    )


def halt_modules(dead: Sequence[str]) -> tuple[str, ...]:
    """What a halt loads before it can act."""
    return ("api.cli.commands", *(("api.cli.halt_in_store",) if "gateway" in dead else ()))


class CaseRun:
    """One case, step by step. A step that fails is a violation; the later ones are played all the same."""

    def __init__(
        self,
        machine: CommandMachine,
        database: Database,
        world: TradingWorld,
        case: Case,
        rng: random.Random,
        start_counts: bool,
    ) -> None:
        self._start_counts = start_counts
        self._machine = machine
        self._person = machine.person
        self._database = database
        self._world = world
        self._case = case
        self._rng = rng
        self._no_router = NoRouter(database)
        self._killed: dict[str, ProcessRecord] = {}
        self._killed_at = 0.0
        self._log_before = ""

    def play(self) -> None:
        case, world = self._case, self._world
        supervised, gateway_dies = case.by == "supervisor", "gateway" in case.dead
        self._step(world.await_orders)
        self._step(lambda: wait_for(lambda: world.author.run_ids, "a submission"))
        self._step(lambda: world.request("under-way", "live", world.world.strategies[:2]))
        with ThreadPoolExecutor(1) as people:
            if gateway_dies or supervised:
                people.submit(world.approve, "under-way")
                time.sleep(self._rng.random() * 0.2)  # the kill comes at any moment of the apply
            self._step(self._kill)
            self._step(self._await_record if supervised else self._await_name)
            if "router" in case.dead and not supervised:
                self._step(self._await_refusals)
            if not (gateway_dies or supervised):
                people.submit(world.approve, "under-way")
            self._step(self._halt)
            self._step(self._await_supervisor if supervised else self._bring_up)
            self._step(self._resume)
        self._step(self._rest)

    def _step(self, step: Callable[[], object]) -> None:
        try:
            step()
        except (AssertionError, QmtlError) as error:
            self._case.violations.append(" ".join(str(error).split())[:400])

    # the kill, and what is said of it

    def _kill(self) -> None:
        records = self._machine.records()
        self._log_before = self._machine.log_of("supervisor")
        self._killed = {name: records[name] for name in self._case.dead}
        if self._case.by == "up":
            self._machine.kill_all(("supervisor",))
            self._killed["supervisor"] = records["supervisor"]
        self._killed_at = time.monotonic()
        self._machine.kill_all(self._case.dead)
        if "router" in self._case.dead:
            self._no_router.begins()

    def _await_name(self) -> None:
        named = wait_for(
            lambda: found if (found := named_dead(self._person)) >= set(self._killed) else None,
            "name of what is dead",
            3 * NAMED_S,
        )
        self._case.named_after_s = self._since_kill
        self._require("status named what is dead", self._case.named_after_s, NAMED_S)
        others = named - set(self._killed)
        assert not others, f"status names {', '.join(sorted(others))} dead, which lives"

    def _await_record(self) -> None:
        """The supervisor is faster than a person: its log must name what it has started again."""
        for name in self._case.dead:
            wait_for(
                lambda name=name: f"the {name} had died; started it" in self._supervisor_said,  # type: ignore[misc]
                f"line of the supervisor about the {name}",
                3 * NAMED_S,
            )
        self._case.named_after_s = self._since_kill
        self._require("the supervisor named what was dead", self._case.named_after_s, NAMED_S)

    @property
    def _supervisor_said(self) -> str:
        return self._machine.log_of("supervisor").removeprefix(self._log_before)

    @property
    def _since_kill(self) -> float:
        return time.monotonic() - self._killed_at

    # what an operator does

    def _await_refusals(self) -> None:
        """Live orders are refused once the router is away for long enough."""
        self._no_router.await_refusals()
        if "gateway" not in self._case.dead:
            before = self._world.tail.count("no_router", "live")
            wait_for(
                lambda: self._world.tail.count("no_router", "live") > before + 20,
                "live orders that are refused as there is no router",
                20,
            )

    def _halt(self) -> None:
        began = time.monotonic()
        loaded = self._person.runs(sys.executable, "-c", f"import {', '.join(halt_modules(self._case.dead))}")
        assert loaded.returncode == 0, loaded.stderr
        self._case.process_start_s = time.monotonic() - began
        with ThreadPoolExecutor(1) as operator:
            began = time.monotonic()
            typed = operator.submit(
                self._person.types, "world", "halt", self._world.name, "--reason", "pairs"
            )
            wait_for(self._is_halted, "halt", 60)
            self._case.halted_after_s = time.monotonic() - began
            done = typed.result()
            self._case.command_s = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        self._case.halted_by = "store" if "straight into the store" in done.stdout else "Gateway"
        start_s = 0.0 if self._start_counts else self._case.process_start_s
        load = f"{os.getloadavg()[0]:.0f} processes want to run on {len(os.sched_getaffinity(0))} processors"
        what = f"(its process takes {self._case.process_start_s:.2f} s to start; {load}) the halt took effect"
        self._require(what, self._case.halted_after_s - start_s, HALTED_S)

    def _is_halted(self) -> bool:
        with self._database.read() as session:
            return bool(session.get_one(FenceRow, self._world.name).halted)

    def _bring_up(self) -> None:
        address, began, at = self._machine.url, time.monotonic(), utc_now()
        self._machine.up()
        self._case.back_after_s = time.monotonic() - began
        assert self._machine.url == address, "traders and authors know the Gateway's address"
        self._no_router.is_over(at)
        self._require("up had brought everything back", self._case.back_after_s, BACK_S)
        self._check_who_started("")

    def _await_supervisor(self) -> None:
        wait_for(lambda: is_healthy(self._person), "health", BACK_S)
        self._no_router.is_over("")
        self._case.back_after_s = self._since_kill
        self._check_who_started("had died; started it as pid")

    def _check_who_started(self, line: str) -> None:
        """Every dead process has a successor, and the supervisor's log names exactly those of its own."""
        now = self._machine.records()
        for name, before in self._killed.items():
            assert now[name] != before, f"nothing started the {name}"
            assert now[name].alive, f"the {name} is dead again"
            said = f"the {name} {line} {now[name].pid}" if line else f"the {name} had died"
            assert (said in self._supervisor_said) is bool(line), f"the supervisor's log on the {name}"

    def _resume(self) -> None:
        assert self._is_halted(), "it was halted, and is not"
        done = self._person.types("world", "resume", self._world.name)
        assert done.returncode == 0, done.stderr
        client = self._world.world.client
        wait_for(
            lambda: client.apply_status(self._world.name, "under-way", wait_s=5).outcome,
            "end of the apply that was under way",
            REST_S,
        )
        if client.fence(self._world.name).state != "open":  # an apply that could not go on leaves it so
            attempt(lambda: client.resume(self._world.name, "pairs"))
        self._world.await_orders()

    # what must hold at rest

    def _rest(self) -> None:
        world, case = self._world, self._case
        world.traders.end_all()
        world.author.close()
        client = world.world.client
        case.apply = str(client.apply_status(world.name, "under-way").outcome)
        applies = SqlApplyRequests(self._database)
        for what, condition in {
            "end of all applies": lambda: not applies.unfinished(),
            "end of all orders": lambda: client.fence(world.name).open_orders == 0,
        }.items():
            self._step(lambda what=what, condition=condition: wait_for(condition, what, REST_S))  # type: ignore[misc]
        counts = world.tail.verdicts()
        case.accepted, case.withheld = counts.pop("accepted", 0), counts.pop("withheld", 0)
        case.refused, case.submissions = counts, world.author.decided
        told, contradictions = world.traders.verdicts()
        case.violations += contradictions
        case.violations += order_violations(self._database, world.name, told, unrouted=self._no_router.times)
        case.violations += [*world.author.violations, *world.author.lost(self._database)]
        case.violations += submission_violations(self._database)
        done = self._person.types("world", "audit", world.name, "--verify")
        assert done.returncode == 0, done.stderr

    def _require(self, what: str, took_s: float, limit_s: float) -> None:
        if took_s > limit_s:
            self._case.violations.append(f"{what} after {took_s:.2f} s, not within {limit_s:g} s")


def summary(cases: Sequence[Case], first_seed: int) -> dict[str, object]:
    """The worst figures of all cases."""

    def most(name: str) -> float:
        return round(max((getattr(case, name) or 0.0 for case in cases), default=0.0), 2)

    figures = ("named_after_s", "halted_after_s", "command_s", "process_start_s", "back_after_s")
    refused: Counter[str] = Counter()
    for case in cases:
        refused.update(case.refused)
    past_start = [(case.halted_after_s or 0.0) - (case.process_start_s or 0.0) for case in cases]
    return {
        "first_seed": first_seed,
        "cases": len(cases),
        "supervised": sum(case.by == "supervisor" for case in cases),
        "most": {name: most(name) for name in figures},
        "most_halted_after_process_start_s": round(max(past_start, default=0.0), 2),
        "accepted": sum(case.accepted for case in cases),
        "refused": dict(refused),
        "submissions": sum(case.submissions for case in cases),
        "applies": dict(Counter(case.apply for case in cases)),
        "halted_by": dict(Counter(case.halted_by for case in cases)),
        "violations": sum(len(case.violations) for case in cases),
    }


def pairs(count: int, seed: int) -> int:
    """Each case with the supervisor dead, and those with one dead process with it alive as well."""
    chosen = all_cases()[:count]
    wanted = [(dead, "up") for dead in chosen] + [(dead, "supervisor") for dead in chosen if len(dead) == 1]
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        chaos = PairChaos(Path(folder))
        try:
            chaos.up()
            for number, (dead, by) in enumerate(wanted):
                cases.append(chaos.run(dead, by, seed + number))
                print(cases[-1].line(), flush=True)
        finally:
            chaos.close()
    print(json.dumps(summary(cases, seed)), flush=True)
    return 1 if any(case.violations for case in cases) else 0
