"""Judgments and admissions at scale, on SQLite and PostgreSQL.

A world of a thousand strategies is judged, with a limit on correlations. Then another process judges it, as a
worker does (`benchmarks.judging`), while orders of another world go on, as in a Gateway. An order of the
judged world would wait for as long as a judgment holds that world's fence. Last, a chain of 1,500 nodes is
admitted, and the size of an acknowledgement with 500 streams is measured.
"""

import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from activities.fence.acceptance import OrderAcceptance
from activities.storage.database import Database
from activities.storage.opening import open_database
from benchmarks.judging import STRATEGIES, WORLD, JudgedWorld, JudgingProcess, judging_process
from benchmarks.orders import postgres
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.submission import QueueTarget, StreamBinding, SubmissionAck
from qmtl_sdk.contracts.worlds import Execution, Preset
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy, Strategy
from tests.support.admissions import diff
from tests.support.desk import Desk

JUDGMENTS = 5
ROUNDS = 8
ORDERS = 1_000
JUDGED_S = 10.0
CHANGED = 50
CHAIN = 1_500
STREAMS = 500
LIMITS = {"judged_s": 1.0, "fence_ms": 20.0, "orders_p99": 1.1, "ack_bytes": 200_000, "chain_s": 0.5}


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder) / "pg") as server:
        for backend, dsn in (("sqlite", f"sqlite:///{folder}/store.db"), ("postgres", server("judgment"))):
            artifacts = Path(folder) / f"artifacts-{backend}"
            with closing(open_database(dsn)) as database:
                world = JudgedWorld(database, artifacts)
                world.fill()
                yield from judged(backend, world)
                with judging_process(dsn, artifacts) as judging:
                    yield beside_orders(backend, database, judging)
                    yield fence(backend, judging, world)
                yield chain(backend, database)
    yield streams()


def judged(backend: str, world: JudgedWorld) -> Iterator[dict[str, Any]]:
    """Judgments of a worker: its first, one after a submission, and one of what it has judged before.

    `cpu_p50_s` is what the judgment takes of a core, also where others use the machine.
    """
    judge = world.judge()
    judge()  # the first of all changes every activation

    def just_started() -> None:
        nonlocal judge
        judge = world.judge()

    before = {
        "by a worker that has just started": just_started,
        "after a submission": lambda: world.submit(1, 1.0),
        "again": lambda: None,
    }
    took: dict[str, list[tuple[float, float]]] = {which: [] for which in before}
    for _ in range(JUDGMENTS):
        for which, prepare in before.items():
            prepare()
            cpu = time.process_time()
            seconds = judge()
            took[which].append((seconds, time.process_time() - cpu))
    for which, found in took.items():
        median, cpu = (statistics.median(each) for each in zip(*found, strict=True))
        yield {
            "workload": f"judge {STRATEGIES} strategies {which}",
            "peer": backend,
            "p50_s": round(median, 3),
            "max_s": round(max(found)[0], 3),
            "cpu_p50_s": round(cpu, 3),
            "limit_s": LIMITS["judged_s"],
            "ratio_limit": round(median / LIMITS["judged_s"], 3),
            "load": round(os.getloadavg()[0], 1),
        }


def beside_orders(backend: str, database: Database, judging: JudgingProcess) -> dict[str, Any]:
    """Orders of another world alone, and while another process judges.

    The rounds take turns, so that others who use the machine slow each kind alike. Where the machine has few
    cores, a process that is only as busy as judgments slows orders too: `ratio_busy` compares with that.
    """
    desk = Desk(database, "trading")
    desk.judge(Path())
    desk.apply("dryrun")
    acceptance, alone, busy, beside = OrderAcceptance(database), list[float](), list[float](), list[float]()

    def publish(took: list[float]) -> None:
        session, epoch = desk.session(), desk.epoch
        for _ in range(ORDERS):
            order = desk.order(session, epoch)
            began = time.perf_counter()
            (verdict,) = acceptance.publish([order], desk.caller)
            took.append(1000 * (time.perf_counter() - began))
            assert verdict.accepted, verdict

    publish([])
    judgments = 0
    for _ in range(ROUNDS):
        publish(alone)
        with judging.working("compute"):
            publish(busy)
        with judging.working("judge") as found:
            publish(beside)
        judgments += len(found)
    return {
        "workload": "orders of another world beside judgments of another process",
        "peer": backend,
        "orders": len(beside),
        "judgments": judgments,
        "alone_p50_ms": round(statistics.median(alone), 2),
        "beside_p50_ms": round(statistics.median(beside), 2),
        "alone_p99_ms": round(p99(alone), 2),
        "busy_p99_ms": round(p99(busy), 2),
        "beside_p99_ms": round(p99(beside), 2),
        "ratio": round(p99(beside) / p99(alone), 3),
        "ratio_busy": round(p99(beside) / p99(busy), 3),
        "limit_ratio": LIMITS["orders_p99"],
        "load": round(os.getloadavg()[0], 1),
    }


def fence(backend: str, judging: JudgingProcess, world: JudgedWorld) -> dict[str, Any]:
    """How long judgments hold the fence of their world, which its orders wait for.

    Some judgments change nothing. Before others, many strategies have got better and take the places of those
    that were active.
    """
    with judging.working("judge") as unchanged:
        time.sleep(JUDGED_S)
    changed = list[float]()
    for number in range(JUDGMENTS):
        world.submit(CHANGED, 10.0 + number)
        with judging.working("judge") as found:
            pass
        changed.append(found[0])
    return {
        "workload": "hold the fence of the judged world",
        "peer": backend,
        "judgments": len(unchanged),
        "p50_ms": round(1000 * statistics.median(unchanged), 2),
        "p95_ms": round(1000 * sorted(unchanged)[int(0.95 * len(unchanged))], 2),
        f"p50_with_{CHANGED}_changed_ms": round(1000 * statistics.median(changed), 2),
        "limit_ms": LIMITS["fence_ms"],
        "ratio_limit": round(1000 * statistics.median(unchanged) / LIMITS["fence_ms"], 3),
        "load": round(os.getloadavg()[0], 1),
    }


def p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


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
        diff(database, uuid.uuid4().hex, WORLD, "Chain", dag)
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
