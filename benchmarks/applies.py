"""Applies on a stack of this run's own.

How long one takes in a clean world and in one with a past, how long the world is frozen, how soon everyone's
gate is closed, and how soon a halt holds with Temporal stopped.

A clean world has one strategy and one evaluation; the old one a hundred strategies and a thousand
evaluations. In both an apply changes the weight of one strategy.
"""

import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt

from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.stream import StreamClient
from tests.support.desk import Desk
from tests.support.machine import Machine

APPLIES = 20
RUNNERS = 4
STRATEGIES = 100
EVALUATIONS = 1000
LIMITS = {"ratio": 1.2, "frozen_s": 1.0, "gates_p95_s": 1.0, "halt_ms": 100}


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(
            Path(folder),
            fork=False,
            **{"QMTL_GATEWAY__RATE_PER_S": "5000", "QMTL_EVENTS__HEARTBEAT_S": "0.5"},
        )
        try:
            machine.up()
            database = machine.database()
            try:
                clean, old = Desk(database, "clean"), Desk(database, "old", strategies=STRATEGIES)
                for _ in range(EVALUATIONS - 1):
                    old.decide()
                for desk in (clean, old):
                    desk.apply("dryrun")
                with machine.client() as client:
                    yield from compared(client, clean, old)
                    yield gates(machine, client, clean)
                    yield halted(machine, client, clean)
            finally:
                database.close()
        finally:
            machine.close()


def compared(client: GatewayClient, clean: Desk, old: Desk) -> Iterator[dict[str, Any]]:
    """In turn, so that whatever else the machine does falls on both."""
    took: dict[str, list[float]] = {"clean": [], "old": []}
    frozen: dict[str, list[float]] = {"clean": [], "old": []}
    for number in range(APPLIES):
        for desk in (clean, old):
            seconds, closed = applied(client, desk, number)
            took[desk.world].append(seconds)
            frozen[desk.world].append(closed)
    medians = {name: statistics.median(found) for name, found in took.items()}
    for name, found in took.items():
        yield {
            "workload": "apply",
            "peer": f"{name} world",
            "applies": len(found),
            "p50_s": round(medians[name], 3),
            "p95_s": round(statistics.quantiles(found, n=20)[18], 3),
            "frozen_p50_s": round(statistics.median(frozen[name]), 3),
            "frozen_max_s": round(max(frozen[name]), 3),
            "limit_frozen_s": LIMITS["frozen_s"],
        }
    yield {
        "workload": "apply",
        "peer": "old world against clean",
        "ratio": round(medians["old"] / medians["clean"], 3),
        "limit_ratio": LIMITS["ratio"],
    }


def applied(client: GatewayClient, desk: Desk, number: int) -> tuple[float, float]:
    """An apply that takes a little weight away, which needs nobody's approval.

    From its request to its end, and from freeze to unfreeze.
    """
    name = desk.strategies[0]
    weight = next(item.weight for item in client.activation(desk.world) if item.strategy_id == name)
    request = ApplyRequest(
        run_id=f"bench-{number}-{uuid.uuid4().hex[:6]}",
        to="dryrun",
        strategies=(name,),
        weights={name: weight * 0.99},
    )
    began = time.perf_counter()
    client.apply(desk.world, request)
    found = client.apply_status(desk.world, request.run_id, wait_s=30)
    took = time.perf_counter() - began
    assert found.outcome == "completed", found.reason
    at = {step.name: step.started for step in found.steps}
    return took, (at["unfreeze"] - at["freeze"]).total_seconds()


def gates(machine: Machine, client: GatewayClient, desk: Desk) -> dict[str, Any]:
    """From the store's freeze to the handler of each runner, whose gate has closed by then."""
    waits: list[float] = []

    def hear(kind: str, event: CloudEvent) -> None:
        if (
            kind == "activation"
            and event.subject == WHOLE_WORLD
            and event.data
            and event.data["phase"] == "freeze"
            and not event.data["drain"]
        ):
            waits.append(time.time() - event.time.timestamp())

    clients = [machine.client() for _ in range(RUNNERS)]
    streams = [StreamClient([one], Subscribe(world_id=desk.world), on_event=hear).start() for one in clients]
    try:
        assert all(stream.ready(30) for stream in streams)
        for number in range(APPLIES):
            applied(client, desk, 1000 + number)
        deadline = time.monotonic() + 30
        while len(waits) < RUNNERS * APPLIES and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        for stream, one in zip(streams, clients, strict=True):
            stream.close()
            one.close()
    p95 = statistics.quantiles(waits, n=20)[18]
    return {
        "workload": "freeze to closed gates",
        "peer": "qmtl",
        "runners": RUNNERS,
        "heard": len(waits),
        "p50_s": round(statistics.median(waits), 3),
        "p95_s": round(p95, 3),
        "limit_s": LIMITS["gates_p95_s"],
    }


def halted(machine: Machine, client: GatewayClient, desk: Desk) -> dict[str, Any]:
    """From the request of a halt to the first refused order, with Temporal stopped and orders coming without
    pause.
    """
    machine.kill("temporal")
    actor = jwt.decode(machine.token(), options={"verify_signature": False})["sub"]
    session, stop, refused, accepted = desk.session(actor=actor), threading.Event(), list[float](), [0]
    key = SessionKey(session, desk.caller.secrets[session])

    def publish() -> None:
        with machine.client() as own:
            while not stop.is_set():
                verdict = own.publish_orders([desk.order(session, epoch)], key)[0]
                accepted[0] += verdict.accepted
                if not verdict.accepted:
                    refused.append(time.perf_counter())
                    return

    took = []
    for _ in range(APPLIES):
        epoch, accepted[0] = desk.epoch, 0
        refused.clear()
        thread = threading.Thread(target=publish)
        thread.start()
        while accepted[0] < 5:
            time.sleep(0.005)
        began = time.perf_counter()
        client.halt(desk.world, "bench")
        thread.join(10)
        took.append(1000 * (refused[0] - began))
        client.resume(desk.world, "bench")
    stop.set()
    return {
        "workload": "halt to the first refused order",
        "peer": "qmtl, Temporal stopped",
        "halts": len(took),
        "p50_ms": round(statistics.median(took), 1),
        "max_ms": round(max(took), 1),
        "limit_ms": LIMITS["halt_ms"],
    }
