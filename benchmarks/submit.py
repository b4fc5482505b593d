"""Submissions over HTTP, on a stack of this run's own.

The ack of 20-node DAGs one after the other, beside that of an empty workflow on the same server, and a burst
from 20 clients.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from temporalio.client import Client

from activities.storage.opening import open_database
from benchmarks import empty_workflow
from qmtl_sdk import Node, Strategy, StreamInput
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.submission import EvidenceRef, StrategySubmit, SubmissionAck, SubmissionMeta
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.machine import Machine
from tests.support.submission_checker import submission_violations
from tests.support.worlds import POLICY, world
from workflows.ids import submission_run_of

NODES = 20
SUBMISSIONS = 100
BURST = 300
CLIENTS = 20
ACK_P95_MS = 75
DECIDED_PER_S = 8
DAY = 86_400


class Chain(Strategy):
    """A price and 19 nodes on it; `number` makes it another strategy."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def setup(self) -> None:
        node: Node = StreamInput(tags=["AAPL", "price"], interval="1d", period=20)
        nodes = [node]
        for depth in range(NODES - 1):
            node = Node(
                node, lambda view: view, name=f"step {depth}", params={"number": self.number, "depth": depth}
            )
            nodes.append(node)
        self.add_nodes(nodes)


def submission(number: int) -> StrategySubmit:
    build = BuiltStrategy(Chain(number))
    return StrategySubmit(
        world_id="equities",
        dag=build.dag,
        node_ids_crc32=build.crc32,
        idempotency_key=uuid.uuid4().hex,
        runner=f"bench-{number}",
        meta=SubmissionMeta(name=f"chain {number}"),
    )


def evidence(client: GatewayClient) -> EvidenceRef:
    """Some year of returns: what is measured here is the way, not the strategy."""
    values = np.random.default_rng(1).normal(0.0005, 0.01, 250)
    values[0] = 0
    data = encode(Returns(np.arange(250, dtype="int64") * DAY * NS, values, DAY, {}, {}, ()))
    client.put_artifact(content_hash(data), data)
    return EvidenceRef(returns_hash=content_hash(data))


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), heartbeat_s=300, fork=False)
        try:
            machine.up()
            with machine.client() as client:
                client.create_world(world(), POLICY)
                empty = empty_acks(machine.server.address)
                found = acks(client)
                ratio = round(found["ack_p95_ms"] / empty["ack_p95_ms"], 2)
                yield empty
                yield found | {"limit_ack_p95_ms": ACK_P95_MS, "ratio_empty_workflow": ratio}
                yield burst(machine, client)
        finally:
            machine.close()


def acks(client: GatewayClient) -> dict[str, Any]:
    for number in range(5):  # connections, caches
        client.submit(submission(10_000 + number))
    times = []
    for number in range(SUBMISSIONS):
        ready = submission(number)
        began = time.perf_counter()
        ack = client.submit(ready)
        times.append((time.perf_counter() - began) * 1000)
        assert len(ack.queue_map) == NODES
    return {
        "workload": "ack of a 20-node DAG",
        "peer": "qmtl",
        "submissions": SUBMISSIONS,
        **percentiles(times),
    }


def percentiles(times: list[float]) -> dict[str, float]:
    """The median and the 95th percentile of acks, in milliseconds."""
    times = sorted(times)
    return {
        "ack_p50_ms": round(statistics.median(times), 1),
        "ack_p95_ms": round(times[int(len(times) * 0.95)], 1),
    }


def empty_acks(address: str) -> dict[str, Any]:
    """The acks of an empty workflow with one empty local activity, from a worker of its own."""
    command = [sys.executable, "-m", "benchmarks.empty_workflow", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        try:
            times = asyncio.run(_empty_acks(address))
        finally:
            worker.terminate()
    return {"workload": "ack", "peer": "empty workflow", "submissions": SUBMISSIONS, **percentiles(times)}


async def _empty_acks(address: str) -> list[float]:
    client, times = await Client.connect(address), []
    for number in range(5 + SUBMISSIONS):
        began = time.perf_counter()
        await empty_workflow.admit(client)
        if number >= 5:  # connections, caches
            times.append((time.perf_counter() - began) * 1000)
    return times


def burst(machine: Machine, client: GatewayClient) -> dict[str, Any]:
    ready = [submission(20_000 + number) for number in range(BURST)]
    proof = evidence(client)
    times: list[float] = []
    began = time.perf_counter()

    def author(mine: list[StrategySubmit]) -> list[SubmissionAck]:
        acknowledged = []
        with machine.client() as connection:
            for submit in mine:
                sent = time.perf_counter()
                ack = connection.submit(submit)
                times.append((time.perf_counter() - sent) * 1000)
                assert ack.lease is not None
                connection.complete(ack.lease.lease_id, proof)
                acknowledged.append(ack)
            for ack in acknowledged:
                while connection.status(ack.strategy_id, "equities", ack.run_id, 30).outcome is None:
                    continue
        return acknowledged

    with ThreadPoolExecutor(CLIENTS) as pool:
        acknowledged = [
            ack for part in pool.map(author, [ready[i::CLIENTS] for i in range(CLIENTS)]) for ack in part
        ]
    seconds = time.perf_counter() - began
    database = open_database(machine.dsn)
    mine = {ack.run_id for ack in acknowledged}
    with database.read() as session:
        decided = Counter(
            submission_run_of(row[0])
            for row in session.connection().exec_driver_sql("SELECT request_id FROM evaluation_request")
        )
    # The runs of the ack suite still hold their leases: they are not this burst's to judge.
    broken = [
        line
        for line in submission_violations(database)
        if any(run in line for run in mine) or line.startswith("run ") is False
    ]
    database.close()
    return {
        "workload": "burst",
        "peer": "qmtl",
        "submissions": BURST,
        "clients": CLIENTS,
        "acknowledged": len(acknowledged),
        "decided": sum(1 for run in mine if decided[run] == 1),
        "decided_twice": sum(1 for run in mine if decided[run] > 1),
        "submission_violations": len(broken),
        **percentiles(times),
        "decided_per_s": round(BURST / seconds, 1),
        "asked_for": DECIDED_PER_S,
    }
