"""Judgments and admissions at scale, on SQLite and PostgreSQL.

A world of a thousand strategies is judged, with a limit on correlations; meanwhile orders of another world go
on. How long its fence is held is the time for which an order of the judged world would wait. Then a chain of
1,500 nodes is admitted, and the size of an acknowledgement with 500 streams is measured.
"""

import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from activities.artifacts.folder import FolderArtifacts
from activities.decisions.activities import DecisionActivities, DecisionStores
from activities.fence.acceptance import OrderAcceptance
from activities.messages.evaluation import JudgeCommand
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore
from benchmarks.orders import postgres
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.submission import QueueTarget, StreamBinding, SubmissionAck
from qmtl_sdk.contracts.worlds import Execution, Preset
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy, Strategy
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns
from tests.support.admissions import diff
from tests.support.desk import GATED, Desk

STRATEGIES = 1_000
DAYS = 500
JUDGMENTS = 5
ORDERS = 400
CHAIN = 1_500
STREAMS = 500
DAY = 86_400
RULES = {
    **GATED,
    "selection": {
        "gates": {"and": ["sharpe >= 0"]},
        "score": "sharpe",
        "topk": {"total": 50},
        "constraints": {"correlation": {"max_pairwise": 0.8}},
    },
}
LIMITS = {"judged_s": 1.0, "fence_ms": 20.0, "orders_p99": 1.1, "ack_bytes": 200_000, "chain_s": 0.5}


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder) / "pg") as server:
        for backend, dsn in (("sqlite", f"sqlite:///{folder}/store.db"), ("postgres", server("judgment"))):
            with closing(open_database(dsn)) as database:
                judge = judging(database, Path(folder) / f"artifacts-{backend}")
                yield judged(backend, judge)
                yield beside_orders(backend, database, judge)
                yield chain(backend, database)
    yield streams()


def judging(database: Database, artifacts: Path) -> Callable[[], float]:
    """Fill a world with strategies, and return what judges it once. It returns the seconds of a judgment."""
    store, rng = FolderArtifacts(artifacts), np.random.default_rng(1)
    desk = Desk(database, "judged", found=policy_from(RULES))
    market = rng.normal(0, 0.01, DAYS)
    for number in range(STRATEGIES):
        artifact = returns(market * rng.uniform(-1, 1) + rng.normal(0, 0.01, DAYS))
        digest = content_hash(artifact)
        store.put(digest, artifact)
        desk.evidence(f"strategy:judged{number}", float(rng.normal(1, 0.3)), digest)
    judge = DecisionActivities(
        DecisionStores(SqlWorldStore(database), SqlPolicyStore(database), desk.decisions, desk.fence, store)
    ).judge

    def once() -> float:
        command = JudgeCommand(
            store_id=database.store_id, world_id="judged", run_id="bench", request_ids=(uuid.uuid4().hex,)
        )
        began = time.perf_counter()
        judge(command)
        return time.perf_counter() - began

    once()
    return once


def returns(values: np.ndarray) -> bytes:
    """An artifact of daily returns."""
    values[0] = 0.0
    return encode(Returns(np.arange(DAYS, dtype="int64") * DAY * 10**9, values, DAY, {}, {}, ()))


def judged(backend: str, judge: Callable[[], float]) -> dict[str, Any]:
    took = sorted(judge() for _ in range(JUDGMENTS))
    return {
        "workload": f"judge {STRATEGIES} strategies",
        "peer": backend,
        "p50_s": round(statistics.median(took), 3),
        "max_s": round(took[-1], 3),
        "limit_s": LIMITS["judged_s"],
        "ratio_limit": round(statistics.median(took) / LIMITS["judged_s"], 3),
    }


def beside_orders(backend: str, database: Database, judge: Callable[[], float]) -> dict[str, Any]:
    """Orders of another world alone, and beside judgments; and the wait for the judged world's fence."""
    desk = Desk(database, "trading")
    desk.judge(Path())
    desk.apply("dryrun")
    session, acceptance = desk.session(), OrderAcceptance(database)

    def p99() -> float:
        took = []
        for _ in range(ORDERS):
            began = time.perf_counter()
            (verdict,) = acceptance.publish([desk.order(session, desk.epoch)], desk.caller)
            took.append(time.perf_counter() - began)
            assert verdict.accepted, verdict
        return 1000 * statistics.quantiles(took, n=100)[98]

    alone = p99()
    stop, waits = threading.Event(), list[float]()

    def judge_on() -> None:
        while not stop.is_set():
            judge()

    def probe() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            with database.write("bench", bookkeeping=True) as tx:
                tx.lock("fence:judged")
            waits.append(time.perf_counter() - began)
            time.sleep(0.002)

    threads = [threading.Thread(target=judge_on), threading.Thread(target=probe)]
    for thread in threads:
        thread.start()
    try:
        beside = p99()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return {
        "workload": "orders of another world beside judgments",
        "peer": backend,
        "alone_p99_ms": round(alone, 2),
        "beside_p99_ms": round(beside, 2),
        "ratio": round(beside / alone, 3),
        "limit_ratio": LIMITS["orders_p99"],
        "fence_p50_ms": round(1000 * statistics.median(waits), 2),
        "fence_max_ms": round(1000 * max(waits), 2),
        "limit_fence_ms": LIMITS["fence_ms"],
    }


class Chain(Strategy):
    """Each node over the one before it."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def setup(self) -> None:
        node: Any = StreamInput(tags=["AAPL", "price"], interval="1d", period=2)
        nodes = []
        for number in range(self.length):
            node = Node(node, step, name=f"n{number}", params={"number": number})
            nodes.append(node)
        self.add_nodes(nodes)


def step(view: Any) -> float:
    return 1.0


def chain(backend: str, database: Database) -> dict[str, Any]:
    took = []
    for number in range(3):
        dag = BuiltStrategy(Chain(CHAIN - 1 - number)).dag
        began = time.perf_counter()
        diff(database, uuid.uuid4().hex, "judged", "Chain", dag)
        took.append(time.perf_counter() - began)
    return {
        "workload": f"admit a chain of {CHAIN} nodes",
        "peer": backend,
        "p50_s": round(statistics.median(took), 3),
        "limit_s": LIMITS["chain_s"],
        "ratio_limit": round(statistics.median(took) / LIMITS["chain_s"], 3),
    }


def streams() -> dict[str, Any]:
    """The acknowledgement of a strategy over all streams of a world."""
    names = [f"SYM{number}" for number in range(STREAMS)]
    preset = Preset.model_validate(
        {
            "name": "prices",
            "source": "csv",
            "path": "prices/{stream}.csv",
            "interval": "1d",
            "streams": {name: [name, "price"] for name in names},
        }
    )
    nodes = [content_hash(name.encode()) for name in (*names, "portfolio")]
    ack = SubmissionAck(
        world_id="equities",
        strategy_id=content_hash(b"strategy"),
        workflow_id="submission:equities",
        run_id=uuid.uuid4().hex,
        queue_map={
            node: QueueTarget(
                topic=f"equities.backtest.sym_streaminput_{node[7:15]}_v1", compute_key=node, reused=False
            )
            for node in nodes
        },
        nodes_new=len(nodes),
        nodes_reused=0,
        sentinel_id=nodes[0],
        context=ComputeContext(world_id="equities", execution_domain=Domain.BACKTEST),
        bindings=tuple(
            StreamBinding(node_id=node, preset=preset, stream=name)
            for node, name in zip(nodes, names, strict=False)
        ),
        execution=Execution(),
    )
    size = len(ack.model_dump_json())
    return {
        "workload": f"the ack of a strategy over {STREAMS} streams",
        "peer": "qmtl",
        "bytes": size,
        "limit_bytes": LIMITS["ack_bytes"],
        "ratio_limit": round(size / LIMITS["ack_bytes"], 3),
    }
