"""A strategy that runs: on its world's clock, bar by bar, as long as its session holds.

1. Open a session: a lease on the world, the domain, the topics of the nodes. Its answer also sets the clock, so that this machine's own may be wrong.
2. Go on from the outputs that the submission has computed. New bars come from the world's streams as they fall due, rows of tag queries from their queues.
3. Every row goes to its node's queue under a key that says from what it was computed, so that sending it again adds nothing.
4. Beats keep the lease and say how it is. The stream brings activation and new queues; the gate looks at both, and freezes are acknowledged once it has closed.
5. Rows of a publisher node are orders: through the gate to the fence, under the epoch of the activation that is known. Bars that were caught up on are too old to trade on.
6. Where its world brings the strategy to another domain, it begins there anew, from that domain's own outputs: domains share nothing.
7. Where a source, the stream or the Gateway fails, the gate closes and computing goes on as far as it can. A lost session is opened anew.
8. `close` ends all of it.
"""

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from qmtl_sdk.compute.live import LiveEngine, OutputRow
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.compute.series import Row
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.dag import upstream
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.sessions import QueueMessage, SessionGrant, SessionHeartbeat, SessionOpen, message_key
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.submission import StreamBinding
from qmtl_sdk.contracts.topic_state import TopicState
from qmtl_sdk.contracts.worlds import World
from qmtl_sdk.data.bars import NS, iso, to_ns
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.activation import ActivationManager, Gate
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.feed import BarFeed
from qmtl_sdk.runtime.orders import OnVerdict, OrderIntent, OrderPublisher
from qmtl_sdk.runtime.stream import StreamClient
from qmtl_sdk.runtime.tagquery import TagQueryManager
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

TICK_S, TAGS_EVERY_S, AWAY_S, HISTORY, SEND_AT_ONCE, KEEP_UNSENT = 0.05, 0.25, 0.5, 500, 500, 50_000
SILENT_INTERVALS, STALE_BARS, STALE_S = 5, 2, 5
CLOSE = "close"
OnOutput = Callable[[OutputRow], None]
Recompute = Callable[[SessionGrant], Mapping[str, NodeOutput]]
"""The outputs of a strategy in the context of a session: what a strategy that comes to another domain goes on from."""


class RunningStrategy:
    """Started by `Runner`. `on_output` sees every row that a node puts out, on the strategy's thread."""

    def __init__(
        self,
        build: BuiltStrategy,
        world: World,
        gateways: Sequence[GatewayClient],
        bindings: Sequence[StreamBinding],
        tapes: Mapping[str, NodeOutput],
        *,
        runner: str,
        shadow: bool = False,
        cross_context_cache_hits: int = 0,
        on_output: OnOutput | None = None,
        on_verdict: OnVerdict | None = None,
        recompute: Recompute | None = None,
    ) -> None:
        self.build, self.world, self._client, self._gateways, self._shadow, self._runner = (
            build,
            world,
            gateways[0],
            gateways,
            shadow,
            runner,
        )
        self.strategy_id = build.dag.strategy_id
        self._on_output, self._cross_context_cache_hits = on_output, cross_context_cache_hits
        self._bindings, self._recompute, self._prices = (
            {binding.node_id: binding for binding in bindings},
            recompute,
            dict[str, float](),
        )
        self._markets = {
            node.node_id: _market(node) for node in build.nodes if isinstance(node, TradeOrderPublisherNode)
        }
        self._begin(tapes)
        self.grant = self._open(patience_s=30.0)
        self.stream = StreamClient(
            gateways,
            Subscribe(world_id=world.spec.world, strategy_id=self.strategy_id),
            self._hear,
            self._snapshot,
        )
        self.activation = ActivationManager(self.stream, world.spec.world, self.strategy_id)
        self.gate = Gate(self.activation, shadow, self._wall, self.grant.context.execution_domain)
        self.orders = OrderPublisher(
            self._client,
            self.gate,
            world.spec.world,
            self.strategy_id,
            lambda: self.grant.session_id,
            on_verdict,
        )
        self.tags = self._tag_queries()
        self.bars = self.unsent_dropped = 0
        self._queues_fault = ""
        self._unsent: deque[tuple[str, QueueMessage]] = deque()
        self._stop, self._tags_at, self._send_at, self._resolved = threading.Event(), 0.0, 0.0, False
        self._threads = [
            threading.Thread(target=self._run, name="qmtl-running", daemon=True),
            threading.Thread(target=self._keep, name="qmtl-session", daemon=True),
        ]

    def _begin(self, tapes: Mapping[str, NodeOutput]) -> None:
        """Go on from these outputs."""
        self.engine = LiveEngine(self.build.nodes, tapes)
        streams = [node for node in self.build.nodes if isinstance(node, StreamInput)]
        closes = {
            node.node_id: int(tapes[node.node_id].bars.closes[-1])
            for node in streams
            if node.node_id in tapes and len(tapes[node.node_id].bars)
        }
        self.feed = BarFeed(streams, self._bindings, closes)
        self._tapes: Mapping[str, NodeOutput] = tapes

    def _tag_queries(self) -> TagQueryManager:
        return TagQueryManager(
            self._client,
            self.engine,
            self.world.spec.world,
            self.grant.context.execution_domain.value,
            set(self.build.by_id),
        )

    def start(self) -> "RunningStrategy":
        self.stream.start()
        self.orders.start()
        for thread in self._threads:
            thread.start()
        return self

    def close(self, reason: str = "stopped by its author") -> None:
        """End everything that it started. May be called again."""
        if self._stop.is_set():
            return
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.orders.close()
        self.stream.close()
        try:
            self._client.end_session(self.grant.session_id, reason, patience_s=2.0)
        except QmtlError as error:
            if error.code not in (
                "E_UNAVAILABLE",
                "E_SESSION_UNKNOWN",
                "E_RATE",
            ) and not error.code.startswith("E_TOKEN"):
                raise  # away, or no longer allowed: the lease runs out by itself
        for gateway in self._gateways:
            gateway.close()

    @property
    def alive(self) -> bool:
        return not self._stop.is_set()

    def wait(self, limit_s: float | None = None) -> bool:
        """Until it is closed."""
        return self._stop.wait(limit_s)

    def now(self) -> datetime:
        """The world's time, by the Gateway's clock."""
        return self.world.now(self._wall())

    # the session

    def _open(self, patience_s: float = 0.0) -> SessionGrant:
        wanted = SessionOpen(
            world_id=self.world.spec.world,
            strategy_id=self.strategy_id,
            runner=self._runner,
            host=socket.gethostname(),
            shadow=self._shadow,
        )
        grant = self._client.open_session(wanted, patience_s)
        self._clock = (grant.now, time.monotonic())
        return grant

    def _wall(self) -> datetime:
        now, at = self._clock
        return now + timedelta(seconds=time.monotonic() - at)

    def _keep(self) -> None:
        """Beat, three times within the lease."""
        heard, lease = time.monotonic(), self.grant.lease_s
        while not self._stop.wait(lease / 3):
            try:
                kept = self._client.session_beat(self.grant.session_id, self.report())
                self._clock, heard = (kept.now, time.monotonic()), time.monotonic()
                self.gate.faults.pop("session", None)
            except QmtlError as error:
                if time.monotonic() - heard > lease or error.code == "E_SESSION_LOST":
                    self.gate.faults["session"] = f"the session has lost its lease: {error.message}"
                if error.code in ("E_SESSION_LOST", "E_SESSION_UNKNOWN"):
                    self._reopen()

    def _reopen(self) -> None:
        try:
            self.grant = self._open()
            self.gate.faults.pop("session", None)
        except QmtlError as error:
            self.gate.faults["session"] = f"no session is to be had: {error.message}"

    def report(self) -> SessionHeartbeat:
        reason = self.gate.reason
        behind = self.stream.behind
        return SessionHeartbeat(
            positions=self.stream.positions,
            lag_s=round(max(0.0, min(self.activation.silence_s, 1e9)), 3)
            if behind or self.stream.fault
            else 0.0,
            gate="closed" if reason else "open",
            reason=reason[:300],
            bar=iso(self.engine.now) if self.engine.now > -(2**63) else "",
            bars=self.bars,
            dropped_bars=self.feed.late + self.engine.late,
            fault=(
                self.gate.faults.get("data")
                or self.gate.faults.get("compute")
                or self._queues_fault
                or self.stream.fault
            )[:500],
            cross_context_cache_hits=self._cross_context_cache_hits,
        )

    # the stream, on its thread

    def _hear(self, kind: str, event: CloudEvent) -> None:
        if kind == "queues":
            self.tags.handle(event)
        elif kind == "activation" and event.subject == WHOLE_WORLD:
            self._acknowledge(event)

    def _snapshot(self, kind: str, state: TopicState) -> None:
        if kind == "queues":
            self.tags.restore(state)
        elif kind == "activation" and WHOLE_WORLD in state.events:
            self._acknowledge(state.events[WHOLE_WORLD])

    def _acknowledge(self, event: CloudEvent) -> None:
        """The stream has folded the event before it hands it on: the gate stands as it says."""
        if event.data and event.data.get("requires_ack"):
            self.orders.acknowledge(self.grant.session_id, int(event.data["sequence"]))

    # the strategy

    def _run(self) -> None:
        self._history()
        while not self._stop.is_set():
            self._follow_domain()
            moved = self._step()
            if not moved:
                self._stop.wait(TICK_S)

    def _follow_domain(self) -> None:
        """Begin anew in the domain that the world has brought the strategy to, from that domain's own outputs."""
        domain = self.activation.domain
        if (
            self._shadow
            or domain is self.gate.domain
            or domain not in (Domain.DRYRUN, Domain.LIVE)
            or self._recompute is None
        ):
            return
        self.gate.faults["domain"] = f"it moves to {domain.value}"
        try:
            old, grant = self.grant.session_id, self._open()
            self._begin(self._recompute(grant))
            self.grant, self.gate.domain = grant, grant.context.execution_domain
            self.tags, self._resolved = self._tag_queries(), False
            self._unsent.clear()
            self._history()
            self._client.end_session(old, f"moved to {domain.value}", patience_s=2.0)
        except QmtlError as error:
            self._stop.wait(AWAY_S)  # tried again; until then the gate says why it is closed
            self.gate.faults["domain"] = f"it can't move to {domain.value}: {error.message}"
            return
        del self.gate.faults["domain"]

    def _step(self) -> bool:
        """Handle what has fallen due; whether there was something."""
        moved = False
        try:
            for close, bars in self.feed.due(self.now()):
                if self._stop.is_set():
                    return False
                for node_id, row in bars.items():
                    if CLOSE in row[1]:
                        self._prices[node_id] = row[1][CLOSE]
                    self._put(self.build.by_id[node_id], row, hash_of(iso(row[0])))
                self._advance(self.engine.advance(close, bars))
                self.bars, moved = self.bars + len(bars), True
            self.gate.faults.pop("data", None)
            self._watch_silence()
        except QmtlError as error:
            self.gate.faults["data"] = f"the data can't be read: {error.message}"
        try:
            if self.tags.queries and time.monotonic() >= self._tags_at:
                self._tags_at = time.monotonic() + TAGS_EVERY_S
                if not self._resolved:
                    self.tags.resolve()
                    self._resolved = True
                for close, tagged in self.tags.due():
                    self._advance(self.engine.advance(close, {}, tagged))
                    moved = True
            if time.monotonic() >= self._send_at:
                self._send()
                self._queues_fault = ""
        except QmtlError as error:  # what waits is sent later; whether the world is still heard of, the gate sees from the stream
            self._send_at = time.monotonic() + AWAY_S
            self._queues_fault = f"queues can't be reached: {error.message}"
        return moved

    def _advance(self, outputs: Iterable[OutputRow]) -> None:
        for output in outputs:
            if output.fault is not None:
                self.gate.faults["compute"] = str(output.fault)
            elif output.window:
                self.gate.faults.pop("compute", None)
            if output.window:
                self._put(output.node, (output.ts, output.values), output.window)
            if output.window and isinstance(output.node, TradeOrderPublisherNode):
                self._order(output.node, output.ts, output.values)
            if self._on_output is not None:
                self._on_output(output)

    def _order(self, node: TradeOrderPublisherNode, ts: int, values: Mapping[str, float]) -> None:
        quantity = node.quantity(values)
        if not quantity:
            return
        close = ts + node.interval * NS
        late = (to_ns(self.now()) - close) / NS
        if late > STALE_BARS * node.interval + STALE_S * (
            self.world.spec.clock.replay.speed if self.world.spec.clock.replay else 1
        ):
            self.orders.blocked["the bar is too old to trade on"] += 1
            return
        symbol, stream = self._markets[node.node_id]
        price = values.get("price", self._prices.get(stream))
        self.orders.enqueue(
            OrderIntent(
                node.node_id,
                ts,
                datetime.fromisoformat(iso(close)),
                symbol,
                quantity,
                None if price is None or math.isnan(price) else price,
            )
        )

    def _watch_silence(self) -> None:
        """A source that stops closes the gate once its newest bar is older than several intervals on the world's clock."""
        limit = SILENT_INTERVALS * self.feed.interval
        for label, close in self.feed.newest_closes().items():
            silence = (to_ns(self.now()) - close) / 1e9 if close > -(2**63) else math.inf
            if silence > limit and not self._shadow:
                self.gate.faults["data"] = f"{label} has no bar " + (
                    f"since {iso(close)}, {format_duration(silence)} ago"
                    if math.isfinite(silence)
                    else "at all"
                )

    # its queues

    def _history(self) -> None:
        """Put the newest rows of tagged nodes into their queues, so that who finds them has a window at once."""
        for node in self.build.nodes:
            tape = self._tapes.get(node.node_id)
            if node.tags and tape is not None and not isinstance(node, StreamInput):
                for row in range(max(tape.first, len(tape.bars) - HISTORY), len(tape.bars)):
                    values = {name: float(column[row]) for name, column in tape.bars.columns.items()}
                    self._put(
                        node,
                        (int(tape.bars.ts[row]), values),
                        hash_of(
                            {name: None if math.isnan(value) else value for name, value in values.items()}
                        ),
                    )
        self._tapes = {}

    def _put(self, node: Node, row: Row, window: str) -> None:
        target = self.grant.queue_map[node.node_id]
        ts, values = row
        key = message_key(node.node_id, node.interval, ts // 1_000_000_000, target.compute_key, window)
        self._unsent.append(
            (
                target.topic,
                QueueMessage(
                    key=key,
                    ts=ts,
                    values={name: None if math.isnan(value) else value for name, value in values.items()},
                ),
            )
        )
        if len(self._unsent) > KEEP_UNSENT:
            self._unsent.popleft()
            self.unsent_dropped += 1

    def _send(self) -> None:
        """Send what waits, oldest first. What a failure leaves is sent again; its keys are the same."""
        while self._unsent and not self._stop.is_set():
            batch: dict[str, list[QueueMessage]] = {}
            count = min(len(self._unsent), SEND_AT_ONCE)
            for i in range(count):
                topic, message = self._unsent[i]
                batch.setdefault(topic, []).append(message)
            for topic, messages in batch.items():
                self._client.queue_append(topic, messages)
            for _ in range(count):
                self._unsent.popleft()


def _market(node: TradeOrderPublisherNode) -> tuple[str, str]:
    """What a publisher trades, and the NodeID of the stream that its price comes from. Raises QmtlError (E_NODE_INPUT) where that is not one."""
    read = upstream(node.inputs, lambda parent: parent.inputs)
    found = {parent.node_id: parent for parent in read if isinstance(parent, StreamInput)}
    if len(found) == 1:
        stream = next(iter(found.values()))
        return node.symbol or (stream.tags[0] if stream.tags else stream.label), stream.node_id
    if node.symbol:
        return node.symbol, next((key for key, stream in found.items() if node.symbol in stream.tags), "")
    raise QmtlError(
        "E_NODE_INPUT",
        f"{node.label} derives from {len(found)} streams, and does not say what it trades",
        "name it: TradeOrderPublisherNode(…, symbol=…)",
        node=node.node_id,
    )
