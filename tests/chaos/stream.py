"""Kill relay, Gateway, worker and runner while events flow; check that each subscriber received every event,
once and in order.

A run has a world of its own, a strategy that runs in a process of its own, subscribers that listen from the
first event on, and a writer that changes policies and asks for decisions. The killer strikes at seeded random
moments and starts again what it killed. At the end it waits until nothing is under way, and compares the
store with what each subscriber has handled.
"""

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from activities.events.bus import SqliteBus
from activities.events.outbox import SqlOutbox
from activities.storage.database import Database
from activities.storage.tables import OutboxRow
from qmtl_sdk.contracts.events import topic_of
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.stream import StreamClient
from tests.support import ROOT
from tests.support.events import record_change
from tests.support.forked import Forked
from tests.support.machine import Machine, wait_for
from tests.support.worlds import PAPER, WORLD

VICTIMS = ("relay", "gateway", "worker", "runner")
TOPICS = ("activation", "decisions", "policy", "queues", "sessions", "submissions")
CLOSED = {"selection": {"gates": {"and": ["sharpe >= 50"]}}}


class Forgetful(StreamClient):
    """The resume taken out: it never says where it was."""

    @property
    def positions(self) -> dict[str, int]:
        return {}


@dataclass
class Report:
    seed: int
    events: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        return json.dumps(
            {
                "seed": self.seed,
                "events": self.events,
                "kills": dict(self.kills),
                "reconnects": self.reconnects,
                "violations": self.violations[:5],
                "seconds": round(self.seconds, 1),
            }
        )


class Subscriber:
    """A stream client that listens to a world from its first event on, and what it handled."""

    def __init__(self, client: type[StreamClient], gateway: GatewayClient, world: str) -> None:
        self.handled: list[tuple[str, str]] = []
        self.stream = client(
            [gateway],
            Subscribe(world_id=world, topics=TOPICS),
            on_event=lambda kind, event: self.handled.append((kind, event.id)),
        )
        self._gateway = gateway

    def close(self) -> None:
        self.stream.close()
        self._gateway.close()

    def violations(self, published: dict[str, list[str]], expected_hash: str) -> list[str]:
        """Compare what was handled with what was published; return what differs."""
        violations = []
        twice = [item for item, count in Counter(self.handled).items() if count > 1]
        if twice:
            violations.append(f"handled {len(twice)} events twice")
        for topic in TOPICS:
            expected = published.get(topic, [])
            handled = [event_id for kind, event_id in self.handled if kind == topic]
            handled = [event_id for event_id in handled if event_id in set(expected)]
            if handled != expected:
                missing = len(set(expected) - set(handled))
                violations.append(
                    f"{topic}: {missing} of {len(expected)} missing" if missing else f"{topic}: out of order"
                )
        if self.stream.states["activation"].state_hash != expected_hash:
            violations.append("its activation is not the store's")
        if self.stream.counters.snapshots.keys() - {"first"}:
            violations.append(
                f"got a snapshot that it should not need: {dict(self.stream.counters.snapshots)}"
            )
        if self.stream.counters.max_gap:
            violations.append(f"a gap of {self.stream.counters.max_gap}")
        return violations


def newest_row(database: Database, world: str) -> int:
    """The newest row of the outbox that was there before the subscribers' first event."""
    return max((row.seq or 0 for row in rows_of(database, world)), default=0)


def rows_of(database: Database, world: str) -> Sequence[OutboxRow]:
    with database.read() as session:
        return session.exec(
            select(OutboxRow).where(OutboxRow.world_id == world).order_by(col(OutboxRow.seq))
        ).all()


def published_by_topic(rows: Sequence[OutboxRow], world: str, after: int) -> dict[str, list[str]]:
    """The events of a world that follow a row of the outbox, by topic, in their order."""
    published: dict[str, list[str]] = {}
    for row in rows:
        if row.seq is not None and row.seq > after:
            published.setdefault(topic_of(world, row.type).rpartition(".")[2], []).append(row.event_id)
    return published


class Chaos:
    """A machine on which runs happen one after the other."""

    def __init__(
        self,
        home: Path,
        relay: str = "activities.events.relay",
        client: type[StreamClient] = StreamClient,
        rest_s: float = 90.0,
    ) -> None:
        self._relay = relay
        self._client = client
        self._rest_s = rest_s
        self.machine = Machine(
            home, **{"QMTL_EVENTS__HEARTBEAT_S": "0.2", "QMTL_GATEWAY__SESSION_LEASE_S": "3"}
        )
        self._runner: Forked | None = None
        self._env: dict[str, str] = {}

    def up(self) -> "Chaos":
        self.machine.start_temporal()
        self.machine.start_worker()
        self.machine.start_relay(self._relay)
        self.machine.start_gateway()
        return self

    def close(self) -> None:
        self._end_runner()
        self.machine.close()

    def run(self, seed: int, changes: int = 30) -> Report:
        rng, report, began = random.Random(seed), Report(seed), time.monotonic()
        world = f"chaos{seed}x{int(time.time() * 1000) % 10**9}"
        database = self.machine.database()
        with self.machine.client(away_limit_s=120.0) as client:
            client.create_world(
                {
                    **WORLD,
                    "world": world,
                    "clock": {"replay": {"start": "2017-06-30T00:00:00Z", "speed": 3 * 86_400.0}},
                },
                PAPER,
            )
            subscribers = [
                Subscriber(self._client, self.machine.client(away_limit_s=0.0), world) for _ in range(3)
            ]
            streams = [subscriber.stream for subscriber in subscribers]
            for stream in streams:
                stream.start()
            try:
                assert all(stream.ready(60) for stream in streams), [stream.fault for stream in streams]
                base = newest_row(database, world)
                self._start_runner(world)
                stop = threading.Event()
                killer = threading.Thread(target=self._kill, args=(rng, stop, report))
                killer.start()
                try:
                    self._write(random.Random(seed + 1), client, database, world, changes)
                finally:
                    stop.set()
                    killer.join()
                self._quiet(database, streams, world, report)
                expected_hash = client.activation_hash(world)
                rows = rows_of(database, world)
                report.events = len(rows)
                published = published_by_topic(rows, world, base)
                for number, subscriber in enumerate(subscribers):
                    found = subscriber.violations(published, expected_hash)
                    report.violations += [f"subscriber {number}: {violation}" for violation in found]
            finally:
                for subscriber in subscribers:
                    subscriber.close()
                self._end_runner()
                database.close()
        report.reconnects = sum(stream.counters.reconnects for stream in streams)
        report.seconds = time.monotonic() - began
        return report

    # what happens

    def _write(self, rng: random.Random, client: Any, database: Database, world: str, changes: int) -> None:
        """Policies that let the strategy in and out, decisions, and changes straight in the store.

        Every call is repeated until it is answered.
        """
        for i in range(changes):
            what = rng.random()
            if what < 0.35:
                client._call("POST", f"/worlds/{world}/policies", json=rng.choice((PAPER, CLOSED)))
            elif what < 0.7:
                client.decide(world, f"chaos-decide-{i}")
            else:
                for n in range(rng.randint(1, 10)):
                    record_change(database, f"told{n % 3}", i * 100 + n, world)
            time.sleep(rng.random() * 0.15)

    def _kill(self, rng: random.Random, stop: threading.Event, report: Report) -> None:
        for _ in range(rng.randint(3, 6)):
            if stop.wait(0.1 + rng.random() * 2.5):
                return
            victim = rng.choice(VICTIMS)
            if victim == "runner":
                self._end_runner()
                self._start_runner()
            else:
                self.machine.kill(victim)
                {
                    "relay": lambda: self.machine.start_relay(self._relay),
                    "worker": self.machine.start_worker,
                    "gateway": lambda: self.machine._start("gateway", "api.gateway", {}),
                }[victim]()
            report.kills[victim] += 1

    def _start_runner(self, world: str = "") -> None:
        if world:
            self._state = self.machine.home / f"{world}.runner.json"
            self._env = {
                **os.environ,
                "QMTL_GATEWAY__URL": self.machine.url,
                "QMTL_HOME": str(self.machine.home),
                "PYTHONPATH": str(ROOT),
            }
            self._world = world
        log = self.machine.home / "runner.log"
        self._runner = Forked("tests.chaos.runner", self._world, str(self._state), env=self._env, log=log)

    def _end_runner(self) -> None:
        if self._runner is not None:
            self._runner.kill()
            self._runner.wait()

    # what must hold

    def _quiet(self, database: Database, streams: list[StreamClient], world: str, report: Report) -> None:
        """Wait until the relay has published all events, the runner runs, and each subscriber handled them.

        Whatever does not get there in time is a violation.
        """
        outbox, bus = SqlOutbox(database), SqliteBus(self.machine.config.bus_path)

        def quiet() -> bool:
            if outbox.waiting(1) or not all(stream.connected for stream in streams):
                return False
            # What the log has, not what a heartbeat said of it a moment ago.
            ends = {topic: bus.bounds(f"{world}.{topic}").last for topic in TOPICS}
            return all(
                stream.states[topic].sequence >= last for stream in streams for topic, last in ends.items()
            )

        try:
            wait_for(lambda: self._runner_says(world, database), "runner", self._rest_s)
            wait_for(quiet, "quiet", self._rest_s)
        except AssertionError as error:
            report.violations.append(
                f"it did not come to rest: {error}; {[stream.fault for stream in streams]}"
            )
        finally:
            bus.close()

    def _runner_says(self, world: str, database: Database) -> bool:
        """Whether the strategy's process, as it is now, has come to the store's activation."""
        assert self._runner is not None  # it was started
        if self._runner.poll() is not None:
            self._start_runner()  # it may have been refused while its Gateway was away
            return False
        try:
            said = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return False
        if said["pid"] != self._runner.pid:
            return False
        from activities.fence.store import SqlFenceStore

        return (
            bool(said["state_hash"] == SqlFenceStore(database).activation_hash(world)[1])
            or not said["running"]
        )
