"""What a running strategy starts from, computes with, and does with its rows."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from qmtl_sdk.compute.live import LiveEngine, OutputRow
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.compute.series import Row
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import SessionGrant, SessionHeartbeat
from qmtl_sdk.contracts.submission import MAX_CACHE_HITS, QueueTarget, StreamBinding
from qmtl_sdk.contracts.worlds import World
from qmtl_sdk.data.bars import CLOSE, NS, iso, to_ns
from qmtl_sdk.nodes.node import StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.contained import contained
from qmtl_sdk.runtime.feed import BarFeed
from qmtl_sdk.runtime.intents import IntentBuilder
from qmtl_sdk.runtime.orders import OnVerdict, OrderPublisher
from qmtl_sdk.runtime.queues import QueueWriter
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.tagquery import TagQueryManager
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

SILENT_INTERVALS = 5
"""The gate closes when a stream's newest bar is older than this many intervals of the coarsest stream."""

BEFORE_ALL_BARS = -(2**63)
"""The engine's and the feed's time before the first bar."""

OnOutput = Callable[[OutputRow], None]
Recompute = Callable[[SessionGrant], Mapping[str, NodeOutput]]
"""Computes a strategy's outputs in the domain of a session."""


class CacheHitReports:
    """Cache hits from another context that no Gateway has acknowledged yet, by NodeID.

    An acknowledged one is forgotten: a later session that reported it again would halt the strategy again.
    """

    def __init__(self, node_ids: Iterable[str] = ()) -> None:
        self._waiting = list(node_ids)

    def add(self, node_ids: Iterable[str]) -> None:
        """Add the hits of a computation."""
        self._waiting += node_ids

    def oldest(self) -> tuple[str, ...]:
        """Return those that one heartbeat reports."""
        return tuple(self._waiting[:MAX_CACHE_HITS])

    def delivered(self, report: SessionHeartbeat) -> None:
        """Forget those of a heartbeat that was acknowledged."""
        del self._waiting[: len(report.cross_context_hits)]


@dataclass(frozen=True)
class RunInputs:
    """What a running strategy starts from.

    `on_output` receives every output row, on the strategy's thread. `recompute` is needed to move to another
    domain.
    """

    build: BuiltStrategy
    world: World
    gateways: Sequence[GatewayClient]
    bindings: Sequence[StreamBinding]
    outputs: Mapping[str, NodeOutput]
    runner: str
    shadow: bool = False
    hits: CacheHitReports = field(default_factory=CacheHitReports)
    on_output: OnOutput | None = None
    on_verdict: OnVerdict | None = None
    recompute: Recompute | None = None


class Computation:
    """The engine and the bar feed of a strategy in one domain, and the outputs that they continue from."""

    def __init__(
        self,
        build: BuiltStrategy,
        bindings: Mapping[str, StreamBinding],
        outputs: Mapping[str, NodeOutput],
    ) -> None:
        self.outputs = outputs
        self.engine = LiveEngine(build.nodes, outputs)
        streams = [node for node in build.nodes if isinstance(node, StreamInput)]
        closes = {
            node.node_id: int(outputs[node.node_id].bars.closes[-1])
            for node in streams
            if node.node_id in outputs and len(outputs[node.node_id].bars)
        }
        self.feed = BarFeed(streams, dict(bindings), closes)

    def silence(self, now: datetime) -> str:
        """Describe the streams that are silent for too long; empty if there are none."""
        limit_s = SILENT_INTERVALS * self.feed.interval
        found = ""
        for label, close in self.feed.newest_closes().items():
            silence_s = (to_ns(now) - close) / NS if close > BEFORE_ALL_BARS else math.inf
            if silence_s > limit_s:
                since = f"since {iso(close)}, {format_duration(silence_s)} ago"
                found = f"{label} has no bar {since if math.isfinite(silence_s) else 'at all'}"
        return found


def tag_queries_of(
    inputs: RunInputs, engine: LiveEngine, grant: SessionGrant, session: Callable[[], SessionKey]
) -> TagQueryManager:
    """Build the manager of the engine's tag queries, in the domain of the session."""
    return TagQueryManager(inputs.gateways[0], engine, grant, session, set(inputs.build.by_id))


class RowProcessor:
    """Sends the rows of a running strategy to its queues, its publishers and `on_output`.

    `faults` are the order gate's: a compute function that fails closes the gate until it succeeds again.
    """

    def __init__(
        self,
        inputs: RunInputs,
        intents: IntentBuilder,
        orders: OrderPublisher,
        faults: dict[str, str],
        session: Callable[[], SessionKey],
        stop: threading.Event,
    ) -> None:
        self._nodes = inputs.build.by_id
        self._on_output = contained(inputs.on_output, "on_output", faults)
        self._intents = intents
        self._orders = orders
        self._faults = faults
        self.queues = QueueWriter(inputs.gateways[0], session, stop)

    def add_bars(self, bars: Mapping[str, Row], targets: Mapping[str, QueueTarget]) -> None:
        """Add the bars of streams, by NodeID, to their queues, and remember their closes as prices."""
        for node_id, row in bars.items():
            if CLOSE in row[1]:
                self._intents.set_price(node_id, row[1][CLOSE])
            self.queues.add(self._nodes[node_id], targets[node_id], row, hash_of(iso(row[0])))

    def add_outputs(
        self, outputs: Iterable[OutputRow], targets: Mapping[str, QueueTarget], now: datetime
    ) -> None:
        """Add output rows to their queues and publish the orders among them. `now` is the world's time."""
        for output in outputs:
            node = output.node
            if output.fault is not None:
                self._faults["compute"] = str(output.fault)
            elif output.window:
                self._faults.pop("compute", None)
            if output.window:
                self.queues.add(node, targets[node.node_id], (output.ts, output.values), output.window)
                if isinstance(node, TradeOrderPublisherNode):
                    self._publish(node, output, now)
            self._on_output(output)

    def restore(self, outputs: Mapping[str, NodeOutput]) -> None:
        """Set the targets that were decided last, in place of all that were set."""
        self._orders.targets.clear()
        try:
            self._intents.restore(self._orders, outputs)
        except QmtlError as error:
            self._faults["targets"] = error.message

    def _publish(self, node: TradeOrderPublisherNode, output: OutputRow, now: datetime) -> None:
        """Publish a row. One that cannot be published closes the gate until the node's next row can."""
        fault = f"targets of {node.label}"
        try:
            self._intents.publish(self._orders, node, output.ts, output.values, now)
        except QmtlError as error:
            self._faults[fault] = error.message
        else:
            self._faults.pop(fault, None)
            self._faults.pop("targets", None)
