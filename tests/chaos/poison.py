"""Send hostile inputs among normal submissions while Gateway, worker, relay and router are killed.

1. Warm up: fresh processes take some normal and hostile inputs, and are measured.
2. The run: hostile and normal inputs are mixed. In its first part each process is killed in turn and started
   again; in the rest nothing is killed, and it is longer than the warm-up. So a process that is measured at
   the end has had more hostile inputs than the one that it is compared with. A second Gateway lives through
   the whole run, so that a slow leak shows too.
3. At rest: each normal submission is decided, each row that no event may have is a dead letter and all others
   are published, a subscriber that listened from the beginning knows what the store knows, `/health` is ok,
   no process has ended by itself, and memory (PSS) and descriptors are within a fifth of those before.
"""

import json
import random
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from activities.events.bus import SqliteBus
from activities.events.dead_letters import SqlDeadLetters
from activities.events.outbox import SqlOutbox
from activities.fence.store import SqlFenceStore
from activities.storage.database import Database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.submission import EvidenceRef, LeaseFailure, StrategySubmit, SubmissionAck
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.stream import StreamClient
from tests.chaos.poisons import BusEntry, Poison, Request, Returns, Row, poisons, submission
from tests.support.frames import series
from tests.support.machine import START_LIMIT_S, Machine, wait_for
from tests.support.worlds import POLICY, WORLD

VICTIMS = ("gateway", "worker", "relay", "router")
MEASURED = (*VICTIMS, "gateway2")
HOSTILE = "poison"
"""The world that hostile inputs name."""
A_WORLD = 40
"""Normal submissions of one world."""
WARM_UP = 12
"""Normal submissions of the warm-up, and as many hostile inputs four times over."""
LIMIT_S = 300.0
"""Seconds in which an input must be answered, and a normal submission decided."""
ALLOWED = 1.2
"""What memory and descriptors may grow to, as a multiple of what they were."""
SETTLE_S = 20.0
"""Seconds in which connections that nobody uses any more are closed, and memory is given back."""
SLACK = {"pss_mb": 8.0, "descriptors": 6.0}
"""What counts as noise: a fifth of a small process is less than one arena, or than a few connections."""


_HTTP: dict[str, Any] = {"trust_env": False, "timeout": 60}


@dataclass
class Report:
    seed: int
    normal: int = 0
    decided: int = 0
    hostile: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    dead_letters: int = 0
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        return json.dumps(
            {
                "seed": self.seed,
                "normal": self.normal,
                "decided": self.decided,
                "hostile": sum(self.hostile.values()),
                "answers": dict(self.hostile),
                "kills": dict(self.kills),
                "dead_letters": self.dead_letters,
                "before": self.before,
                "after": self.after,
                "violations": len(self.violations),
                "first": self.violations[:5],
                "seconds": round(self.seconds, 1),
            }
        )


@dataclass(frozen=True)
class Place:
    """Where inputs are sent: the Gateway that is killed and the one that lives, the database and the bus."""

    urls: tuple[str, str]
    token: str
    database: Database
    bus: SqliteBus

    def client(self, number: int = 0) -> GatewayClient:
        """A client of the Gateway that is killed, or for an odd number of the one that lives."""
        return GatewayClient(self.urls[number % 2], self.token, away_limit_s=60.0)


class Sender:
    """Sends inputs from several threads, and notes in a report how each was answered."""

    def __init__(self, place: Place, report: Report) -> None:
        self._place = place
        self.report = report
        self.expected_dead = 0
        self._lock = threading.Lock()

    def send(self, worlds: list[str], normal: list[int], hostile: list[Poison]) -> None:
        """Send all inputs, some at the same time; return when each is answered."""
        with ThreadPoolExecutor(4) as people, ThreadPoolExecutor(2) as attackers:
            waiting = [people.submit(self.decide, worlds[n // A_WORLD], n) for n in normal]
            waiting += [attackers.submit(self.poison, poison) for poison in hostile]
            for item in waiting:
                item.result()

    def decide(self, world: str, number: int) -> None:
        """Submit a strategy, and compute it again and again until it is decided."""
        body = StrategySubmit.model_validate(submission(world, number))
        returns = encode(series([0.0] + [0.01, -0.005, 0.002 * (number % 7)] * 20))
        digest = content_hash(returns)
        deadline = time.monotonic() + LIMIT_S
        with self._place.client(number) as client:
            while time.monotonic() < deadline:
                try:
                    ack = client.submit(body)
                    if ack.lease:
                        client.put_artifact(digest, returns)
                        client.complete(ack.lease.lease_id, EvidenceRef(returns_hash=digest))
                    status = client.status(ack.strategy_id, world, ack.run_id, wait_s=20)
                except QmtlError as error:
                    if error.code not in _AGAIN:
                        return self.violation(f"normal {number} was refused: {error}")
                    body = _again(body, error)
                    continue
                if status.state != "running":
                    break
            else:
                return self.violation(f"normal {number} was not decided within {LIMIT_S:g} s")
        if status.state != "decided":
            return self.violation(f"normal {number} ended as {status.state}")
        with self._lock:
            self.report.decided += 1

    def poison(self, poison: Poison) -> None:
        if isinstance(poison, Request):
            answer = self._request(poison)
        elif isinstance(poison, Row):
            with self._place.database.write("poison", bookkeeping=True) as tx:
                tx.session.add(poison.row)
            with self._lock:
                self.expected_dead += poison.dead
            answer = "stored"
        elif isinstance(poison, BusEntry):
            self._place.bus._log.append([poison.entry])
            answer = "stored"
        else:
            answer = self._returns(poison)
        with self._lock:
            self.report.hostile[answer] += 1

    def _request(self, poison: Request) -> str:
        """Send a hostile request until it is answered, to either Gateway."""
        headers = {"authorization": f"Bearer {self._place.token}", **poison.headers}
        deadline, status = time.monotonic() + LIMIT_S, 0
        for attempt in range(10**6):
            url = self._place.urls[attempt % 2]
            try:
                answer = httpx.request(
                    poison.method,
                    url + poison.path,
                    content=poison.body,
                    headers=headers,
                    **_HTTP,
                )
                status = answer.status_code
            except httpx.TransportError:
                status = 0  # it is being killed, or it hung up on a body that is too large
            if status not in (0, 429, 503) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        refused = 400 <= status < 500 and "application/problem+json" in answer.headers["content-type"]
        if not refused and not (poison.accepted and status < 300):
            self.violation(f"{poison.kind} was answered {status}")
        return f"{status // 100}xx"

    def _returns(self, poison: Returns) -> str:
        """Let a strategy of its own complete with a hostile artifact."""
        body = StrategySubmit.model_validate(submission(HOSTILE, random.SystemRandom().randrange(10**6)))
        digest = content_hash(poison.data)
        deadline = time.monotonic() + LIMIT_S
        with self._place.client() as client:
            while time.monotonic() < deadline:
                try:
                    ack = client.submit(body)
                    if ack.lease is None:
                        return "judged" if client.status(ack.strategy_id, HOSTILE, ack.run_id, 20) else ""
                    return self._complete(client, ack, digest, poison)
                except QmtlError as error:
                    if error.code not in _AGAIN:
                        self.violation(f"{poison.kind} was answered {error}")
                        return error.code
                    body = _again(body, error)
        self.violation(f"{poison.kind} was not answered")
        return "none"

    @staticmethod
    def _complete(client: GatewayClient, ack: SubmissionAck, digest: str, poison: Returns) -> str:
        assert ack.lease is not None  # the caller saw it
        try:
            client.put_artifact(digest, poison.data)
            client.complete(ack.lease.lease_id, EvidenceRef(returns_hash=digest))
        except QmtlError as error:
            if error.code != "E_RETURNS_INVALID":
                raise
            failure = LeaseFailure(code=error.code, message=error.message, final=True)
            client.fail(ack.lease.lease_id, failure)
            return error.code
        return "judged"

    def violation(self, text: str) -> None:
        with self._lock:
            self.report.violations.append(text)


# Errors after which a runner submits again.
_AGAIN = ("E_LEASE_LOST", "E_LEASE_UNKNOWN", "E_UNAVAILABLE")


def _again(body: StrategySubmit, error: QmtlError) -> StrategySubmit:
    """The body with which a runner submits again: a key whose lease has ended gives no other one."""
    if error.code == "E_UNAVAILABLE":
        return body
    return body.model_copy(update={"idempotency_key": uuid.uuid4().hex})


class PoisonChaos:
    """A machine with two Gateways, of which one is killed, and the world that hostile inputs name."""

    def __init__(self, home: Path) -> None:
        self.machine = Machine(home, heartbeat_s=20.0, QMTL_GATEWAY__RATE_PER_S="100000")
        self._ended = threading.Event()

    def up(self) -> "PoisonChaos":
        self.machine.up()
        self._place = Place(
            (self.machine.url, self.machine.start_second_gateway()),
            self.machine.token(),
            self.machine.database(),
            SqliteBus(self.machine.config.bus_path),
        )
        with self._place.client() as client:
            client.create_world({**WORLD, "world": HOSTILE}, POLICY)
        return self

    def close(self) -> None:
        if hasattr(self, "_place"):
            self._place.bus.close()
            self._place.database.close()
        self.machine.close()

    def run(self, seed: int, normal: int, hostile: int) -> Report:
        rng, report, began = random.Random(seed), Report(seed, normal), time.monotonic()
        warm_up, sender = Sender(self._place, Report(seed)), Sender(self._place, report)
        worlds = self._create_worlds(normal + WARM_UP)
        with self._place.client() as client:
            stream = StreamClient([client], Subscribe(world_id=worlds[0], topics=("activation", "decisions")))
            stream.start()
            try:
                assert stream.ready(60), stream.fault
                numbers = list(range(normal, normal + WARM_UP))
                warm_up.send(worlds, numbers, poisons(HOSTILE, rng, 4 * WARM_UP))
                report.violations += warm_up.report.violations
                report.before = self._figures()
                inputs = poisons(HOSTILE, rng, hostile)
                killed = round(normal * 0.6), round(hostile * 0.6)
                killer = threading.Thread(target=self._kill, args=(rng, report))
                killer.start()
                try:
                    sender.send(worlds, list(range(killed[0])), inputs[: killed[1]])
                finally:
                    self._ended.set()
                    killer.join()
                sender.send(worlds, list(range(killed[0], normal)), inputs[killed[1] :])
                self._check(report, worlds, stream, warm_up.expected_dead + sender.expected_dead)
            finally:
                stream.close()
        report.seconds = time.monotonic() - began
        return report

    # what happens

    def _create_worlds(self, normal: int) -> list[str]:
        names = [f"normal{number}" for number in range(-(-normal // A_WORLD))]
        with self._place.client() as client:
            for name in names:
                client.create_world({**WORLD, "world": name}, POLICY)
        return names

    def _kill(self, rng: random.Random, report: Report) -> None:
        """Kill each process in turn until the first part of the run has ended, each at least once.

        The next is killed when the one before is up again: on a slow machine nothing would ever be up.
        """
        for round_ in range(1000):
            for victim in rng.sample(VICTIMS, len(VICTIMS)):
                if self._ended.wait(0.5 + rng.random() * 3.0) and round_:
                    return
                self.machine.kill(victim)
                self._restart(victim)
                report.kills[victim] += 1

    def _restart(self, name: str) -> None:
        """Start a process that was killed, and wait until it is ready."""
        start = {
            "gateway": self.machine.start_gateway,
            "worker": self.machine.start_worker,
            "relay": self.machine.start_relay,
            "router": self.machine.start_router,
        }[name]
        log = self.machine.home / f"{name}.log"
        before = log.read_text().count(": ready")
        start()
        if name != "gateway":  # whose start waits until it listens
            wait_for(lambda: log.read_text().count(": ready") > before, name, START_LIMIT_S)

    # what must hold

    def _check(self, report: Report, worlds: list[str], stream: StreamClient, dead: int) -> None:
        letters = SqlDeadLetters(self._place.database)
        outbox = SqlOutbox(self._place.database)
        rests = {
            "a published outbox": lambda: not outbox.waiting(1),
            "dead letters": lambda: letters.count(dead + 1) == dead,
            "health": lambda: self._get("/health").get("status") == "ok",
            "an empty commit log": lambda: self._get("/status").get("log_waiting") == 0,
            "a subscriber that knows what the store knows": lambda: self._is_up_to_date(stream, worlds[0]),
        }
        for what, condition in rests.items():
            try:
                wait_for(condition, what, 60)
            except AssertionError as error:
                report.violations.append(f"it did not come to rest: {error}")
        report.dead_letters = letters.count(1000)
        report.violations += [f"{name} has ended" for name in MEASURED if self.machine.ended(name)]
        metrics = httpx.get(f"{self.machine.url}/metrics", **_HTTP).text
        if f"\ndead_letters {float(report.dead_letters)}\n" not in metrics:
            report.violations.append("the metric of dead letters differs")
        deadline = time.monotonic() + SETTLE_S
        while True:
            report.after = self._figures()
            grown = [
                f"{figure} of {name} went from {value} to {report.after[name][figure]}"
                for name, before in report.before.items()
                for figure, value in before.items()
                if report.after[name][figure] > max(ALLOWED * value, value + SLACK[figure])
            ]
            if not grown or time.monotonic() > deadline:
                break
        report.violations += grown

    def _is_up_to_date(self, stream: StreamClient, world: str) -> bool:
        expected = SqlFenceStore(self._place.database).activation_hash(world)[1]
        return stream.connected and stream.states["activation"].state_hash == expected

    def _get(self, path: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._place.token}"}
        try:
            found: dict[str, Any] = httpx.get(self.machine.url + path, headers=headers, **_HTTP).json()
        except httpx.TransportError:
            return {}
        return found

    def _figures(self) -> dict[str, dict[str, float]]:
        """Memory and descriptors of each process; the smallest of some readings, since work may go on."""
        return {name: self._figure(psutil.Process(self.machine.pids[name])) for name in MEASURED}

    @staticmethod
    def _figure(process: psutil.Process) -> dict[str, float]:
        readings = []
        for _ in range(5):
            pss = process.memory_full_info().pss
            readings.append((round(pss / 2**20, 1), process.num_fds()))
            time.sleep(0.2)
        return {
            "pss_mb": min(pss for pss, _ in readings),
            "descriptors": float(min(count for _, count in readings)),
        }
