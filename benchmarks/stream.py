"""The control stream, on a stack of this run's own.

From the store's commit to handlers in other processes.

Workloads: the time on the way at a steady rate; events a second to ten subscribers, beside the same events
read straight from the bus (the limit); the Gateway's memory with a thousand idle subscribers; and what a
reader that stops reading costs the others.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from activities.events.bus import SqliteBus
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.stream import StreamClient
from tests.support.events import record_change
from tests.support.machine import Machine
from tests.support.worlds import POLICY, world

SUBSCRIBERS = 10
PROCESSES = 2
IDLE = 1000
WORLD = "equities"
TOPICS = ("policy",)


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(
            Path(folder),
            fork=False,
            **{
                "QMTL_GATEWAY__MAX_SOCKETS": "5000",
                "QMTL_GATEWAY__RATE_PER_S": "5000",
                "QMTL_EVENTS__SLOW_READER_S": "60",
            },
        )
        try:
            machine.start_temporal()
            machine.start_relay()
            machine.start_gateway()
            with machine.client() as client:
                client.create_world(world(WORLD), POLICY)
                yield idle(machine, client)
                database = machine.database()
                try:
                    yield steady(machine, database, "delivery")
                    yield from burst(machine, database)
                    yield slow_reader(machine, database, client)
                finally:
                    database.close()
        finally:
            machine.close()


@contextmanager
def subscribers(machine: Machine, events: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Ten of them in two processes, listening."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.stream",
        machine.url,
        machine.token(),
        str(SUBSCRIBERS // PROCESSES),
        str(events),
    ]
    found = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    try:
        for process in found:
            assert process.stdout is not None  # asked for
            assert process.stdout.readline() == "ready\n"
        yield found
    finally:
        for process in found:
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.communicate()


def results(processes: "list[subprocess.Popen[str]]") -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for process in processes:
        assert process.stdout is not None  # asked for
        lines.append(json.loads(process.stdout.readline()))
    return lines


def steady(
    machine: Machine, database: Database, name: str, rate: float = 40.0, events: int = 300
) -> dict[str, Any]:
    """A commit every 25 ms; the time from its return to each handler."""
    with subscribers(machine, events) as listening:
        committed: list[float] = []
        begin = time.perf_counter()
        for i in range(events):
            record_change(database, f"s{i % 10}", i, WORLD)
            committed.append(time.time())
            time.sleep(max(0.0, begin + (i + 1) / rate - time.perf_counter()))
        found = results(listening)
    delays = sorted((at - committed[version]) * 1000 for part in found for version, at in part["handled"])
    assert len(delays) == events * SUBSCRIBERS, "a subscriber missed an event"
    return {
        "workload": name,
        "peer": "qmtl",
        "subscribers": SUBSCRIBERS,
        "events_per_s": rate,
        "commit_to_handler_p50_ms": round(statistics.median(delays), 1),
        "commit_to_handler_p95_ms": round(delays[int(len(delays) * 0.95)], 1),
        "limit_p95_ms": 250,
        "ratio_to_limit": round(delays[int(len(delays) * 0.95)] / 250, 3),
    }


def burst(
    machine: Machine, database: Database, events: int = 3000, together: int = 20
) -> Iterator[dict[str, Any]]:
    bus = SqliteBus(machine.home / "bus.db")
    with subscribers(machine, events) as listening:
        began, position = time.time(), bus.end()
        for start in range(0, events, together):
            with database.write("bench") as tx:
                for i in range(start, start + together):
                    tx.record(
                        RecordedChange(
                            "bench.told",
                            WORLD,
                            f"s{i % 10}",
                            event="policy_updated",
                            data={"world_id": WORLD, "version": i},
                        )
                    )
        found = results(listening)
    last = max(at for part in found for _, at in part["handled"])
    read = time.perf_counter()
    count = 0
    while count < events:
        items, position = bus.follow(position)
        count += len(items)
    limit = SUBSCRIBERS * events / (SUBSCRIBERS * (time.perf_counter() - read))
    bus.close()
    delivered = sum(len(part["handled"]) for part in found)
    assert delivered == events * SUBSCRIBERS, "a subscriber missed an event"
    for peer, rate in (("qmtl", delivered / (last - began)), ("one reader of the bus", limit)):
        yield {
            "workload": "burst",
            "peer": peer,
            "subscribers": SUBSCRIBERS,
            "events": events,
            "delivered_per_s": round(rate),
            "asked_for": 2000,
        }


def slow_reader(machine: Machine, database: Database, client: GatewayClient) -> dict[str, Any]:
    """The same steady rate with a socket open that nobody reads, while it is offered more than its buffers
    hold.
    """
    without = steady(machine, database, "no slow reader")
    subscription = client.subscribe(Subscribe(world_id=WORLD, topics=("policy", "worlds")))
    with connect(subscription.stream_url, compression=None, max_size=None, max_queue=1, proxy=None) as stuck:
        stuck.send(json.dumps({"type": "hello", "token": subscription.token}))
        for i in range(200):
            with database.write("bench") as tx:
                tx.record(
                    RecordedChange(
                        "bench.told",
                        WORLD,
                        f"wide{i % 5}",
                        event="world.wide",
                        data={"version": i, "filler": "x" * 60_000},
                    )
                )
        beside = steady(machine, database, "slow reader")
    key = "commit_to_handler_p95_ms"
    return {
        "workload": "slow reader",
        "peer": "qmtl without one",
        "p95_ms_without": without[key],
        "p95_ms_beside": beside[key],
        "ratio": round(beside[key] / without[key], 3),
    }


def idle(machine: Machine, client: GatewayClient) -> dict[str, Any]:
    process = psutil.Process(machine.pids["gateway"])
    before = process.memory_info().rss

    async def hold() -> int:
        subscription = client.subscribe(Subscribe(world_id=WORLD, topics=("activation", "decisions")))

        async def one() -> Any:
            socket = await connect_async(
                subscription.stream_url, compression=None, proxy=None, open_timeout=60
            ).__aenter__()
            await socket.send(json.dumps({"type": "hello", "token": subscription.token}))
            await socket.recv()
            return socket

        sockets: list[Any] = []
        for _ in range(IDLE // 50):
            sockets += await asyncio.gather(*(one() for _ in range(50)))
        await asyncio.sleep(5)
        after = process.memory_info().rss
        for socket in sockets:
            await socket.close()
        return after

    after = asyncio.run(hold())
    mib = after / 2**20
    return {
        "workload": "idle subscribers",
        "peer": "qmtl",
        "subscribers": IDLE,
        "gateway_mb": round(after / 1e6, 1),
        "gateway_mib": round(mib, 1),
        "gateway_mib_before": round(before / 2**20, 1),
        "kib_a_subscriber": round((after - before) / IDLE / 1024, 1),
        "limit_mb": 300,
        "ratio_to_limit": round(after / 300e6, 3),
    }


def listen(url: str, token: str, count: int, events: int) -> None:
    """A process of subscribers: says when it is ready, then when each event was handled."""
    handled: list[tuple[int, float]] = []
    with GatewayClient(url, token) as client:
        streams = [
            StreamClient(
                [client],
                Subscribe(world_id=WORLD, topics=TOPICS),
                on_event=lambda _, event: handled.append((event.data["version"], time.time())),
            ).start()  # type: ignore[index]
            for _ in range(count)
        ]
        assert all(stream.ready() for stream in streams)
        print("ready", flush=True)
        goal = events * count
        deadline = time.monotonic() + 120
        while len(handled) < goal and time.monotonic() < deadline:
            time.sleep(0.01)
        print(
            json.dumps({"handled": handled, "gaps": max(stream.counters.max_gap for stream in streams)}),
            flush=True,
        )
        for stream in streams:
            stream.close()


if __name__ == "__main__":
    listen(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
